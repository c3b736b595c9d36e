"""Sources of training examples, one file each. `rlsys train` and the stages before the rounds train on them."""
