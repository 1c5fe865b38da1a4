"""The run's folder, held from a run's start to its end, however it ends."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ferdist.config import Config
from ferdist.errors import FerdistError, Preempted, RunError
from ferdist.runtime.distributed import World
from ferdist.runtime.folder import RunFolder, claim

_DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def claimed(config: Config, beton_sha256: str, world: World) -> Iterator[RunFolder]:
    """The run's folder, taken by rank 0 for all; how the run ends badly goes into its status.json."""
    with ExitStack() as stack:
        refusal: FerdistError | None = None
        if world.is_main:
            try:
                stack.enter_context(claim(config, beton_sha256))
            except FerdistError as error:
                refusal = error
        # All ranks hear of a refusal, so that none waits for a rank 0 that has gone.
        if world.any(refusal is not None):
            raise refusal or RunError(
                f"{config.run_dir}: rank 0 could not claim this folder: see its message"
            )
        folder = RunFolder(Path(config.run_dir))
        try:
            yield folder
        except BaseException as error:
            if isinstance(error, OSError) and (known := _refusal(folder, error)):
                _note_end(folder, known)
                raise known from None
            _note_end(folder, error)
            raise


def _refusal(folder: RunFolder, error: OSError) -> RunError | None:
    """What an error of the system means for the run, None where it means nothing known."""
    if error.errno in _DISK_REFUSES:
        reason = f"{error.strerror}; free some space and resume"
        return RunError(f"{folder.path}: the run folder cannot be written: {reason}")
    if error.errno == errno.ENOENT and not folder.config.exists():
        return RunError(f"{folder.path}: the run folder was removed while it was in use: start the run again")
    return None


def _note_end(folder: RunFolder, error: BaseException) -> None:
    """Say in status.json how the run ended; the rank that knows the cause has the last word.

    When one rank fails, the others see no more than a closed connection.
    """
    known = isinstance(error, FerdistError)
    reason = " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())
    if known or folder.state() == "running":
        with suppress(OSError):  # a full disk must not hide the error that it caused
            state = "preempted" if isinstance(error, Preempted) else "failed"
            folder.set_status(state, reason, **folder.progress())
