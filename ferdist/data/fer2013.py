"""FER2013 (Goodfellow et al. 2013, ICML challenges in representation learning) in every known layout."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ferdist.data.archive import (
    MAX_LINE_BYTES,
    MAX_TEXT_BYTES,
    Archive,
    open_archive,
    refuse_second,
    sources_of,
)
from ferdist.data.images import is_image, read_gray_images
from ferdist.data.record import CKPLUS8_CLASSES, FER2013_CLASSES, FaceDataset, Images
from ferdist.errors import DataError
from ferdist.io import MIB, open_untrusted, sha256
from ferdist.table import count

USAGE_SPLIT: Final = {"Training": 0, "PublicTest": 1, "PrivateTest": 2}
"""The data set's own name of each split code."""

CKEXTENDED_ROWS: Final = 920
"""Rows of ckextended.csv: an image of each of the 327 labelled sequences of CK+, and 593 neutral ones."""


_FOLDER_OF_USAGE: Final = {"Training": "train", "PublicTest": "test", "PrivateTest": "test"}
_IMAGE_NAME: Final = re.compile(r"(Training|PublicTest|PrivateTest)_\d+\.(?:jpg|png)")
_LONGEST_HEADER: Final = 4096
_DIGITS: Final = re.compile(r"[0-9\s]+")
_NO_SUBJECTS: Final = (
    "ckextended.csv does not say who is in an image, so it cannot give subject-independent folds, and "
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

    Its Training is ``train``, PublicTest ``val`` and PrivateTest ``test``. They may share people: the file
    names neither subjects nor sequences.

    Returns:
        Gray images (N, 1, S, S) in CKPLUS8_CLASSES, without subjects, so ``assign_folds`` refuses them.

    Raises:
        DataError: names the file and the line, what is wrong and what to do.
    """
    if not source.is_file():
        raise DataError(f"{source}: no such file; give ckextended.csv")
    return _read_csv(source, "ckextended", CKPLUS8_CLASSES)


def _starts_like_zip(path: Path) -> bool:
    with _opened(path) as file:
        return file.read(4) == b"PK\x03\x04"


# The csv files


def _opened(path: Path) -> BufferedReader:
    try:
        return open_untrusted(path, MAX_TEXT_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give fer2013.csv") from error


def _read_csv(path: Path, name: str, classes: tuple[str, ...]) -> FaceDataset:
    pixels = bytearray()
    labels: list[int] = []
    splits: list[int] = []
    source_id: list[str] = []
    side = 0
    with _opened(path) as file:
        columns = _read_header(path, file)
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES), b""), start=2):
            if not line.strip():
                continue
            place = f"{path}: line {number}"
            if len(line) == MAX_LINE_BYTES:
                raise DataError(
                    f"{place}: longer than {MAX_LINE_BYTES // MIB} MiB; get the original file again"
                )
            label, split, image = _parse_row(line, columns, len(classes), place)
            if not labels:
                side = math.isqrt(len(image))
                if side**2 != len(image):
                    raise DataError(
                        f"{place}: {len(image)} pixels are not a square image; get the original file again"
                    )
            if len(image) != side**2:
                raise DataError(
                    f"{place}: {len(image)} pixels instead of {side**2}; "
                    "the row is damaged or cut off, get the original file again"
                )
            pixels += image.data
            labels.append(label)
            splits.append(split)
            source_id.append(f"line {number}")
    if not labels:
        raise DataError(f"{path}: a header without rows; get the original file again")
    images: Images = np.frombuffer(pixels, dtype=np.uint8).reshape(len(labels), 1, side, side)
    return FaceDataset.of(
        name, images, labels, classes, source_id, split=splits, sources={path.name: sha256(path)}
    )


def _read_header(path: Path, file: BufferedReader) -> list[str]:
    """Names of the columns, in any order; icml_face_data.csv puts blanks before them."""
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
    return names


def _parse_row(
    line: bytes, columns: list[str], classes: int, place: str
) -> tuple[int, int, npt.NDArray[np.uint8]]:
    """Label, split and pixels of a row; there may be quotes or blanks around its fields."""
    try:
        fields = [field.strip().strip('"').strip() for field in line.decode().split(",")]
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not text; the file is damaged, get the original file again") from error
    if len(fields) != len(columns):
        raise DataError(
            f"{place}: {len(fields)} fields instead of {len(columns)}; "
            "the row is damaged or cut off, get the original file again"
        )
    row = dict(zip(columns, fields, strict=True))
    emotion, usage = row["emotion"], row["Usage"]
    if emotion not in map(str, range(classes)):
        if emotion == str(CKPLUS8_CLASSES.index("contempt")):
            raise DataError(f"{place}: emotion {emotion}, which FER2013 does not have: {_NO_SUBJECTS}")
        fault = f"emotion {emotion!r} is not an integer from 0 to {classes - 1}"
        raise DataError(f"{place}: {fault}; correct or remove the row")
    if usage not in USAGE_SPLIT:
        raise DataError(
            f"{place}: Usage {usage!r} is not one of {', '.join(USAGE_SPLIT)}; correct or remove the row"
        )
    return int(emotion), USAGE_SPLIT[usage], _parse_pixels(row["pixels"], place)


def _parse_pixels(text: str, place: str) -> npt.NDArray[np.uint8]:
    if _DIGITS.fullmatch(text):
        values = np.fromstring(text, dtype=np.int64, sep=" ")
        if values.max() <= 255:
            return values.astype(np.uint8)
    for position, value in enumerate(text.split(), start=1):
        if not _DIGITS.fullmatch(value) or len(value) > 3 or int(value) > 255:
            raise DataError(
                f"{place}: pixel {position} is {value[:20]!r}, not an integer from 0 to 255; "
                "correct or remove the row"
            )
    raise DataError(f"{place}: no pixels; correct or remove the row")


# The image folders


def _read_folders(archive: Archive, allow_extra: bool) -> FaceDataset:
    names: list[str] = []
    labels: list[int] = []
    splits: list[int] = []
    extra: list[str] = []  # images and other files in class folders that are not FER2013's own
    seen: dict[tuple[str, ...], str] = {}
    for name in archive.names():
        split_folder, class_folder, file = ["", "", *name.split("/")][-3:]
        match = _IMAGE_NAME.fullmatch(file)
        if class_folder in FER2013_CLASSES and split_folder in _FOLDER_OF_USAGE.values() and match:
            expected = _FOLDER_OF_USAGE[match[1]]
            if split_folder != expected:
                raise DataError(
                    f"{archive.path}: {name} lies in {split_folder}, but {match[1]} images belong in "
                    f"{expected}; get an original copy"
                )
            refuse_second(seen, (split_folder, class_folder, file), name, archive.path)
            names.append(name)
            labels.append(FER2013_CLASSES.index(class_folder))
            splits.append(USAGE_SPLIT[match[1]])
        elif class_folder in FER2013_CLASSES or is_image(name):
            extra.append(name)
    if not names:
        raise DataError(
            f"{archive.path}: no train/<class>/Training_<id>.jpg or test/<class>/PublicTest_<id>.jpg in it, "
            f"<class> one of {', '.join(FER2013_CLASSES)}; give the folder that holds train and test, "
            "or the path of fer2013.csv itself"
        )
    if extra:
        places = Counter(name.rpartition("/")[0] for name in extra).most_common(3)
        where = ", ".join(f"{files} in {folder or 'the top folder'}" for folder, files in places)
        found = (
            f"{archive.path}: {count(len(extra), 'file')} not of FER2013 itself ({where}; e.g. {extra[0]})"
        )
        if not allow_extra:
            raise DataError(f"{found}; get an original copy, or leave them out with --allow-extra")
        log.warning("%s are left out", found)
    images = read_gray_images(archive, names)
    return FaceDataset.of(
        "fer2013", images, labels, FER2013_CLASSES, names, split=splits, sources=sources_of(archive)
    )
