"""Pictures as people have them: found in folders, decoded in bounded memory, upright and in 8 bits."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from ferdist.data.archive import FolderArchive
from ferdist.data.images import IMAGE_FORMATS, passed_over, split_images, to_rgb
from ferdist.errors import DataError, reason_of, tell
from ferdist.io import MIB, open_untrusted

LONGEST: Final = 1600
"""Longest side in pixels at which faces are looked for and cropped; larger pictures are reduced to it."""
MOST_PIXELS: Final = 50_000_000
"""Of a picture: above those of most cameras; decoding one takes at most 770 MiB (an animated WebP)."""
LONGEST_SIDE: Final = 65_535
"""Of a picture, in pixels, as of a JPEG: some decoders take memory for a few hundred rows at once."""
LIMIT: Final = 256 * MIB
"""Largest file of a picture that is read: above one of ``MOST_PIXELS`` that is not compressed."""
ORIENTATION: Final = 0x0112
"""The EXIF tag."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        image: upright, RGB, its longest side at most ``LONGEST``.
        size: upright width and height of the file in pixels.
    """

    image: Image.Image
    size: tuple[int, int]

    @property
    def scale(self) -> float:
        """Pixels of the file in a pixel of ``image``."""
        return max(self.size) / max(self.image.size)

    def is_gray(self) -> bool:
        """Whether its three channels are equal."""
        pixels = np.asarray(self.image)
        return bool((pixels == pixels[..., :1]).all())


def find_pictures(path: Path, skip: Path | None = None) -> list[tuple[Path, Path]]:
    """A file as it is, or all image files below a folder, by name.

    Args:
        path: of the file or folder.
        skip: a folder below that in which nothing is looked for: where the results go.

    Returns:
        Each file with its path relative to what was given.

    Raises:
        DataError: if a folder has no image file.
    """
    if not path.is_dir():
        return [(path, Path(path.name))]
    names, others = split_images(FolderArchive(path).names(plain=False))
    if skip is not None and path.resolve() in skip.resolve().parents:
        names = [name for name in names if skip.resolve() not in (path / name).resolve().parents]
    if not names:
        raise DataError(f"{path}: no image files in this folder")
    if others:
        tell(f"ferdist: {path}: {passed_over(others)}")
    return [(path / name, Path(name)) for name in names]


def read_picture(path: Path) -> Picture:
    """Decode a picture; a large one is reduced before it is converted, so that memory stays bounded.

    Raises:
        DataError: if it is missing, no image, truncated, of floats, or larger than ``MOST_PIXELS``.
    """
    try:
        with warnings.catch_warnings(), open_untrusted(path, LIMIT) as file:
            warnings.simplefilter("ignore")
            return _decoded(path, file)
    except UnidentifiedImageError:
        reason = f"not one of {', '.join(IMAGE_FORMATS)}" if path.stat().st_size else "empty file"
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except Exception as error:  # decoders raise whatever a hostile file makes them
        reason = reason_of(error)
    raise DataError(f"{path}: not a readable image ({reason})")


def _decoded(path: Path, file: BinaryIO) -> Picture:
    image: Image.Image = Image.open(file, formats=IMAGE_FORMATS)
    size = image.size
    if size[0] * size[1] > MOST_PIXELS or max(size) > LONGEST_SIDE:
        raise DataError(
            f"{path}: {size[0]} x {size[1]} pixels: scale it down to at most {MOST_PIXELS // 10**6} million, "
            f"and {LONGEST_SIDE} on a side"
        )
    drafted = image.draft(None, (LONGEST, LONGEST))  # a JPEG is decoded at 1/2, 1/4 or 1/8
    image.load()
    # Pillow turns a TIFF when it loads it: size and what is left to do are known only afterwards.
    size = size if drafted else image.size
    orientation = image.getexif().get(ORIENTATION, 1)
    image = _reduced(image)
    image.getexif()[ORIENTATION] = orientation
    upright = to_rgb(image, str(path))
    if orientation >= 5:
        size = size[::-1]
    upright.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    return Picture(upright, size)


def _reduced(image: Image.Image) -> Image.Image:
    """Averaged over whole blocks of pixels, in a mode in which that can be done, where it is large."""
    factor = max(image.size) // LONGEST
    if factor < 2 or image.mode == "F":
        return image
    if image.mode != "RGBA" and (image.has_transparency_data or image.mode in ("1", "P")):
        image = image.convert("RGBA")
    elif image.mode.startswith("I;16"):
        image = image.convert("I")
    return image.reduce(factor)
