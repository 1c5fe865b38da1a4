"""A folder of files, or a zip of it, read the same way."""

from __future__ import annotations

import hashlib
import os
import struct
import unicodedata
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final, TypeVar

from ferdist.errors import DataError
from ferdist.io import MIB, open_untrusted, open_zip, read_untrusted, sha256

MAX_FILE_BYTES: Final = 64 * MIB
"""Largest file that is read from a folder or unpacked from a zip: above any image."""
MAX_TEXT_BYTES: Final = 4096 * MIB
"""Largest file that is read line by line."""
MAX_LINE_BYTES: Final = 4 * MIB
"""Longest line of it: of an image of 1,000 x 1,000 pixels as text."""
MAX_TOTAL_BYTES: Final = 128 * 2**30
"""Largest zip, packed or unpacked."""
MAX_RATIO: Final = 200
"""Largest unpacked size over packed size of a member above 1 MiB: images hardly shrink, zip bombs do."""

BROKEN_ZIP: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    ValueError,
)
"""What `zipfile` raises at damage."""

_NOT_IN_A_LINE: Final = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, of bytes that are not text, and of line separators."""
_JUNK: Final = ("__MACOSX", "Thumbs.db", "desktop.ini")

K = TypeVar("K")


class Archive(ABC):
    """Files by their relative names, "/" between the parts.

    Hidden files and what file managers leave behind are passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self, *, plain: bool = True) -> list[str]:
        """Names of all files, sorted.

        Args:
            plain: refuse names that cannot stand in a line or a csv.

        Raises:
            DataError: names the first of them.
        """
        return _listed(self.path, self._entries()[1], plain)

    def folders(self) -> list[str]:
        """Names of all folders, empty ones included, sorted."""
        return _listed(self.path, self._entries()[0], plain=True)

    @abstractmethod
    def _entries(self) -> tuple[Collection[str], Collection[str]]:
        """Names of all folders and of all files."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one file; several threads may read. Raises DataError that names it if that fails."""

    @abstractmethod
    def lines(self, name: str) -> Iterator[bytes]:
        """The lines of one file of text, which may be large. Raises DataError as `read`."""

    @abstractmethod
    def checksum(self) -> str:
        """sha256 (hex) of a zip file; of a folder, one over the names and bytes of all files read so far."""


class FolderArchive(Archive):
    """A folder on disk; links are followed, and a folder that several of them lead to is read once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._digests: dict[str, bytes] = {}

    def _entries(self) -> tuple[list[str], list[str]]:
        found_folders: list[str] = []
        found_files: list[str] = []
        seen: set[str] = set()
        for folder, folders, files in os.walk(self.path, followlinks=True, onerror=_refuse_folder):
            real = os.path.realpath(folder)
            if real in seen:  # two links to it, or one that leads back
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            here = Path(folder).relative_to(self.path)
            found_folders += [(here / name).as_posix() for name in folders]
            found_files += [(here / name).as_posix() for name in files]
        return found_folders, found_files

    def read(self, name: str) -> bytes:
        try:
            data = read_untrusted(self.path / name, MAX_FILE_BYTES)
        except OSError as error:
            raise self._unreadable(name, error) from error
        self._digests[name] = hashlib.sha256(data).digest()
        return data

    def lines(self, name: str) -> Iterator[bytes]:
        digest = hashlib.sha256()
        try:
            with open_untrusted(self.path / name, MAX_TEXT_BYTES) as file:
                for line in _lines(file, f"{self.path}: {name}"):
                    digest.update(line)
                    yield line
        except OSError as error:
            raise self._unreadable(name, error) from error
        self._digests[name] = digest.digest()

    def _unreadable(self, name: str, error: OSError) -> DataError:
        return DataError(f"{self.path / name}: cannot be read ({error.strerror}); repair or remove it")

    def checksum(self) -> str:
        whole = hashlib.sha256()
        for name, digest in sorted(self._digests.items()):
            whole.update(os.fsencode(name) + b"\0" + digest)
        return whole.hexdigest()


class ZipArchive(Archive):
    """A zip file, read member by member; nothing is unpacked to disk.

    Raises:
        DataError: if the zip is broken, or a member is encrypted, absurdly large, listed twice, or has a
            name that leads out of the archive (absolute, or with ``..``).
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._zip = open_zip(open_untrusted(path, MAX_TOTAL_BYTES))
        except BROKEN_ZIP as error:
            raise DataError(f"{path}: broken zip file ({error}); download or pack it again") from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._folders: set[str] = set()
        for info in self._zip.infolist():
            name = info.filename.replace("\\", "/")  # some packers on Windows write backslashes
            self._check(name, info)
            if name.endswith("/"):
                self._folders.add(name.rstrip("/"))
            else:
                self._members[name] = info
        total = sum(info.file_size for info in self._members.values())
        if total > MAX_TOTAL_BYTES:
            raise DataError(f"{path}: unpacks to {total / 2**30:.0f} GiB; unpack it and give the folder")

    def _check(self, name: str, info: zipfile.ZipInfo) -> None:
        place = f"{self.path}: member {info.filename!r}"
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or (parts and parts[0].endswith(":")):
            raise DataError(
                f"{place} leads out of the archive; do not trust this zip, get it from its source"
            )
        if name in self._members:
            raise DataError(f"{place} appears twice; pack it again")
        if info.flag_bits & 0x1:
            raise DataError(f"{place} is encrypted; unpack the zip with its password and give the folder")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{place} is packed by another method than deflate; pack it again")
        if info.file_size > max(MIB, MAX_RATIO * info.compress_size):
            raise DataError(
                f"{place} unpacks from {info.compress_size:,} to {info.file_size:,} bytes, too many; "
                "do not trust this zip, get it from its source"
            )

    def _entries(self) -> tuple[set[str], Collection[str]]:
        above = {str(parent) for name in self._members for parent in PurePosixPath(name).parents}
        return (above | self._folders) - {"."}, self._members

    def read(self, name: str) -> bytes:
        info = self._member(name, MAX_FILE_BYTES)
        try:
            with self._zip.open(info) as file:
                return file.read(info.file_size)  # without a number, it unpacks whatever there is
        except BROKEN_ZIP as error:
            raise self._broken(name, error) from error

    def lines(self, name: str) -> Iterator[bytes]:
        info = self._member(name, MAX_TEXT_BYTES)
        try:
            with self._zip.open(info) as file:
                yield from _lines(file, f"{self.path}: {name}")
        except BROKEN_ZIP as error:
            raise self._broken(name, error) from error

    def _member(self, name: str, limit: int) -> zipfile.ZipInfo:
        info = self._members[name]
        if info.file_size > limit:
            raise DataError(f"{self.path}: member {name!r} is larger than {limit // MIB} MiB; remove it")
        return info

    def _broken(self, name: str, error: BaseException) -> DataError:
        return DataError(f"{self.path}: member {name!r} is broken ({error}); download or pack the zip again")

    def checksum(self) -> str:
        return sha256(self.path)


def open_archive(path: Path) -> Archive:
    """Open a folder or a zip file.

    Raises:
        DataError: if there is nothing at ``path`` or it is neither a folder nor a zip file.
    """
    if path.is_dir():
        return FolderArchive(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the path")
    try:
        with open_untrusted(path, MAX_TOTAL_BYTES) as file:
            zipped = path.suffix.lower() == ".zip" or zipfile.is_zipfile(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a folder or a zip file") from error
    if zipped:
        return ZipArchive(path)
    raise DataError(f"{path}: neither a folder nor a zip file; give one of these")


def sources_of(archive: Archive) -> dict[str, Callable[[], str]]:
    """The archive's name and checksum, as ``FaceDataset.sources`` wants them."""
    return {archive.path.resolve().name: archive.checksum}


def refuse_second(seen: dict[K, str], key: K, name: str, path: Path) -> None:
    """Note that the file ``name`` in ``path`` holds ``key``; refuse it where another file does.

    Raises:
        DataError: names both files.
    """
    first = seen.setdefault(key, name)
    if first != name:
        raise DataError(f"{path}: {name}: appears already as {first}; give one copy of the data")


def _lines(file: IO[bytes], place: str) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES:
            raise DataError(f"{place}: a line longer than {MAX_LINE_BYTES // MIB} MiB; get the file again")
        yield line


def _listed(path: Path, names: Iterable[str], plain: bool) -> list[str]:
    """Sorted names without junk."""
    listed = []
    for name in sorted(names):
        if any(part.startswith(".") or part in _JUNK for part in name.split("/")):
            continue
        if plain and any(unicodedata.category(character) in _NOT_IN_A_LINE for character in name):
            raise DataError(f"{path}: {name!r} has control characters or broken text in its name; rename it")
        listed.append(name)
    return listed


def _refuse_folder(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be listed ({error.strerror}); check its permissions"
    ) from error
