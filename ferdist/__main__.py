"""`python -m ferdist`: the command line, for torchrun."""

import sys

from ferdist.cli import main

sys.exit(main())
