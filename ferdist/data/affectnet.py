"""AffectNet (Mollahosseini, Hasani, Mahoor 2017, IEEE Transactions on Affective Computing), both releases."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from ferdist.data.archive import Archive, open_archive, refuse_second, sources_of
from ferdist.data.images import Box, squares
from ferdist.data.parallel import in_order, progress
from ferdist.data.record import CKPLUS8_CLASSES, FER2013_CLASSES, SPLITS, FaceDataset
from ferdist.errors import DataError, reason_of, tell

AFFECTNET_CLASSES: Final = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt")
"""Our names of AffectNet's numbers from 0."""
OTHERS: Final = ("none", "uncertain", "no face")
"""What its numbers 8, 9 and 10 stand for; these images are left out."""

CSV_SPLITS: Final = {"training.csv": "train", "validation.csv": "test"}
FOLDER_SPLITS: Final = {"train": "train", "val": "test"}
"""Our splits. AffectNet's test set is not public, so all published scores are on its validation set: it is
``test`` here, which nothing is chosen on."""

_COLUMNS: Final = ("subDirectory_filePath", "expression")
_BOX: Final = ("face_x", "face_y", "face_width", "face_height")
_HEADER: Final = (_COLUMNS[0], *_BOX, "facial_landmarks", _COLUMNS[1], "valence", "arousal")
"""Of a csv without one: in copies of the release, validation.csv begins with its first image."""
_NO_BOX: Final = ("", "NULL")
_NUMBERS: Final = tuple(str(number) for number in range(len(AFFECTNET_CLASSES) + len(OTHERS)))
_NUMBERED: Final = re.compile(r"(?:.*/)?(train|val)_set/(images/(\d+)\.jpg|annotations/(\d+)_exp\.npy)")
_MAX_NPY_BYTES: Final = 1024
_AUTOMATIC: Final = "Automatically_Annotated_Images"


class _Sample(NamedTuple):
    name: str
    number: int
    split: str
    box: Box | None


def read_affectnet(source: Path, classes: int = 8, size: int = 112) -> FaceDataset:
    """Read AffectNet's manually annotated images in either of its releases.

    - ``training.csv`` and ``validation.csv`` with ``Manually_Annotated_Images/1/<hash>.jpg``: the columns
      ``subDirectory_filePath`` and ``expression``, and the face by ``face_x``, ``face_y``, ``face_width`` and
      ``face_height`` where they are given (not ``NULL``, and no side below 1); in the order of the rows.
    - ``train_set/images/7.jpg`` with ``train_set/annotations/7_exp.npy``, and the same in ``val_set``: whole
      images; in the order of the numbers.

    The folders around them do not matter. Images of no expression (8 to 10) are left out.

    Args:
        source: a folder or zip.
        classes: 8, or 7 without contempt.
        size: side of the square images in pixels.

    Returns:
        RGB images (N, 3, size, size), decoded when they are read, in CKPLUS8_CLASSES or FER2013_CLASSES, in
        the splits train and test (see ``FOLDER_SPLITS``). There are no subjects.

    Raises:
        DataError: names the file and the line, what is wrong and what to do.
    """
    if classes not in (7, 8):
        raise DataError(f"{source}: AffectNet has 8 classes, or 7 without contempt, not {classes}")
    archive = open_archive(source)
    files = archive.names()
    lists = [name for name in files if name.rpartition("/")[2] in CSV_SPLITS]
    samples = list(_by_rows(archive, files, lists) if lists else _by_numbers(archive, files))
    names = CKPLUS8_CLASSES if classes == 8 else FER2013_CLASSES
    kept = [sample for sample in samples if _class(sample.number) in names]
    for split in set(CSV_SPLITS.values()):
        if not any(sample.split == split for sample in kept):
            raise DataError(f"{source}: no image with an expression in its {split} part; get it again")

    def face(number: int, image: Image.Image) -> Box | None:
        return _inside(kept[number], image, archive)

    return FaceDataset.of(
        "affectnet",
        squares(archive, [sample.name for sample in kept], size, box=face),
        [names.index(_class(sample.number)) for sample in kept],
        names,
        [sample.name for sample in kept],
        split=[SPLITS.index(sample.split) for sample in kept],
        sources=sources_of(archive),
    )


def _class(number: int) -> str:
    return (*AFFECTNET_CLASSES, *OTHERS)[number]


def _inside(sample: _Sample, image: Image.Image, archive: Archive) -> Box | None:
    """The part of a face's box that lies in the image."""
    if sample.box is None:
        return None
    left, top, right, bottom = sample.box
    box = max(left, 0.0), max(top, 0.0), min(right, image.width), min(bottom, image.height)
    if box[2] - box[0] < 2 or box[3] - box[1] < 2:
        raise DataError(
            f"{archive.path}: {sample.name}: the face lies outside of {image.width}x{image.height} pixels; "
            "get the image and the csv from one source"
        )
    return box


# training.csv and validation.csv


def _by_rows(archive: Archive, files: Sequence[str], lists: Sequence[str]) -> Iterator[_Sample]:
    csvs: dict[str, str] = {}
    for name in lists:
        refuse_second(csvs, name.rpartition("/")[2], name, archive.path)
    for file in CSV_SPLITS:
        if file not in csvs:
            raise DataError(f"{archive.path}: there is no {file}; give the folder that holds both csv files")
    images: dict[str, str] = {}
    for name in files:
        *folders, file = name.split("/")
        if folders and _AUTOMATIC not in folders and not file.endswith(".csv"):
            refuse_second(images, f"{folders[-1]}/{file}", name, archive.path)
    for file, split in CSV_SPLITS.items():
        missing: list[str] = []
        rows = unboxed = 0
        for path, number, box in _rows(archive, csvs[file]):
            rows += 1
            unboxed += box is None
            if path in images:
                yield _Sample(images[path], number, split, box)
            else:
                missing.append(path)
        if missing:
            raise DataError(
                f"{archive.path}: {len(missing)} of {rows} images of {csvs[file]} are absent, such as "
                f"{missing[0][:100]}; put Manually_Annotated_Images beside it"
            )
        if unboxed:
            tell(
                f"ferdist: {archive.path}: {csvs[file]}: {unboxed} of {rows} faces have no box: images whole"
            )


def _rows(archive: Archive, name: str) -> Iterator[tuple[str, int, Box | None]]:
    """Path, number and box of the face in each row with an expression."""
    place = f"{archive.path}: {name}"
    table = csv.reader(line.decode("utf-8-sig", "replace") for line in archive.lines(name))
    try:
        header = [column.strip() for column in next(table, [])]
        rows: Iterator[list[str]] = table
        if len(header) == len(_HEADER) and header[_HEADER.index("expression")] in _NUMBERS:
            header, rows = list(_HEADER), itertools.chain([header], table)
        absent = [column for column in _COLUMNS if column not in header]
        if absent:
            raise DataError(
                f"{place}: the column {absent[0]} is missing from the header {','.join(header)[:80]!r}; give "
                "the csv of the release with Manually_Annotated_Images"
            )
        boxed = all(column in header for column in _BOX)
        for fields in rows:
            if not fields:
                continue
            where = f"{place}: line {table.line_num}"
            if len(fields) != len(header):
                raise DataError(f"{where}: {len(fields)} fields instead of {len(header)}; get the file again")
            row = dict(zip(header, map(str.strip, fields), strict=True))
            if row["expression"] not in _NUMBERS:
                raise DataError(
                    f"{where}: expression {row['expression'][:20]!r} is not from 0 to {len(_NUMBERS) - 1}; "
                    "get the file again"
                )
            number = int(row["expression"])
            if number < len(AFFECTNET_CLASSES):
                box = _box([row[column] for column in _BOX], where) if boxed else None
                yield row["subDirectory_filePath"], number, box
    except csv.Error as error:
        raise DataError(f"{place}: line {table.line_num}: not a row ({error}); get the file again") from error


def _box(values: Sequence[str], where: str) -> Box | None:
    if all(value in _NO_BOX for value in values):
        return None
    try:
        x, y, width, height = map(float, values)
        if not math.isfinite(x + y + width + height):
            raise ValueError
    except ValueError:
        raise DataError(
            f"{where}: {','.join(values)[:40]!r} is not a face's x, y, width and height; get the file again"
        ) from None
    if width < 1 or height < 1:  # the release's rows for faces that its detector did not find
        return None
    return x, y, x + width, y + height


# train_set and val_set


def _by_numbers(archive: Archive, files: Sequence[str]) -> Iterator[_Sample]:
    images: dict[tuple[str, int], str] = {}
    annotations: dict[tuple[str, int], str] = {}
    for name in files:
        if match := _NUMBERED.fullmatch(name):
            kind, number = (images, match[3]) if match[3] else (annotations, match[4])
            refuse_second(kind, (match[1], int(number)), name, archive.path)
    if not images and not annotations:
        raise DataError(
            f"{archive.path}: neither training.csv and validation.csv nor train_set and val_set in it; give "
            "the folder that holds them, or a zip of it"
        )
    for found, wanted, what in ((images, annotations, "image"), (annotations, images, "annotation")):
        missing = [name for key, name in wanted.items() if key not in found]
        if missing:
            raise DataError(
                f"{archive.path}: {len(missing)} of {len(wanted)} have no {what}, such as {missing[0]}; "
                "get the release again"
            )
    keys = sorted(images)
    labels = in_order(
        lambda key: _read_number(archive, annotations[key]), progress(keys, "reading the annotations")
    )
    for key, label in zip(keys, labels, strict=True):
        yield _Sample(images[key], label, FOLDER_SPLITS[key[0]], None)


def _read_number(archive: Archive, name: str) -> int:
    """The expression in an npy file: a single value, a number or its text."""
    data = archive.read(name)
    try:
        if len(data) > _MAX_NPY_BYTES:
            raise ValueError("more than one value")
        content = io.BytesIO(data)
        version = np.lib.format.read_magic(content)
        if version != (1, 0):
            raise ValueError(f"version {version} of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(content)
        if math.prod(shape) != 1 or dtype.kind not in "iufU":  # what would need a pickle is not loaded
            raise ValueError(f"{dtype} {shape}")
        value = float(np.frombuffer(content.read(), dtype=dtype, count=1)[0])
        if value not in range(len(_NUMBERS)):
            raise ValueError(f"{value:g}")
    except Exception as error:  # numpy's parser of the header raises whatever a damaged one makes it
        raise DataError(
            f"{archive.path}: {name}: not an expression from 0 to {len(_NUMBERS) - 1} ({reason_of(error)}); "
            "get the file again"
        ) from error
    return int(value)
