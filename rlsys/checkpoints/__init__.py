"""Checkpoints of rounds (`checkpoint.py`), and those of a run as it goes on (`run.py`)."""
