"""Expressions posed in a laboratory, whose file names say everything: JAFFE and KDEF."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from PIL import Image

from ferdist.data.archive import open_archive, refuse_second, sources_of
from ferdist.data.images import Box, is_image, squares
from ferdist.data.record import FER2013_CLASSES, FaceDataset
from ferdist.errors import DataError

JAFFE_CODES: Final = dict(zip(("AN", "DI", "FE", "HA", "SA", "SU", "NE"), FER2013_CLASSES, strict=True))
KDEF_CODES: Final = dict(zip(("AN", "DI", "AF", "HA", "SA", "SU", "NE"), FER2013_CLASSES, strict=True))
"""Our names of the codes of expressions."""

KDEF_ANGLES: Final = ("S", "HL", "HR", "FL", "FR")
"""Straight; half left and right; full left and right profile."""
KDEF_MISNAMED: Final = {"AF31V": "AF31SAHL", "AM31H": "AM31SUHR"}
"""Two files whose names are cut off, and the names that public code gives them."""

_JAFFE: Final = re.compile(rf"([A-Z]{{2}})\.({'|'.join(JAFFE_CODES)})\d+\.\d+\.\w+")
_KDEF: Final = re.compile(rf"[AB]([FM]\d\d)({'|'.join(KDEF_CODES)})({'|'.join(KDEF_ANGLES)})")


def read_jaffe(source: Path, size: int = 112) -> FaceDataset:
    """Read JAFFE (Lyons et al. 1998, FG): ``KA.AN1.39.tiff`` is subject KA, angry, pose 1.

    Args:
        source: a folder or zip with the images, at any depth.
        size: side of the square images in pixels; JAFFE's are 256 x 256, and are not cropped.

    Returns:
        Gray images (N, 1, size, size) in FER2013_CLASSES, by name, with subjects and without splits.

    Raises:
        DataError: names the file, what is wrong and what to do.
    """
    archive = open_archive(source)
    names, labels, subjects = [], [], []
    seen: dict[str, str] = {}
    for name in filter(is_image, archive.names()):
        file = name.rpartition("/")[2]
        match = _JAFFE.fullmatch(file)
        if match is None:
            raise DataError(f"{source}: {name}: not named like KA.AN1.39.tiff; rename or remove it")
        refuse_second(seen, file, name, source)
        names.append(name)
        labels.append(FER2013_CLASSES.index(JAFFE_CODES[match[2]]))
        subjects.append(match[1])
    if not names:
        raise DataError(f"{source}: no images like KA.AN1.39.tiff in it; give the folder that holds them")
    return FaceDataset.of(
        "jaffe",
        squares(archive, names, size, gray=True),
        labels,
        FER2013_CLASSES,
        names,
        subjects=subjects,
        sources=sources_of(archive),
    )


def read_kdef(source: Path, angles: Collection[str] = ("S",), size: int = 112) -> FaceDataset:
    """Read KDEF (Lundqvist, Flykt and Öhman 1998): ``AF01ANS.JPG`` is series A, woman 01, angry, straight.

    A person has pictures in both series, so the subject is sex and number (F01), without the series. The
    pictures are 562 x 762 pixels with eyes and mouth at fixed places; the square in their middle is kept.

    Args:
        source: a folder or zip with the images, at any depth.
        angles: which of ``KDEF_ANGLES`` to keep.
        size: side of the square images in pixels.

    Returns:
        RGB images (N, 3, size, size) in FER2013_CLASSES, by name, with subjects and without splits.

    Raises:
        DataError: names the file, what is wrong and what to do.
    """
    unknown = set(angles) - set(KDEF_ANGLES)
    if unknown or not angles:
        raise DataError(
            f"{source}: angle {min(unknown, default='')!r}: choose among {', '.join(KDEF_ANGLES)}"
        )
    archive = open_archive(source)
    names, labels, subjects = [], [], []
    seen: dict[str, str] = {}
    for name in filter(is_image, archive.names()):
        stem = Path(name).stem.upper()
        match = _KDEF.fullmatch(KDEF_MISNAMED.get(stem, stem))
        if match is None:
            raise DataError(f"{source}: {name}: not named like AF01ANS.JPG; rename or remove it")
        refuse_second(seen, match[0], name, source)
        if match[3] in angles:
            names.append(name)
            labels.append(FER2013_CLASSES.index(KDEF_CODES[match[2]]))
            subjects.append(match[1])
    if not names:
        raise DataError(
            f"{source}: no images like AF01ANS.JPG at the angles {', '.join(angles)} in it; give the folder "
            "that holds them"
        )
    return FaceDataset.of(
        "kdef",
        squares(archive, names, size, box=_middle),
        labels,
        FER2013_CLASSES,
        names,
        subjects=subjects,
        sources=sources_of(archive),
    )


def _middle(number: int, image: Image.Image) -> Box:
    """The largest square in the middle of an image."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return left, top, left + side, top + side
