"""`python -m ferdist.train CONFIG [key=value ...]`: what torchrun and SLURM start."""

import sys

from ferdist.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
