"""Kinds of examples. There is one file for each record class that an objective may learn from."""
