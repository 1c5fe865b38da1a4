"""Checkpoints: atomic, verified by a checksum beside them, loaded without unpickling code."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Final, NotRequired, TypedDict, TypeVar

import msgspec
import torch
from torch import Tensor

from ferdist.errors import RunError, reason_of
from ferdist.io import (
    MIB,
    atomic_path,
    check_unpacked,
    open_untrusted,
    read_untrusted,
    sha256,
    sync,
    write_text,
)

BEST = "best.pt"
LIMIT: Final = 2**14 * MIB
"""Largest checkpoint that is read: above a state of a thousand million parameters."""
_SEEN_SECONDS = 120.0
"""NFS remembers the names in a folder for up to a minute (acdirmax), renamed files among them."""
T = TypeVar("T")
_log = logging.getLogger(__name__)


_Step = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Weights(TypedDict):
    """Averaged weights with what is needed to use them: a part of best.pt and of each training state."""

    step: _Step
    ema: dict[str, Tensor]
    card: dict[str, Any]


class BestWeights(Weights):
    """best.pt: the weights that scored best on val so far."""

    accuracy: Annotated[float, msgspec.Meta(ge=0, le=1)]


class EngineState(TypedDict):
    """What the steps that are done have made, the draws being a function of seed and step."""

    step: _Step
    read_at: _Step
    counters: Tensor
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]


class TrainingState(EngineState):
    """All that a run needs to go on."""

    card: dict[str, Any]
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    world_size: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    accumulate: NotRequired[Annotated[int, msgspec.Meta(ge=1, lt=2**31)]]  # not in states of earlier versions
    precision: NotRequired[Annotated[str, msgspec.Meta(max_length=20)]]


State = TypeVar("State")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state, with its checksum in ``sha256sum``'s format beside it.

    Raises:
        RunError: if the disk refuses; what was there before stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
            line = f"{sha256(temporary)}  {path.name}\n"
            sync(temporary)
            # Until the new file takes its place an old one of that name stays good: both checksums count.
            write_text(_checksum_path(path), line + _checksums(path))
        write_text(_checksum_path(path), line)
    except (OSError, RuntimeError) as error:
        reason = reason_of(error)
        raise RunError(f"{path}: cannot write the checkpoint: {reason}; free some space and resume") from None


def load(path: Path, kind: type[State]) -> State:
    """Read a checkpoint onto the CPU.

    Args:
        path: of the checkpoint; its checksum must lie beside it.
        kind: what it holds.

    Raises:
        RunError: if it is missing, its bytes are not those that were written, it holds more than tensors
            and plain values (which could run code), or something else than a state of this kind.
    """
    try:
        with open_untrusted(path, LIMIT) as file:
            _check_bytes(path, file)
            check_unpacked(file, os.fstat(file.fileno()).st_size)  # torch compresses nothing
            return msgspec.convert(torch.load(file, map_location="cpu", weights_only=True), kind)
    except RunError:
        raise
    except FileNotFoundError:
        raise RunError(f"{path}: there is no such checkpoint") from None
    except Exception as error:  # torch's reader raises whatever a damaged file makes it
        raise RunError(f"{path}: unreadable checkpoint: {reason_of(error)}") from None


def _check_bytes(path: Path, file: BufferedReader) -> None:
    beside = _checksum_path(path)
    if not beside.exists():
        raise RunError(
            f"{path}: {beside.name} is missing beside it, so damage would go unnoticed: copy both files"
        )
    if hashlib.file_digest(file, "sha256").hexdigest() not in _checksums(path):
        raise RunError(f"{path}: damaged, its bytes do not match {beside.name}")
    file.seek(0)


def read_soon(read: Callable[[], T]) -> T:
    """Read what rank 0 can read: on NFS, another host may see it a while later.

    Raises:
        RunError: as ``read`` does, if it still does after two minutes.
    """
    deadline = time.monotonic() + _SEEN_SECONDS
    while True:
        try:
            return read()
        except RunError as error:
            if time.monotonic() >= deadline:
                shared = "rank 0 could: the run folder must be on a file system that all hosts share"
                raise RunError(f"{error}; {shared}") from None
            time.sleep(0.5)


class Writer:
    """Writes checkpoints in a thread, one after another, each whole or not at all."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """Start to write a state whose tensors nothing else changes.

        Raises:
            RunError: if an earlier one could not be written.
        """
        self.wait()
        self._writing = self._pool.submit(save, path, state)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            RunError: if the disk refused.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait until all is written, or the disk has refused, and end the thread."""
        self._pool.shutdown()


def step_path(folder: Path, step: int) -> Path:
    """Where the training state after ``step`` lies."""
    return folder / f"step-{step:08d}.pt"


def steps(folder: Path) -> list[Path]:
    """Checkpoints of the training state, oldest first."""
    return sorted(folder.glob("step-????????.pt"))


def load_newest(folder: Path) -> TrainingState | None:
    """The newest intact training state, or None where there is none.

    A damaged one is passed over with a warning, and so is one of which the file or its checksum is missing.
    """
    for path in reversed(_named(folder)):
        try:
            return load(path, TrainingState)
        except RunError as error:
            _log.warning("%s; falling back to the previous checkpoint", error)
    return None


def set_aside(folder: Path, step: int) -> list[Path]:
    """Rename the training states after ``step`` to ``*.damaged``: they no longer count among those to keep.

    Args:
        folder: of the checkpoints.
        step: of the state that `load_newest` gave, 0 where there was none.

    Returns:
        Their former names.
    """
    damaged = [path for path in _named(folder) if path > step_path(folder, step)]
    for path in damaged:
        if path.exists():
            path.replace(path.with_name(f"{path.name}.damaged"))
        _checksum_path(path).unlink(missing_ok=True)
    return damaged


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` training states."""
    for path in steps(folder)[:-keep]:
        path.unlink(missing_ok=True)
        _checksum_path(path).unlink(missing_ok=True)


def _named(folder: Path) -> list[Path]:
    """Checkpoints of the training state, oldest first, also those of which only the checksum is left."""
    beside = (path.with_suffix("") for path in folder.glob("step-????????.pt.sha256"))
    return sorted({*steps(folder), *beside})


def _checksums(path: Path) -> str:
    """The lines of the checksum file, none where there is no such file."""
    beside = _checksum_path(path)
    return read_untrusted(beside, MIB).decode(errors="replace") if beside.exists() else ""


def _checksum_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
