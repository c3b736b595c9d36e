"""The configuration of a run: `schema.py` composes what the parts define; the YAML files are presets, methods and clusters."""
