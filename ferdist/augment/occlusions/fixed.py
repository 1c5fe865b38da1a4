"""Occluders that lie where FER2013's and CK+'s crops have eyes and mouth; only the benchmark shows them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ferdist.augment.occlusions.base import (
    DRAWN,
    UNITS,
    Faces,
    Fill,
    Fixed,
    Floats,
    Mask,
    Stream,
    coordinates,
    register,
)
from ferdist.data.record import Images


class Band(Fixed):
    """A rectangle.

    Attributes:
        box: top, bottom, left and right, in 48ths; left and right as one sees the image.
    """

    trained = "rectangle"
    box: ClassVar[tuple[int, int, int, int]]

    def region(self, y: Floats, x: Floats) -> Mask:
        """The box."""
        top, bottom, left, right = self.box
        return (top <= y) & (y < bottom) & (left <= x) & (x < right)

    def aspect(self, height: int, width: int) -> float:
        """The box's."""
        top, bottom, left, right = self.box
        return (bottom - top) * height / ((right - left) * width)


@register
class EyeBand(Band):
    """Rows 10 to 22, the whole width."""

    name, number, box = "eye_band", 4, (10, 22, 0, UNITS)


@register
class MouthBand(Band):
    """Rows 31 to 43, the whole width."""

    name, number, box = "mouth_band", 5, (31, 43, 0, UNITS)


@register
class LeftHalf(Band):
    """The left half of the image as one sees it."""

    name, number, box = "left_half", 6, (0, UNITS, 0, UNITS // 2)


@register
class RightHalf(Band):
    """The right half of the image as one sees it."""

    name, number, box = "right_half", 7, (0, UNITS, UNITS // 2, UNITS)


class Drawing(Fixed):
    """A thing with gray levels of its own."""

    fills = (DRAWN,)

    def paint(self, images: Images, fill: Fill, stream: Stream, faces: Faces) -> Images:
        """Its gray levels, uint8 (H, W)."""
        return self.levels(*coordinates(*images.shape[2:]))

    def levels(self, y: Floats, x: Floats) -> Images:
        """Gray levels, uint8 (H, W), by the pixels' centres as in `region`."""
        raise NotImplementedError


@register
class Glasses(Drawing):
    """Drawn sunglasses: two ellipses 15 x 11 around (15.5, 17.5) and (32.5, 17.5), bridge, temples."""

    name, number = "glasses", 8

    def region(self, y: Floats, x: Floats) -> Mask:
        """Two lenses in their frames, a bridge and temples to the image's edges."""
        off_centre = abs(x - 24)
        bar = (abs(y - 16.5) < 1) & ((off_centre < 2) | (off_centre > 15))
        return _lenses(y, x, 7.5, 5.5) | bar

    def levels(self, y: Floats, x: Floats) -> Images:
        """Dark lenses in black frames."""
        return np.where(_lenses(y, x, 6.5, 4.5), np.uint8(40), np.uint8(0))


def _lenses(y: Floats, x: Floats, half_width: float, half_height: float) -> Mask:
    return np.asarray(((abs(x - 24) - 8.5) / half_width) ** 2 + ((y - 17.5) / half_height) ** 2 < 1)


@register
class SurgicalMask(Drawing):
    """A drawn surgical mask, from row 24 over the nose to the chin, 34 wide, with straps."""

    name, number = "mask", 9

    def region(self, y: Floats, x: Floats) -> Mask:
        """Cloth and two straps."""
        off_centre = abs(x - 24)
        strap = (off_centre >= 17) & (abs(y - (28.5 - (off_centre - 17) * 0.5)) < 1)
        return _cloth(y, x) | strap

    def levels(self, y: Floats, x: Floats) -> Images:
        """Light, with three darker folds."""
        folds = _cloth(y, x) & ((y - 30) % 5 < 1) & (abs(x - 24) < 15) & (y > 29) & (y < 42)
        return np.where(folds, np.uint8(160), np.uint8(200))


def _cloth(y: Floats, x: Floats) -> Mask:
    off_centre = abs(x - 24)
    sag = off_centre**2 / 64  # over the nose, falling to the cheeks
    return np.asarray((y > 24 + sag) & (y < 48 - sag) & (off_centre < 17))
