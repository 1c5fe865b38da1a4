"""The errors that a user can fix, and how a process ends with one.

Each message is one line that names the place, the fault and the remedy.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
import unicodedata
from collections.abc import Callable
from typing import Final, NoReturn

UNPRINTABLE: Final = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that can steer a terminal, turn or hide text, break a line, or cannot be encoded."""

LONGEST_LINE: Final = 2000
"""Letters of a message."""


class FerdistError(Exception):
    """Base of every error that the command line shows as one line with exit code 1.

    Its text is `printable`, wherever it is shown: it quotes what comes from outside.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class DataError(FerdistError):
    """Raw files or a beton file do not hold what they should."""


class ConfigError(FerdistError):
    """A configuration file or override is wrong."""


class RunError(FerdistError):
    """A run cannot start, resume or be read."""


class Preempted(FerdistError):
    """A signal stopped the run after a checkpoint: starting it again resumes it (exit code 75).

    Attributes:
        requeue: whether whoever started the run should start it again: SIGUSR2 was among the signals and
            there is a checkpoint of this start.
    """

    def __init__(self, message: str, *, requeue: bool = False) -> None:
        super().__init__(message)
        self.requeue = requeue


def printable(text: str) -> str:
    """One line that any terminal shows as it is: names from outside can hold escapes and line breaks."""
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode("ascii")
        if unicodedata.category(letter) in UNPRINTABLE
        else letter
        for letter in text
    )


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line without the path; some libraries' errors have many lines or none."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def tell(line: str) -> None:
    """Write a line to stderr in one piece; under torchrun, whose ranks share it, `print` makes two of it.

    The middle of a line that nobody would read to its end is left out: a name from outside can be megabytes.
    """
    line = printable(line)
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} […] {line[-LONGEST_LINE // 2 :]}"
    sys.stderr.write(f"{line}\n")


def is_main_rank() -> bool:
    """Whether this process reports results: rank 0, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def exit_code(command: Callable[[], object], *, debug: bool = False) -> int:
    """Run a command; errors become one line on stderr.

    Args:
        command: may also raise SystemExit.
        debug: print the traceback of an error, too.

    Returns:
        0 done, 1 failed, 75 stopped by a signal with a checkpoint written, else what SystemExit says.
    """
    speaker = "ferdist" if is_main_rank() else f"ferdist[rank {os.environ['RANK']}]"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"{speaker}: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])

    def tell_of_thread(ended: threading.ExceptHookArgs) -> None:
        if debug:
            traceback.print_exception(ended.exc_value)
        error = ended.exc_value or ended.exc_type()
        tell(f"{speaker}: a thread ended: {type(error).__name__}: {reason_of(error)}")

    threading.excepthook = tell_of_thread  # TensorBoard writes in one, to a disk that can be full
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Preempted as stop:
        tell(f"{speaker}: {stop}")
        return os.EX_TEMPFAIL
    except Exception as error:
        if debug:
            traceback.print_exc()
        reason = str(error)
        if not isinstance(error, FerdistError):
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            reason = f"unexpected {reason} (run with --debug for the traceback)"
        tell(f"{speaker}: {reason}")
        return 1
    return 0


def leave(code: int) -> NoReturn:
    """End the process with an exit code.

    A rank that failed among others goes at once: the end of its process group could wait for peers that sit
    in a collective, and the launcher, which ends those, waits for this exit.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if code and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(code)
    sys.exit(code)
