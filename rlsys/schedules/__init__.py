"""What each round does: phases with ramps (`phases.py`), and when to refuse a round or to stop (`gate.py`)."""
