"""From raw files to a beton, the one file that training reads: readers, folds, audit and drawn faces."""
