"""Checkpoints of single rounds (`checkpoint.py`), and the management of a run's checkpoints (`run.py`)."""
