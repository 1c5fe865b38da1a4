"""The three files of a set on the disk: where they lie, and how a new set takes the place of an older one.

A new set is written into a folder of its own, whose rename to ``.X.new`` makes it valid; then its files move
to their places. Readers look into that folder first, so at any moment, and after any crash, they find the
whole old set or the whole new one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Final

from ferdist.errors import DataError
from ferdist.io import MIB, TEXT_LIMIT, held, open_untrusted, scratch_folder, sync

PARTS: Final = {".beton": sys.maxsize, ".samples.csv": 1024 * MIB, ".json": TEXT_LIMIT}
"""Endings of the files of a set, with the most bytes that are read of each."""

PAIR: Final = "copy the .json and .samples.csv that belong to it, or run `ferdist prepare` again"
"""What to do about a set that does not belong together."""
_TRIES: Final = 10

Identity = tuple[int, int, int, int]


def identity(status: os.stat_result) -> Identity:
    """What tells a file from any other, and from itself before a change."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_part(path: Path, suffix: str) -> BufferedReader:
    """One file of the set of ``X.beton``, even while it moves to its place.

    Raises:
        FileNotFoundError: if it is missing.
        OSError: if it cannot be opened or is not a regular file.
    """
    try:
        return open_untrusted(_place(path, suffix), PARTS[suffix])
    except FileNotFoundError:
        return open_untrusted(_place(path, suffix), PARTS[suffix])  # it may have moved between the looks


def _place(path: Path, suffix: str) -> Path:
    settled = path.with_suffix(suffix)
    arriving = _arriving(path) / settled.name
    return arriving if arriving.exists() else settled


def _arriving(path: Path) -> Path:
    """The folder of a set that is valid and whose files still move to their places."""
    return path.with_name(f".{path.stem}.new")


@contextmanager
def open_parts(path: Path) -> Iterator[dict[str, BufferedReader]]:
    """The files of one set, by their endings, even while another set takes its place.

    Raises:
        DataError: if ``path`` is no beton by its name, a file is missing, cannot be opened or read, or is not
            regular, or the set is replaced again and again.
    """
    try:
        if path.is_dir():
            raise DataError(f"{path}: this is a folder; give the .beton file in it")
        if path.suffix != ".beton":
            raise DataError(f"{path}: not a beton by its name; give the file that ends in .beton")
        for _ in range(_TRIES):
            with ExitStack() as stack:
                files = {suffix: stack.enter_context(open_part(path, suffix)) for suffix in PARTS}
                if all(_is_at(_place(path, suffix), file) for suffix, file in files.items()):
                    yield files
                    return
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        if missing == path.name:
            raise DataError(
                f"{path}: there is no such file; make it with `ferdist prepare`, or name another one"
            ) from error
        raise DataError(f"{path}: {missing} is not beside it; {PAIR}") from error
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot read it: {error.strerror}") from error
    raise DataError(f"{path}: it is being replaced all the time; wait for `ferdist prepare` to end")


def _is_at(path: Path, file: BufferedReader) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """A folder for the files of a set, which take the places of an older set's when the block ends well.

    If it raises, or the process dies in it, the older set stays as it was.

    Raises:
        BlockingIOError: if another process replaces this set.
        OSError: if the folder cannot be written.
        DataError: if a folder has the name of a file.
    """
    with held(path.with_name(f".{path.stem}.lock")):
        _move(path)
        for target in map(path.with_suffix, PARTS):
            if target.is_dir():
                raise DataError(f"{target}: a folder has this name; move it away")
        with scratch_folder(path.with_suffix("")) as folder:
            yield folder
            for file in folder.iterdir():
                sync(file)
            sync(folder)
            folder.rename(_arriving(path))
            sync(path.parent)
        _move(path)


def _move(path: Path) -> None:
    """Move the files of a valid set, if any are left, to their places."""
    folder = _arriving(path)
    if not folder.is_dir() or folder.is_symlink():
        return
    for target in map(path.with_suffix, PARTS):
        if (folder / target.name).exists():
            (folder / target.name).replace(target)
    sync(folder)
    sync(path.parent)
    folder.rmdir()
    sync(path.parent)
