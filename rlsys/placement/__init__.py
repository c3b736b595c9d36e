"""What the machines have (`machine.py`), what fits on them (`packing.py`), and which process gets what (`plan.py`)."""

from rlsys.placement.plan import Placement, Role, place, share_starts, shortages

__all__ = ["Placement", "Role", "place", "share_starts", "shortages"]
