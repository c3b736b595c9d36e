"""What a check of `rlsys doctor` raises."""

from __future__ import annotations


class Problem(Exception):
    """Something is wrong with this machine or its installation."""

    def __init__(self, seen: str, advice: str = "") -> None:
        """
        Args:
            seen: what is wrong, in a few words.
            advice: what to do about it; empty if the check's general advice says it.
        """
        super().__init__(seen)
        self.advice = advice
