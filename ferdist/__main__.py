"""`python -m ferdist`: the command line, for torchrun."""

from ferdist.cli import leave, main

leave(main())
