"""What any part may use: lazy imports, atomic files, bounded caches, streams between threads."""
