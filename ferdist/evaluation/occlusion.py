"""Covers for evaluation: drawn as uint8 from (seed, sample, kind, severity), the same on every device."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from ferdist.datasets.record import Images, Integers

KINDS: Final = ("square", "circle")
SIDES: Final = (8 / 48, 16 / 48, 24 / 48, 32 / 48, 36 / 48)
"""Side of the square as a share of the image's shorter side, for severities 1 to 5."""
FILL: Final = "zero"


def covered_fraction(severity: int) -> float:
    """Share of a square image that severity 1 to 5 covers: 2.8, 11.1, 25, 44.4, 56.2 %."""
    return SIDES[severity - 1] ** 2


def cover(
    images: Images, index: Integers, kind: str, severity: int, *, samples: int, seed: int = 0
) -> Images:
    """Copies of images with a black square or circle of equal area, wholly inside, at a random place.

    Args:
        images: uint8 (B, C, H, W).
        index: int64 (B,), each image's sample number: its place depends on it alone, not on the batch.
        kind: ``square`` or ``circle``.
        severity: 1 to 5.
        samples: number of samples in the data set.
        seed: of the places.

    Returns:
        uint8 (B, C, H, W).
    """
    height, width = images.shape[2:]
    side = SIDES[severity - 1] * min(height, width)
    key = np.random.SeedSequence([seed, KINDS.index(kind), severity])
    places = np.random.Generator(np.random.Philox(key)).random((samples, 2))[index]
    half = side / 2 if kind == "square" else side / math.sqrt(math.pi)
    # Pixel p spans [p, p + 1]: a square's edges lie between pixels, so that it covers side x side of them.
    top, left = places[:, 0] * (height - 2 * half), places[:, 1] * (width - 2 * half)
    if kind == "square":
        top, left = np.rint(top), np.rint(left)
    rows = np.arange(height)[None, :] + 0.5 - (top + half)[:, None]
    columns = np.arange(width)[None, :] + 0.5 - (left + half)[:, None]
    if kind == "square":
        hidden = (np.abs(rows) < half)[:, :, None] & (np.abs(columns) < half)[:, None, :]
    else:
        hidden = rows[:, :, None] ** 2 + columns[:, None, :] ** 2 < half**2
    return np.where(hidden[:, None], np.uint8(0), images)
