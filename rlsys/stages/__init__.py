"""Stages, one file each. A stage makes a model before the rounds of a run."""
