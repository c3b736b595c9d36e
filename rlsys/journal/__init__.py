"""The journal of a run on disk (`journal.py`): entries (`entries.py`) in checksummed logs (`appendlog.py`). `past.py` gives a
round its view of the rounds before it.
"""

from rlsys.journal.journal import Journal
from rlsys.journal.past import Past, find_prompts

__all__ = ["Journal", "Past", "find_prompts"]
