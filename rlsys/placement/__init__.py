"""The resources of the machines (`machine.py`), what fits on them (`packing.py`), and the placements (`plan.py`)."""

from rlsys.placement.plan import Placement, Role, place, share_starts, shortages

__all__ = ["Placement", "Role", "place", "share_starts", "shortages"]
