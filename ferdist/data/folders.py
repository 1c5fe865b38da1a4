"""Any folder of class folders, or a zip of it: your own data."""

from __future__ import annotations

import itertools
import posixpath
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from ferdist.data.archive import Archive, ZipArchive, open_archive, sources_of
from ferdist.data.images import passed_over, split_images, squares
from ferdist.data.parallel import in_order, progress
from ferdist.data.record import NAME, NAME_RULE, Decoded, FaceDataset
from ferdist.errors import DataError, tell

SPLIT_FOLDERS: Final = {
    **{"train": 0, "training": 0},
    **{"val": 1, "valid": 1, "validation": 1},
    **{"test": 2, "testing": 2},
}
"""Names, in any case, of split folders and their split codes."""


class _Member(NamedTuple):
    name: str
    split: int
    class_name: str


def read_folders(source: Path, name: str, size: int = 48, subject_regex: str | None = None) -> FaceDataset:
    """Read images from ``<class>/**/<file>`` or ``<split>/<class>/**/<file>``.

    Classes are the names of the class folders in sorted order (numbers stay names). In a zip, folders
    around all of this are passed over. Images may be of any size, mode and depth:

    - they are turned upright by their EXIF orientation and resized, with antialiasing, to a square;
    - 16-bit gray is scaled to 8 bits, transparency is put on black, everything else becomes RGB;
    - if all three channels are equal in every image, the data set is gray (C = 1), otherwise RGB (C = 3).

    Args:
        source: a folder or zip.
        name: the data set's name, the stem of its beton.
        size: side of the square images in pixels.
        subject_regex: searched in each file's path relative to ``source``; its first group is the subject.

    Returns:
        Images (N, 1 or 3, size, size); split is -1 without split folders, subject -1 without a regex.

    Raises:
        DataError: names the file or folder, what is wrong and what to do.
    """
    if not NAME.fullmatch(name):
        raise DataError(f"name {name!r}: it becomes a file name; {NAME_RULE}")
    archive = open_archive(source)
    members = _find_members(archive)
    classes = tuple(sorted({member.class_name for member in members}))
    spellings = {one.casefold(): one for one in classes}
    if odd := next((one for one in classes if spellings[one.casefold()] != one), None):
        raise DataError(
            f"{source}: class folders {odd} and {spellings[odd.casefold()]} differ only in case; "
            "give a class one name"
        )
    learned = {member.class_name for member in members if member.split == SPLIT_FOLDERS["train"]}
    if learned and (unlearned := [one for one in classes if one not in learned]):
        raise DataError(
            f"{source}: class {unlearned[0]} has no image in train; give a class the same name in every split"
        )
    if len(classes) == 1:
        raise DataError(
            f"{source}: only one class, {classes[0]}; give the folder that holds the class (or split) folders"
        )
    names = [member.name for member in members]
    subjects = _subjects(source, names, subject_regex)
    return FaceDataset.of(
        name,
        _gray_or_rgb(archive, names, size),
        [classes.index(member.class_name) for member in members],
        classes,
        names,
        split=[member.split for member in members],
        subjects=subjects,
        sources=sources_of(archive),
    )


def _find_members(archive: Archive) -> list[_Member]:
    path = archive.path
    names, others = split_images(archive.names())
    if not names:
        raise DataError(f"{path}: no images in it; give a folder with one folder of images per class")
    if others:
        tell(f"ferdist: {path}: {passed_over(others)}")
    root = _root(names) if isinstance(archive, ZipArchive) else ()
    top = {_below(root, name)[0] for name in names}
    splits = {folder for folder in top if folder.lower() in SPLIT_FOLDERS}
    if splits and top != splits:
        raise DataError(
            f"{path}: {min(top - splits)!r} lies beside the split folder {min(splits)!r}; "
            "put the class folders into split folders, or use no split folders"
        )
    depth = 2 if splits else 1
    members: list[_Member] = []
    for name in names:
        parts = _below(root, name)
        if len(parts) <= depth:
            raise DataError(f"{path}: {name}: not in a class folder; move it into one or remove it")
        split = SPLIT_FOLDERS[parts[0].lower()] if splits else -1
        # macOS decomposes the accents of file names
        members.append(_Member(name, split, unicodedata.normalize("NFC", parts[depth - 1])))
    filled = {_below(root, name)[:depth] for name in names}
    for folder in archive.folders():
        parts = _below(root, folder)
        if len(parts) == depth and parts not in filled:
            raise DataError(f"{path}: class folder {folder} holds no image; fill or remove it")
    return members


def _root(names: Sequence[str]) -> tuple[str, ...]:
    """The folders around everything, down to the split or class folders."""
    shared = posixpath.commonpath([PurePosixPath(name).parent.parent for name in names])
    return tuple(
        itertools.takewhile(lambda part: part.lower() not in SPLIT_FOLDERS, PurePosixPath(shared).parts)
    )


def _below(root: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Parts of a path below ``root``; none if it does not lie there."""
    parts = tuple(name.split("/"))
    return parts[len(root) :] if parts[: len(root)] == root else ()


def _subjects(source: Path, names: Sequence[str], regex: str | None) -> list[str]:
    if regex is None:
        return []
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise DataError(f"subject regex {regex!r}: {error}; correct it") from error
    if pattern.groups == 0:
        raise DataError(f"subject regex {regex!r}: no group in it; put the subject's part in parentheses")
    found: list[str] = []
    for name in names:
        match = pattern.search(name)
        if match is None or not match[1]:
            raise DataError(
                f"{source}: {name}: subject regex {regex!r} finds no subject in this path; correct either"
            )
        found.append(match[1])
    return found


def _gray_or_rgb(archive: Archive, names: Sequence[str], size: int) -> Decoded:
    """Gray where all channels are equal in every image; a set in colour shows that in its first ones."""
    rgb = squares(archive, names, size)
    looked_at = in_order(
        rgb.decode, progress(range(len(names)), f"looking for colour in {archive.path.name}")
    )
    if not all((image == image[:1]).all() for image in looked_at):
        return rgb
    return replace(rgb, shape=(len(names), 1, size, size), decode=lambda number: rgb.decode(number)[:1])
