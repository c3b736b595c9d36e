"""Worlds whose ground truth is known; each is a package."""
