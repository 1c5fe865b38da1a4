"""FER2013 (Goodfellow et al. 2013, ICML challenges in representation learning) in each published layout."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ferdist.data.archive import Archive, is_image, open_archive, read_gray_images, sources_of
from ferdist.data.record import (
    CKPLUS8_CLASSES,
    FER2013_CLASSES,
    FaceDataset,
    Images,
    Integers,
    no_values,
)
from ferdist.errors import DataError

USAGE_SPLIT: Final = {"Training": 0, "PublicTest": 1, "PrivateTest": 2}
"""The data set's own name of each split code."""

CKEXTENDED_ROWS: Final = 920
"""Rows of ckextended.csv: an image of each of the 327 labelled sequences of CK+, and 593 neutral ones."""

_SPLIT_OF_FIELD: Final = {usage.encode(): split for usage, split in USAGE_SPLIT.items()}
_FOLDER_OF_USAGE: Final = {"Training": "train", "PublicTest": "test", "PrivateTest": "test"}
_IMAGE_NAME: Final = re.compile(r"(Training|PublicTest|PrivateTest)_\d+\.(?:jpg|png)")
_LONGEST_HEADER: Final = 4096
_NO_SUBJECTS: Final = (
    "CK+ as ckextended.csv does not say who is in an image, so it cannot give subject-independent folds, and "
    "its own split may share subjects; give CK+48 or the original tree to `ferdist prepare ckplus`, "
    "or add --ckextended to read it with its own split"
)

log = logging.getLogger(__name__)


def read_fer2013(source: Path, *, allow_extra: bool = False) -> FaceDataset:
    """Read FER2013 from ``fer2013.csv``, ``icml_face_data.csv``, or the image folders or a zip of them.

    Training is ``train``, PublicTest ``val`` and PrivateTest ``test``. A csv keeps its row order, and its
    source ids are ``line 2``, ``line 3``, ...; image folders come in the order of the file names.

    A csv is taken for ``ckextended.csv``, and refused, if it has an emotion 7 (contempt, which FER2013 does
    not have) or 920 rows; ``read_ckextended`` reads that file.

    Args:
        source: the csv, the folder that holds ``train`` and ``test`` (at any depth), or a zip of it.
        allow_extra: leave out files that are not FER2013's own, with a warning, instead of refusing them.

    Returns:
        Gray images (N, 1, S, S); S is 48 in the published data. There are no subjects.

    Raises:
        DataError: names the file and the line or member, what is wrong and what to do.
    """
    if source.is_file() and source.suffix.lower() != ".zip" and not _starts_like_zip(source):
        dataset = _read_csv(source, "fer2013", FER2013_CLASSES)
        if len(dataset) == CKEXTENDED_ROWS:
            raise DataError(f"{source}: {CKEXTENDED_ROWS} rows, not FER2013's: {_NO_SUBJECTS}")
        return dataset
    return _read_folders(open_archive(source), allow_extra)


def read_ckextended(source: Path) -> FaceDataset:
    """Read ``ckextended.csv``, CK+ in the layout of ``fer2013.csv``, as it is.

    Its Training is ``train``, PublicTest ``val`` and PrivateTest ``test``. Which of these share people nobody
    can tell: it names neither subjects nor sequences.

    Args:
        source: the csv.

    Returns:
        Gray images (N, 1, S, S) in CKPLUS8_CLASSES, without subjects, so ``assign_folds`` refuses them.

    Raises:
        DataError: names the file and the line, what is wrong and what to do.
    """
    if not source.is_file():
        raise DataError(f"{source}: no such file; give ckextended.csv")
    return _read_csv(source, "ckextended", CKPLUS8_CLASSES)


def _starts_like_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _dataset(
    images: Images,
    labels: Integers,
    split: Integers,
    source_id: Sequence[str],
    sources: dict[str, str],
    name: str = "fer2013",
    classes: tuple[str, ...] = FER2013_CLASSES,
) -> FaceDataset:
    none = no_values(len(images))
    return FaceDataset(
        name=name,
        images=images,
        labels=labels,
        split=split,
        subject=none,
        sequence=none,
        fold=none,
        source_id=source_id,
        classes=classes,
        sources=sources,
    )


# The csv files


class _Columns(NamedTuple):
    emotion: int
    pixels: int
    usage: int
    total: int


class _Row(NamedTuple):
    label: int
    split: int
    pixels: npt.NDArray[np.uint8]


def _read_csv(path: Path, name: str, classes: tuple[str, ...]) -> FaceDataset:
    label_of_field = {str(label).encode(): label for label in range(len(classes))}
    digest = hashlib.sha256()
    pixels = bytearray()
    labels: list[int] = []
    splits: list[int] = []
    source_id: list[str] = []
    pixel_count = 0
    with path.open("rb") as file, warnings.catch_warnings():
        # numpy before 2.4 only warns where np.fromstring stops at what is no number
        warnings.simplefilter("error", DeprecationWarning)
        columns, header = _read_header(path, file)
        digest.update(header)
        for number, line in enumerate(file, start=2):
            digest.update(line)
            if not line.strip():
                continue
            row = _parse_fast(line, columns, label_of_field) or _parse_carefully(
                line, columns, len(classes), f"{path}: line {number}"
            )
            if not labels:
                pixel_count = len(row.pixels)
                if math.isqrt(pixel_count) ** 2 != pixel_count:
                    raise DataError(
                        f"{path}: line {number}: {pixel_count} pixels make no square image; "
                        "get the original file again"
                    )
            if len(row.pixels) != pixel_count:
                raise DataError(
                    f"{path}: line {number}: {len(row.pixels)} pixels instead of {pixel_count}; "
                    "the row is damaged or cut off, get the original file again"
                )
            pixels += row.pixels.data
            labels.append(row.label)
            splits.append(row.split)
            source_id.append(f"line {number}")
    if not labels:
        raise DataError(f"{path}: a header without rows; get the original file again")
    side = math.isqrt(pixel_count)
    return _dataset(
        np.frombuffer(pixels, dtype=np.uint8).reshape(len(labels), 1, side, side),
        np.array(labels, dtype=np.int64),
        np.array(splits, dtype=np.int64),
        source_id,
        {path.name: digest.hexdigest()},
        name,
        classes,
    )


def _read_header(path: Path, file: BinaryIO) -> tuple[_Columns, bytes]:
    """Find the columns by name, in any order; icml_face_data.csv puts blanks before the names."""
    line = file.readline(_LONGEST_HEADER)
    if not line:
        raise DataError(f"{path}: empty file; download it again")
    try:
        names = [name.strip().strip('"') for name in line.decode("utf-8-sig").split(",")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file; give fer2013.csv, the image folders or a zip") from error
    missing = [name for name in ("emotion", "pixels", "Usage") if name not in names]
    if missing:
        has = line[:60].decode("utf-8-sig", "replace").strip()
        raise DataError(
            f"{path}: line 1: column {' and '.join(missing)} missing (the line starts with {has!r}); "
            "the header must be emotion,pixels,Usage"
        )
    return _Columns(names.index("emotion"), names.index("pixels"), names.index("Usage"), len(names)), line


def _parse_fast(line: bytes, columns: _Columns, label_of_field: dict[bytes, int]) -> _Row | None:
    """Read a row as it is published; None for anything else, wrong or only unusual."""
    fields = line.split(b",")
    if len(fields) != columns.total:
        return None
    try:
        values = np.fromstring(fields[columns.pixels], dtype=np.int64, sep=" ")
        if values.size < 2 or values.max() > 255 or values.min() < 0:  # a blank field reads as one zero
            return None
        return _Row(
            label_of_field[fields[columns.emotion]],
            _SPLIT_OF_FIELD[fields[columns.usage].strip()],
            values.astype(np.uint8),
        )
    except (KeyError, ValueError, DeprecationWarning):
        return None


def _parse_carefully(line: bytes, columns: _Columns, classes: int, place: str) -> _Row:
    """Read a row with quotes or blanks around its fields, or say what is wrong in it."""
    try:
        fields = [field.strip().strip('"').strip() for field in line.decode().split(",")]
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not text; the file is damaged, get the original file again") from error
    if len(fields) != columns.total:
        raise DataError(
            f"{place}: {len(fields)} fields instead of {columns.total}; "
            "the row is damaged or cut off, get the original file again"
        )
    emotion, usage, texts = fields[columns.emotion], fields[columns.usage], fields[columns.pixels].split()
    if emotion not in map(str, range(classes)):
        if emotion == str(CKPLUS8_CLASSES.index("contempt")):
            raise DataError(f"{place}: emotion {emotion}, which FER2013 does not have: {_NO_SUBJECTS}")
        raise DataError(
            f"{place}: emotion {emotion!r} is not a whole number from 0 to {classes - 1}; "
            "correct or remove the row"
        )
    if usage not in USAGE_SPLIT:
        raise DataError(
            f"{place}: Usage {usage!r} is none of {', '.join(USAGE_SPLIT)}; correct or remove the row"
        )
    if not texts:
        raise DataError(f"{place}: no pixels; correct or remove the row")
    for position, text in enumerate(texts, start=1):
        if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 255):
            raise DataError(
                f"{place}: pixel {position} is {text[:20]!r}, not a whole number from 0 to 255; "
                "correct or remove the row"
            )
    return _Row(int(emotion), USAGE_SPLIT[usage], np.array([int(text) for text in texts], dtype=np.uint8))


# The image folders


class _Member(NamedTuple):
    name: str
    label: int
    usage: str


def _read_folders(archive: Archive, allow_extra: bool) -> FaceDataset:
    members, extra = _sort_out(archive.names())
    if not members:
        raise DataError(
            f"{archive.path}: no train/<class>/Training_<id>.jpg or test/<class>/PublicTest_<id>.jpg in it, "
            f"<class> one of {', '.join(FER2013_CLASSES)}; give the folder that holds train and test, "
            "or the path of fer2013.csv itself"
        )
    _refuse_misplaced(archive.path, members)
    if extra:
        places = Counter(name.rpartition("/")[0] for name in extra).most_common(3)
        where = ", ".join(f"{count} in {folder or 'the top folder'}" for folder, count in places)
        found = f"{archive.path}: {len(extra)} files that are not FER2013's own ({where}; e.g. {extra[0]})"
        if not allow_extra:
            raise DataError(f"{found}; get an original copy, or leave them out with --allow-extra")
        log.warning("%s are left out", found)
    names = [member.name for member in members]
    return _dataset(
        read_gray_images(archive, names),
        np.array([member.label for member in members], dtype=np.int64),
        np.array([USAGE_SPLIT[member.usage] for member in members], dtype=np.int64),
        names,
        sources_of(archive),
    )


def _sort_out(names: Sequence[str]) -> tuple[list[_Member], list[str]]:
    """Tell FER2013's own files from others that are images or lie in a class folder."""
    members: list[_Member] = []
    extra: list[str] = []
    for name in names:
        parts = name.split("/")
        in_class = len(parts) >= 2 and parts[-2] in FER2013_CLASSES
        in_split = len(parts) >= 3 and parts[-3] in _FOLDER_OF_USAGE.values()
        match = _IMAGE_NAME.fullmatch(parts[-1])
        if in_class and in_split and match:
            members.append(_Member(name, FER2013_CLASSES.index(parts[-2]), match[1]))
        elif in_class or is_image(name):
            extra.append(name)
    return members, extra


def _refuse_misplaced(path: Path, members: Sequence[_Member]) -> None:
    """An image in the other split's folder, or twice, shows a copy that was changed or unpacked twice."""
    seen: dict[tuple[str, ...], str] = {}
    for member in members:
        parts = member.name.split("/")
        expected = _FOLDER_OF_USAGE[member.usage]
        if parts[-3] != expected:
            raise DataError(
                f"{path}: {member.name} lies in {parts[-3]}, but {member.usage} images belong in {expected}; "
                "get an original copy"
            )
        first = seen.setdefault(tuple(parts[-3:]), member.name)
        if first != member.name:
            raise DataError(f"{path}: {first} is there again as {member.name}; give one copy of the data")
