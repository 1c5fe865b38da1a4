"""A folder of files, or a zip of it, read the same way; and the images in it."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import sys
import unicodedata
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from ferdist.data.record import Images
from ferdist.errors import DataError, reason_of
from ferdist.io import MIB, open_untrusted, open_zip, read_untrusted, sha256

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
IMAGE_FORMATS: Final = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")
"""Pillow's names of the formats that are decoded, whatever a file's name says: each further decoder can be
attacked too, and that of EPS starts Ghostscript."""

MAX_PIXELS: Final = 50_000_000
"""Most pixels of an image."""
MAX_FILE_BYTES: Final = 64 * MIB
"""Largest file that is read from a folder or unpacked from a zip: above any image."""
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

T = TypeVar("T")
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
        """The bytes of one file. Raises DataError that names it if it cannot be read."""

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
            raise DataError(
                f"{self.path / name}: cannot be read ({error.strerror}); repair or remove it"
            ) from error
        self._digests[name] = hashlib.sha256(data).digest()
        return data

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
        info = self._members[name]
        if info.file_size > MAX_FILE_BYTES:
            raise DataError(
                f"{self.path}: member {name!r} is larger than {MAX_FILE_BYTES // MIB} MiB; remove it"
            )
        try:
            with self._zip.open(info) as file:
                return file.read(info.file_size)  # without a number, it unpacks whatever there is
        except BROKEN_ZIP as error:
            raise DataError(
                f"{self.path}: member {name!r} is broken ({error}); download or pack the zip again"
            ) from error

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


def sources_of(archive: Archive) -> dict[str, str]:
    """The archive's name and checksum, as ``FaceDataset.sources`` wants them."""
    return {archive.path.resolve().name: archive.checksum()}


def progress(items: Sequence[T], description: str) -> Iterable[T]:
    """Go through ``items``, with a progress bar on stderr where that is a terminal."""
    return track(
        items,
        description,
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def refuse_second(seen: dict[K, str], key: K, name: str, path: Path) -> None:
    """Note that the file ``name`` in ``path`` holds ``key``; refuse it where another file does.

    Raises:
        DataError: names both files.
    """
    first = seen.setdefault(key, name)
    if first != name:
        raise DataError(f"{path}: {name}: appears already as {first}; give one copy of the data")


def is_image(name: str) -> bool:
    """Whether the name ends like an image file's."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def open_image(archive: Archive, name: str) -> Image.Image:
    """Decode one image.

    Raises:
        DataError: if it cannot be decoded whole; names the file.
    """
    data = archive.read(name)
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
        if image.tile and image.tile[0][0] == "ppm_plain":  # Pillow takes a minute for 64 MiB of it
            raise ValueError("PPM with its pixels as text")
        image.load()
    except Exception as error:  # decoders raise whatever a hostile file makes them
        reason = reason_of(error)
        if isinstance(error, UnidentifiedImageError):
            reason = f"not one of {', '.join(IMAGE_FORMATS)}" if data else "empty file"
        raise DataError(
            f"{archive.path}: {name}: not a readable image ({reason}); replace or remove it"
        ) from error
    return image


def read_gray_images(archive: Archive, names: Sequence[str]) -> Images:
    """Decode gray images that are all of one size.

    Returns:
        uint8, (N, 1, H, W), 0-255, in the order of ``names``.

    Raises:
        DataError: if an image is not 8-bit gray or has another size than the first; names the file.
    """
    remedy = "replace it, or read colour or mixed sizes with `ferdist prepare folders`"
    images: list[Images] = []
    size = (0, 0)
    for name in progress(names, f"reading {archive.path.name}"):
        image = open_image(archive, name)
        if image.mode != "L":
            raise DataError(f"{archive.path}: {name}: not an 8-bit gray image (mode {image.mode}); {remedy}")
        size = size if images else image.size
        if image.size != size:
            raise DataError(
                f"{archive.path}: {name}: {image.width}x{image.height} pixels, "
                f"but {names[0]} has {size[0]}x{size[1]}; {remedy}"
            )
        images.append(np.asarray(image))
    return np.stack(images)[:, np.newaxis]


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
