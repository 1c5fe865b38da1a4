"""Files that are complete or absent, untrusted files, and folders with one owner."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

from ferdist.errors import RunError, reason_of

LOCK: Final = ".lock"
"""File in a folder that has one owner; whoever holds its lock owns the folder."""

MIB: Final = 2**20
TEXT_LIMIT: Final = 64 * MIB
"""Largest file of text that is read as a whole: above any that ferdist writes."""
MAX_MEMBERS: Final = 2_000_000
"""Most members of a zip, each of which takes half a kilobyte of memory: AffectNet has 450,000 images."""
_MEMBER_BYTES: Final = 150
"""What a member takes in a zip's table of contents: 46 bytes, and its name."""


def open_untrusted(path: Path, limit: int) -> BufferedReader:
    """Open a regular file of at most ``limit`` bytes for reading.

    A FIFO, socket or device is refused: it could block, act on being opened, or never end.

    Raises:
        OSError: as `open` does, and with the ``strerror`` "not a regular file" or "larger than N MiB".
    """
    _check_regular(path.stat(), path, limit)  # opening a device can do something
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check_regular(os.fstat(handle), path, limit)  # it may be another file by now
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _check_regular(status: os.stat_result, path: Path, limit: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if status.st_size > limit:
        raise _too_large(path, limit)


def _too_large(path: Path, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"larger than {limit // MIB} MiB", str(path))


def read_untrusted(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: as `open_untrusted`.
    """
    with open_untrusted(path, limit) as file:
        content = file.read(limit + 1)
    if len(content) > limit:  # it grew
        raise _too_large(path, limit)
    return content


def read_json(path: Path, limit: int = TEXT_LIMIT) -> Any:
    """The content of a JSON file; a number that is not finite, which JSON does not have, becomes None.

    Raises:
        OSError: as `open_untrusted`.
        ValueError: if it is not UTF-8, not JSON or nested too deeply.
    """
    text = read_untrusted(path, limit).decode("utf-8")
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def open_zip(file: BufferedReader) -> zipfile.ZipFile:
    """Open a zip of at most ``MAX_MEMBERS`` members.

    Raises:
        ValueError: if its table of contents is larger; it is not read then.
        Exception: whatever zipfile raises at damage.
    """
    record = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # what ZipFile itself starts from
    if record and record[zipfile._ECD_SIZE] > MAX_MEMBERS * _MEMBER_BYTES:  # type: ignore[attr-defined]
        raise ValueError(f"more than {MAX_MEMBERS:,} members")
    return zipfile.ZipFile(file)


def check_unpacked(file: BufferedReader, limit: int) -> None:
    """Refuse a zip whose members would take more than ``limit`` bytes; the file stays at its start.

    Raises:
        ValueError: if it is not a zip, or it is too large.
    """
    try:
        with open_zip(file) as members:
            total = sum(member.file_size for member in members.infolist())
    except Exception:  # zipfile raises whatever a damaged file makes it
        raise ValueError("not a whole zip file") from None
    if total > limit:
        raise ValueError(f"larger than {limit // MIB} MiB when unpacked")
    file.seek(0)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A new, empty file in the folder of ``path`` that becomes ``path`` when the block ends well.

    Nobody can foresee its name, so no link can lead what the block writes elsewhere. The file is flushed to
    the disk first; if the block raises, it is removed and ``path`` stays as it was.
    """
    with _temporary(path, _make_file) as temporary:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A new, empty folder beside ``path`` that is removed at the end, unless it has been renamed."""
    with _temporary(path, Path.mkdir) as folder:
        yield folder


def _make_file(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))


@contextmanager
def _temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary beside ``path``, removed at the end unless it has been renamed.

    It is locked meanwhile. One that no process has locked is of a process that died, and is removed first.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 16}.tmp"):
        _lock_and_remove(leftover)
    with ExitStack() as stack:
        while True:
            temporary = path.with_name(f".{path.name}.{token_hex(8)}.tmp")
            make(temporary)
            stack.callback(_remove, temporary)
            with suppress(FileNotFoundError, BlockingIOError):
                stack.callback(os.close, _locked_handle(temporary, fcntl.LOCK_SH))
                if temporary.exists():
                    break  # else another process has removed it before it was locked
        yield temporary


def _lock_and_remove(leftover: Path) -> None:
    with suppress(OSError):  # a living process has locked it
        handle = _locked_handle(leftover, fcntl.LOCK_EX)
        try:
            _remove(leftover)
        finally:
            os.close(handle)


def _locked_handle(path: Path, kind: int) -> int:
    """A handle that has a file or folder locked; a file system that cannot lock gives ``LOCK_SH`` to all."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        if kind == fcntl.LOCK_EX or isinstance(error, BlockingIOError):
            os.close(handle)
            raise
    return handle


def _remove(path: Path) -> None:
    if path.is_file() or path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is written in the block is about ``path``.

    Raises:
        RunError: if the disk refuses: it is full or read-only, or the folder is gone.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({reason_of(error)}): free space there or choose another place"
        ) from None


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented; a value that is not finite is an error, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256(file: Path | BufferedReader) -> str:
    """SHA-256 of a file, in hex."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return sha256(opened)
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file, which is removed at the end; the lock goes with the process, however it dies.

    Args:
        path: of the file.
        wait: for another process that holds it.

    Raises:
        BlockingIOError: if another process holds it and ``wait`` is false.
        OSError: if the file cannot be written or the file system cannot lock.
    """
    with ExitStack() as stack:
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if os.path.samestat(path.lstat(), os.fstat(lock)):
                    break  # else its last holder has removed it: the lock is of no file that others see
        stack.callback(path.unlink, missing_ok=True)  # before the lock goes
        yield


@contextmanager
def locked(folder: Path, what: str, *, busy: str, instead: str) -> Iterator[None]:
    """Make a folder and hold it against other processes; the lock goes with the process, however it dies.

    Args:
        folder: its file ``LOCK`` is the lock.
        what: the folder is, for people.
        busy: what to say where another process has it.
        instead: what to do where the file system cannot lock.

    Raises:
        RunError: if another process holds it or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")
    except OSError as error:
        raise RunError(f"{folder}: the {what} cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder}: {busy}") from None
        except OSError as error:
            raise RunError(f"{folder}: the file system cannot lock ({error.strerror}): {instead}") from None
        yield
