"""What happened in a run, on disk (`journal.py`): entries (`entries.py`) in checksummed logs (`appendlog.py`)."""

from rlsys.journal.journal import Journal, Journaled

__all__ = ["Journal", "Journaled"]
