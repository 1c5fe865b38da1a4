"""What training and evaluation stand on: processes, precision, and the files of a run and an experiment."""
