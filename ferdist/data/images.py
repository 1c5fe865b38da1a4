"""Image files to pixels, and archives of them to data sets' images."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ferdist.data.archive import Archive
from ferdist.data.parallel import in_order, progress
from ferdist.data.record import Decoded, Images
from ferdist.errors import DataError, reason_of
from ferdist.table import count

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, in pixels."""

IMAGE_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jfif", ".jpe"),
    *(".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"),
)
IMAGE_FORMATS: Final = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")
"""Pillow's names of the formats that are decoded, whatever a file's name says: each further decoder can be
attacked too, and that of EPS starts Ghostscript."""

MAX_PIXELS: Final = 50_000_000
"""Most pixels of an image."""
SIZES: Final = range(2, 1025)
"""Sides, in pixels, that images can be resized to."""


def is_image(name: str) -> bool:
    """Whether the name ends like an image file's."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def split_images(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The names of image files, and those of others."""
    found: tuple[list[str], list[str]] = [], []
    for name in names:
        found[not is_image(name)].append(name)
    return found


def passed_over(others: Sequence[str]) -> str:
    """What to tell of files that are not read, of which there is one at least."""
    return f"passed over {count(len(others), 'file')} with another ending than images, such as {others[0]}"


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
    opened = in_order(lambda name: open_image(archive, name), progress(names, _title(archive)))
    for name, image in zip(names, opened, strict=True):
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


def squares(
    archive: Archive,
    names: Sequence[str],
    size: int,
    *,
    gray: bool = False,
    box: Callable[[int, Image.Image], Box | None] = lambda number, image: None,
) -> Decoded:
    """Images of any size and mode as squares: RGB, or gray, cropped and then resized with antialiasing.

    Args:
        archive: holds them.
        names: of the files.
        size: side of the squares in pixels.
        gray: one channel in place of three.
        box: gives the part to keep of an image by its number in ``names``; None for all of it.

    Raises:
        DataError: if the size is not among ``SIZES``; while decoding, as `open_image` and `to_rgb`.
    """
    if size not in SIZES:
        raise DataError(
            f"{archive.path}: size {size} is not from {SIZES[0]} to {SIZES[-1]} pixels; choose such a size"
        )

    def decode(number: int) -> Images:
        image = to_rgb(open_image(archive, names[number]), f"{archive.path}: {names[number]}")
        image = image.convert("L") if gray else image
        part = box(number, image)
        if part is not None or image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=part)
        return np.asarray(image).reshape(size, size, -1).transpose(2, 0, 1)

    return Decoded((len(names), 1 if gray else 3, size, size), decode, _title(archive))


def to_rgb(image: Image.Image, place: str) -> Image.Image:
    """An upright 8-bit RGB image from one of any mode.

    It is turned by its EXIF orientation; 16-bit gray is scaled to 8 bits, and transparency is put on black.

    Args:
        image: as Pillow opens it; it is turned in place.
        place: what names it in an error.

    Raises:
        DataError: if its EXIF data are damaged, or its values have no known range (floats).
    """
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # parsing raises whatever a damaged file makes it
        raise DataError(f"{place}: damaged EXIF data ({reason_of(error)}); save it anew") from None
    if image.mode == "F":
        raise DataError(f"{place}: its values are floats of unknown range; save it with 8 bits")
    if image.mode.startswith("I"):  # 16-bit gray, which some versions of Pillow open as 32-bit integers
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{place}: its values are not from 0 to 65535; save it with 8 bits")
        image = Image.fromarray((values.astype(np.float32) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _title(archive: Archive) -> str:
    return f"reading {archive.path.name}"
