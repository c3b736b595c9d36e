"""Stages, one file each: what makes a model before the rounds of a run."""
