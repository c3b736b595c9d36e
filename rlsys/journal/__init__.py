"""What happened in a run, on disk (`journal.py`): entries (`entries.py`) in checksummed logs (`appendlog.py`)."""

from rlsys.journal.journal import Journal

__all__ = ["Journal"]
