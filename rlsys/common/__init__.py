"""Helpers for all parts: lazy imports, atomic files, bounded caches, streams between threads."""
