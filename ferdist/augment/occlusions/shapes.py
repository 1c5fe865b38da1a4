"""Occluders at random places: what training draws, and what only the benchmark shows."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from ferdist.augment.occlusions.base import (
    FACE,
    SIDES,
    Array,
    Faces,
    Fill,
    Mask,
    Occluder,
    Shape,
    Stream,
    graded_area,
    register,
)
from ferdist.data.record import Images

CELLS: Final = 12
"""Cells per side of the grid of ``cells``: 4 px each at 48 px."""


@register
class Square(Shape):
    """A square of side 8, 16, 24, 32, 36 at a random place, wholly inside."""

    name, number = "square", 0
    trained = "rectangle"
    stretches = True
    whole_pixels = True

    def size(self, pixels: Array, aspect: Array) -> tuple[Array, Array]:
        """In training a rectangle."""
        return (pixels * aspect) ** 0.5, (pixels / aspect) ** 0.5

    def edges(self, y: Array, x: Array, half_height: Array, half_width: Array) -> tuple[Array, Array]:
        """False < True only where a pixel is not outside the rows and inside the columns."""
        return y**2 >= half_height**2, x**2 < half_width**2


@register
class Circle(Shape):
    """A circle of the same area, likewise."""

    name, number = "circle", 1
    trained = "circle"

    def size(self, pixels: Array, aspect: Array) -> tuple[Array, Array]:
        """The diameter, whatever the aspect."""
        diameter = 2 * (pixels / math.pi) ** 0.5
        return diameter, diameter

    def edges(self, y: Array, x: Array, half_height: Array, half_width: Array) -> tuple[Array, Array]:
        """y^2 < r^2 - x^2."""
        return y**2, half_height**2 - x**2


@register
class Cells(Occluder):
    """4, 16, 36, 64, 81 random cells of a 12 x 12 grid (4 px at 48 px)."""

    name, number = "cells", 2
    severities = 5
    graded = True

    def hidden(self, stream: Stream, severity: int, height: int, width: int) -> Mask:
        """Cells without order or repetition, as many as have the square's area."""
        cells = CELLS**2
        ranks = stream.bytes(8 * cells).view("<u8").argsort(axis=1, kind="stable")
        chosen = np.zeros((len(ranks), cells), dtype=bool)
        np.put_along_axis(chosen, ranks[:, : round(SIDES[severity - 1] ** 2 * cells)], True, axis=1)
        rows, columns = np.arange(height) * CELLS // height, np.arange(width) * CELLS // width
        return chosen.reshape(-1, CELLS, CELLS)[:, rows][:, :, columns]

    def covered(self, severity: int, height: int, width: int) -> float:
        """The nominal area, as of the square."""
        return graded_area(severity, height, width)


@register
class Patch(Square):
    """The square, showing the same place of another person's face, as in CutMix."""

    name, number = "patch", 3
    trained = ""
    fills = (FACE,)
    draws = 3  # the third chooses the face

    def paint(self, images: Images, fill: Fill, stream: Stream, faces: Faces) -> Images:
        """Faces of others."""
        return faces.others(stream.index, stream.uniforms(self.draws)[:, 2])
