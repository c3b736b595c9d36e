"""The plan of each round: phases with ramps (`phases.py`), and the rules that refuse a round or stop the run (`gate.py`)."""
