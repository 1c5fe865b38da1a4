"""`python -m ferdist.train CONFIG [key=value ...]`: what torchrun and SLURM start."""

import sys

from ferdist.cli import main
from ferdist.errors import leave

if __name__ == "__main__":
    leave(main(["train", *sys.argv[1:]]))
