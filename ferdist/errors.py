"""The errors that a user can mend: each message is one line with the place, the fault and the remedy."""

from __future__ import annotations

import sys


class FerdistError(Exception):
    """Base of every error that the command line shows as one line with exit code 1."""


class DataError(FerdistError):
    """Raw files or a beton file do not hold what they should."""


class ConfigError(FerdistError):
    """A configuration file or override is wrong."""


class RunError(FerdistError):
    """A run cannot start, go on or be read."""


class Preempted(FerdistError):
    """A signal stopped the run after a checkpoint: starting it again goes on (exit code 75).

    Attributes:
        requeue: whether whoever started the run should start it again: SIGUSR2 was among the signals and
            there is a checkpoint of this start.
    """

    def __init__(self, message: str, *, requeue: bool = False) -> None:
        super().__init__(message)
        self.requeue = requeue


def tell(line: str) -> None:
    """Write a line to stderr in one piece; under torchrun, whose ranks share it, `print` makes two of it."""
    sys.stderr.write(f"{line}\n")
