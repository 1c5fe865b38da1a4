"""`python -m ferdist`: the command line, for torchrun."""

from ferdist.cli import main
from ferdist.errors import leave

leave(main())
