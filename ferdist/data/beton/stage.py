"""A copy of a beton on the host's own disk: ``data.stage``."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import stat
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path

from ferdist.data.beton.files import open_part, open_parts
from ferdist.data.beton.manifest import Manifest
from ferdist.data.beton.opened import open_beton
from ferdist.errors import ConfigError, DataError
from ferdist.io import MIB, atomic_path, sha256


def stage_beton(path: Path, folder: str) -> Path:
    """Copy a beton with its manifest and table of samples to this host; whole files that are there stay.

    Processes that want the same copy at the same time wait for the one that makes it; its lock goes with it,
    however it dies. Each file is compared with its sha256 and then renamed.

    Args:
        path: ``X.beton``, with ``X.json`` and ``X.samples.csv`` beside it.
        folder: an existing folder of this host, see ``staged_path``.

    Returns:
        The copy's path.

    Raises:
        ConfigError: if a variable in ``folder`` is not set on this host.
        DataError: if the beton is not whole, or the copy cannot be written. Nothing unfinished is left then.
    """
    open_beton(path)
    with open_parts(path) as files:
        return _copied(files, path, folder)


def _copied(files: Mapping[str, BufferedReader], path: Path, folder: str) -> Path:
    host, text = socket.gethostname(), files[".json"].read()
    manifest, content = Manifest.parse(text, path.with_suffix(".json")), hashlib.sha256(text).hexdigest()
    copy = _copy_path(path, folder, content)
    digests = {".beton": manifest.sha256, ".samples.csv": manifest.samples_sha256, ".json": content}
    if not copy.parent.parent.is_dir():
        raise DataError(
            f"{copy.parent.parent}: data.stage is not a folder on {host}: make it, or name another"
        )
    try:
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        _check_own(copy.parent)
        with (copy.parent / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in copy.parent.glob(".*.tmp"):  # of a process that died while it copied
                leftover.unlink()
            for suffix, digest in digests.items():
                _copy_file(path.with_suffix(suffix), files[suffix], copy.with_suffix(suffix), digest)
    except OSError as error:
        raise DataError(
            f"{copy}: data.stage cannot make this copy on {host}: {error.strerror}: "
            "make room there, or name another folder"
        ) from error
    return copy


def staged_path(path: Path, folder: str) -> Path:
    """Where the copy of a beton belongs: below ``folder``, by the user and the manifest's checksum.

    Args:
        path: ``X.beton``, with its manifest beside it.
        folder: environment variables in it, as in ``$TMPDIR/data``, are those of this process.

    Raises:
        ConfigError: if one of them is not set.
    """
    with open_part(path, ".json") as file:
        return _copy_path(path, folder, sha256(file))


def _copy_path(path: Path, folder: str, content: str) -> Path:
    place = os.path.expandvars(folder)
    if "$" in place:
        raise ConfigError(
            f"data.stage is {folder!r}: a variable in it is not set on {socket.gethostname()}: "
            "set it, or name a folder"
        )
    return Path(place) / f"ferdist-{os.getuid()}-{content[:16]}" / path.name


def _check_own(folder: Path) -> None:
    """Everyone can foresee the name: what is there may be a link or belong to somebody else.

    Raises:
        DataError: if it is not a folder of this user's alone.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise DataError(
            f"{folder}: not a folder of yours that nobody else can enter (mode 0700): "
            "remove it, or name another data.stage"
        )


def _copy_file(origin: Path, file: BufferedReader, copy: Path, digest: str) -> None:
    if copy.is_file() and sha256(copy) == digest:
        return
    with atomic_path(copy) as temporary:
        file.seek(0)
        with temporary.open("wb") as target:
            shutil.copyfileobj(file, target, MIB)
        if sha256(temporary) != digest:
            raise DataError(
                f"{origin}: this, or its copy in {copy.parent}, is damaged: the copy's sha256 is wrong: "
                "check with `ferdist inspect`"
            )
