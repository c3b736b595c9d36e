"""Worlds whose truth is known; each is a package."""
