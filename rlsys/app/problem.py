"""The exception that a check of `rlsys doctor` raises."""

from __future__ import annotations


class Problem(Exception):
    """Something is wrong with this machine or its installation."""

    def __init__(self, seen: str, advice: str = "") -> None:
        """
        Args:
            seen: what is wrong, in a few words.
            advice: how to repair it; empty if the check's general advice covers it.
        """
        super().__init__(seen)
        self.advice = advice
