"""RAF-DB (Li, Deng and Du 2017, CVPR), its basic part, as it is unpacked or in the re-sorted copy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ferdist.data.archive import Archive, open_archive, refuse_second, sources_of
from ferdist.data.images import squares
from ferdist.data.record import FER2013_CLASSES, SPLITS, FaceDataset
from ferdist.errors import DataError

RAFDB_CLASSES: Final = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")
"""Our names of RAF-DB's numbers 1 to 7."""

LABEL_LIST: Final = "list_patition_label.txt"
"""The list of names and numbers, as its authors spell it."""

_NUMBERS: Final = tuple(str(number) for number in range(1, len(RAFDB_CLASSES) + 1))
_IMAGE: Final = re.compile(r"((train|test)_\d+)_aligned\.(?:jpg|png)")
_LINE: Final = re.compile(r"((?:train|test)_\d+)\.jpg\s+(\S+)")


def read_rafdb(source: Path, size: int = 100) -> FaceDataset:
    """Read the aligned images of RAF-DB's basic part, with their seven single labels.

    Either ``basic/EmoLabel/list_patition_label.txt`` (a line is ``train_00001.jpg 5``) with
    ``basic/Image/aligned/train_00001_aligned.jpg``, or the re-sorted copy
    ``DATASET/train/5/train_00001_aligned.jpg``; the folders around them do not matter. Train comes before
    test, each in the order of the names, so both layouts give the same arrays.

    Args:
        source: a folder or zip.
        size: side of the square images in pixels; RAF-DB's are 100 x 100.

    Returns:
        RGB images (N, 3, size, size) in FER2013_CLASSES, in the splits train and test. There are no subjects.

    Raises:
        DataError: names the file and the line, what is wrong and what to do.
    """
    archive = open_archive(source)
    images: dict[str, str] = {}
    lists: list[str] = []
    for name in archive.names():
        *folders, file = name.split("/")
        if "compound" in folders:  # its other part, whose list has the same name
            continue
        if file == LABEL_LIST:
            lists.append(name)
        elif match := _IMAGE.fullmatch(file):
            refuse_second(images, match[1], name, archive.path)
    if not images:
        raise DataError(
            f"{source}: no image of RAF-DB (train_00001_aligned.jpg) in it; give the folder that holds "
            "EmoLabel and Image, or DATASET, or a zip of it"
        )
    if len(lists) > 1:
        raise DataError(f"{source}: two lists of labels ({lists[0]} and {lists[1]}); remove one")
    numbers = _listed(archive, lists[0], images) if lists else _sorted(archive, images)
    stems = sorted(numbers, key=lambda stem: (stem.startswith("test"), stem))
    names = [images[stem] for stem in stems]
    return FaceDataset.of(
        "rafdb",
        squares(archive, names, size),
        [FER2013_CLASSES.index(RAFDB_CLASSES[_NUMBERS.index(numbers[stem])]) for stem in stems],
        FER2013_CLASSES,
        names,
        split=[SPLITS.index(stem.partition("_")[0]) for stem in stems],
        sources=sources_of(archive),
    )


def _listed(archive: Archive, name: str, images: Mapping[str, str]) -> dict[str, str]:
    """The number of each image by the list."""
    numbers: dict[str, str] = {}
    for row, line in enumerate(archive.lines(name), start=1):
        text = line.decode("ascii", "replace").strip()
        if not text:
            continue
        place = f"{archive.path}: {name}: line {row}"
        match = _LINE.fullmatch(text)
        if match is None:
            raise DataError(
                f"{place}: {text[:40]!r} is not like 'train_00001.jpg 5'; get the original list again"
            )
        if match[2] not in _NUMBERS:
            raise DataError(
                f"{place}: label {match[2][:20]!r} is not from 1 to 7; get the original list again"
            )
        if match[1] in numbers:
            raise DataError(f"{place}: {match[1]}.jpg is listed twice; get the original list again")
        numbers[match[1]] = match[2]
    for found, wanted, fault in (
        (images, numbers, f"images of {name} are absent"),
        (numbers, images, f"images are not in {name}"),
    ):
        missing = [stem for stem in wanted if stem not in found]
        if missing:
            raise DataError(
                f"{archive.path}: {len(missing)} of {len(wanted)} {fault}, such as {missing[0]}_aligned.jpg; "
                "get the images and the list from one source"
            )
    return numbers


def _sorted(archive: Archive, images: Mapping[str, str]) -> dict[str, str]:
    """The number of each image by its folder."""
    numbers: dict[str, str] = {}
    for stem, name in images.items():
        split, number, _ = ("", "", *name.split("/"))[-3:]
        if number not in _NUMBERS or split not in SPLITS:
            raise DataError(
                f"{archive.path}: there is no {LABEL_LIST}, and {name} lies in no folder train/1 to test/7 "
                "that tells its label; add the list"
            )
        if split != stem.partition("_")[0]:
            raise DataError(f"{archive.path}: {name} lies in {split}; get an original copy")
        numbers[stem] = number
    return numbers
