"""Sources of training examples, one file each: what `rlsys train` and the stages before the rounds learn from."""
