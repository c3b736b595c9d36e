"""Kinds of examples: one file for each record class that an objective may learn from."""
