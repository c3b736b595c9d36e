"""The configuration of a run: `schema.py` combines the parts' options; the YAML files are presets, methods and clusters."""
