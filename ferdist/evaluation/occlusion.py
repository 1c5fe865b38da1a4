"""The occlusion benchmark: covered and noisy copies of faces, the same on every device and world size.

Images are uint8 and made on the CPU. What is drawn for a sample is a function of (seed, kind, severity,
sample number) alone: a Philox stream, a counter-based generator (Salmon et al., Parallel random numbers: as
easy as 1, 2, 3, SC 2011), with its key from the first three and its counter from the last. The fill is not
among them, so that an image is covered in the same place whatever it is filled with. Only integers and
products of small floats decide about a pixel, so other machines give the same images.

Geometry is stated in 48ths of the image's side, the size of FER2013's and CK+'s images, and scales with it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from ferdist.data.record import Images, Integers
from ferdist.errors import ConfigError, DataError

if TYPE_CHECKING:  # its package imports torch, which a report does without
    from ferdist.augment.config import AugmentConfig

Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

UNITS: Final = 48
SIDES: Final = (8 / 48, 16 / 48, 24 / 48, 32 / 48, 36 / 48)
"""Side of the square as a share of the image's shorter side, for severities 1 to 5; the circle, the cells and
the patch have its area."""
GRID_CELLS: Final = 12
"""Cells per side of the grid of ``cells``: 4 px each at 48 px."""
BANDS: Final = {
    "eye_band": (10, 22, 0, 48),
    "mouth_band": (31, 43, 0, 48),
    "left_half": (0, 48, 0, 24),
    "right_half": (0, 48, 24, 48),
}
"""Top, bottom, left and right of the fixed rectangles, in 48ths; left and right as one sees the image."""
GAUSSIAN_SIGMA: Final = (0.08, 0.12, 0.18, 0.26, 0.38)
IMPULSE_SHARE: Final = (0.03, 0.06, 0.09, 0.17, 0.27)
"""ImageNet-C's levels (Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions
and perturbations, ICLR 2019): standard deviation where white is 1, and share of values set to black or white.
"""
SEED: Final = 0
"""Of the published benchmark."""
DONORS: Final = 256
"""Most faces that patches are taken from."""

SEEN: Final = "seen"
UNSEEN_SIZE: Final = "unseen size"
UNSEEN_KIND: Final = "unseen kind"


@dataclass(frozen=True)
class Kind:
    """A way to damage an image: how many severities it has, and what it can be filled with."""

    severities: int
    fills: tuple[str, ...]


_PLAIN: Final = ("zero", "mean", "noise")
KINDS: Final = {
    "square": Kind(5, _PLAIN),
    "circle": Kind(5, _PLAIN),
    "cells": Kind(5, _PLAIN),
    "patch": Kind(5, ("face",)),
    "eye_band": Kind(1, _PLAIN),
    "mouth_band": Kind(1, _PLAIN),
    "left_half": Kind(1, _PLAIN),
    "right_half": Kind(1, _PLAIN),
    "glasses": Kind(1, ("drawn",)),
    "mask": Kind(1, ("drawn",)),
    "gaussian_noise": Kind(5, ("none",)),
    "impulse_noise": Kind(5, ("none",)),
}
"""The place of a kind in this table is part of the streams' keys: new kinds go to the end."""
GRADED: Final = ("square", "circle", "cells", "patch")
"""The kinds whose severities are covered areas."""
FILLS: Final = _PLAIN


@dataclass(frozen=True)
class Cell:
    """One cell of the benchmark: a key of ``KINDS``, a severity from 1, and one of the kind's fills."""

    kind: str
    severity: int
    fill: str

    def to_json(self) -> dict[str, str | int]:
        """As in results.json."""
        return {"kind": self.kind, "severity": self.severity, "fill": self.fill}


def grid(kinds: Sequence[str] | None = None, fills: Sequence[str] | None = None) -> tuple[Cell, ...]:
    """The cells of the benchmark in their order, or a part of them.

    Args:
        kinds: keys of ``KINDS``, all by default.
        fills: of ``FILLS``, all by default; kinds that have a fill of their own keep it.

    Raises:
        ConfigError: for a kind or fill that does not exist.
    """
    for option, given, known in (("--kinds", kinds, tuple(KINDS)), ("--fills", fills, FILLS)):
        for name in given or ():
            if name not in known:
                raise ConfigError(f"{option}: there is no {name!r}: choose among {', '.join(known)}")
    return tuple(
        Cell(name, severity, fill)
        for name, kind in KINDS.items()
        if kinds is None or name in kinds
        for fill in kind.fills
        if fills is None or fill in fills or fill not in FILLS
        for severity in range(1, kind.severities + 1)
    )


def covered_fraction(cell: Cell, height: int = UNITS, width: int = UNITS) -> float | None:
    """Share of an image's pixels that a cell replaces, 0 to 1; None for noise, which covers nothing.

    For the graded kinds on square images this is the nominal area, which images of other sides than
    multiples of 12 px meet to within half a pixel of the square's side.
    """
    if cell.kind in GRADED:
        return SIDES[cell.severity - 1] ** 2 * min(height, width) ** 2 / (height * width)
    if cell.kind in BANDS:
        return float(_band(cell.kind, height, width).mean())
    if cell.fill == "drawn":
        return float(_drawn(cell.kind, height, width)[0].mean())
    return None


@dataclass(frozen=True)
class Benchmark:
    """Makes the images of the benchmark.

    Attributes:
        mean: gray level 0-255 per channel of the fill ``mean``.
        identity: int64 (N,), who is on each sample of the data; a patch never shows the same person.
        donors: int64 (P,), the samples that patches are taken from, as `choose_donors` gives them.
        donor_images: uint8 (P, C, H, W), theirs.
        seed: of all draws.
    """

    mean: tuple[int, ...]
    identity: Integers
    donors: Integers
    donor_images: Images
    seed: int = SEED

    def cover(self, images: Images, index: Integers, cell: Cell) -> Images:
        """Damaged copies of images.

        Args:
            images: uint8 (B, C, H, W).
            index: int64 (B,), each image's sample number in its data set.
            cell: what to do.

        Returns:
            uint8 (B, C, H, W).

        Raises:
            DataError: for ``patch``, if no donor shows another person.
        """
        key = _key(cell.kind, cell.severity, self.seed)
        if cell.kind == "gaussian_noise":
            return _add_gaussian(images, key, index, GAUSSIAN_SIGMA[cell.severity - 1])
        if cell.kind == "impulse_noise":
            return _add_impulses(images, key, index, IMPULSE_SHARE[cell.severity - 1])
        height, width = images.shape[2:]
        if cell.fill == "drawn":
            hidden, paint = _drawn(cell.kind, height, width)
            return np.where(hidden, paint, images)
        hidden = hidden_pixels(cell, index, height, width, self.seed)
        return np.where(hidden[:, None], self._paint(images, index, cell, key), images)

    def _paint(self, images: Images, index: Integers, cell: Cell, key: Words) -> Images:
        if cell.fill == "noise":
            return _bytes(key, index, images[0].size).reshape(images.shape)
        if cell.fill == "mean":
            return np.array(self.mean, dtype=np.uint8)[:, None, None]
        if cell.fill == "face":
            return self.donor_images[self._donor(index, key)]
        return np.zeros((), dtype=np.uint8)

    def _donor(self, index: Integers, key: Words) -> Integers:
        """Which donor each sample gets, among those of other people."""
        order = np.argsort(self.identity[self.donors], kind="stable")
        people, own = self.identity[self.donors][order], self.identity[index]
        first, last = np.searchsorted(people, own, "left"), np.searchsorted(people, own, "right")
        others = len(people) - (last - first)
        if not others.all():
            raise DataError("a patch of another face needs faces of two people: leave `patch` out of --kinds")
        chosen = (_uniforms(key, index, 3)[:, 2] * others).astype(np.int64)
        return np.asarray(order[np.where(chosen < first, chosen, chosen + (last - first))])


def choose_donors(candidates: Integers, seed: int = SEED) -> Integers:
    """The samples that patches are taken from: at most ``DONORS`` of the candidates, int64, ascending.

    Args:
        candidates: int64 (M,), distinct sample numbers: all of the split or fold that is scored.
        seed: of the choice.
    """
    order = np.argsort(_uniforms(_key("patch", 0, seed), candidates, 1)[:, 0], kind="stable")
    return np.sort(candidates[order[:DONORS]])


def hidden_pixels(cell: Cell, index: Integers, height: int, width: int, seed: int = SEED) -> Mask:
    """Which pixels a cell covers: bool (B, H, W), or (1, H, W) where they are the same for all samples.

    Args:
        cell: of any kind but noise.
        index: int64 (B,), sample numbers.
        height, width: of the images.
        seed: of the draws.
    """
    if cell.kind in BANDS:
        return _band(cell.kind, height, width)[None]
    if cell.fill == "drawn":
        return _drawn(cell.kind, height, width)[0][None]
    key = _key(cell.kind, cell.severity, seed)
    share = SIDES[cell.severity - 1]
    if cell.kind == "cells":
        return _random_cells(key, index, share, height, width)
    side = share * min(height, width)
    # A patch draws three numbers a sample: the third chooses its donor.
    place = _uniforms(key, index, 3 if cell.kind == "patch" else 2)[:, :2]
    return (
        _circles(place, side, height, width)
        if cell.kind == "circle"
        else _squares(place, side, height, width)
    )


def checksums(images: Images) -> npt.NDArray[np.uint8]:
    """The sha256 of each image's bytes, uint8 (B, 32)."""
    rows = [hashlib.sha256(image.tobytes()).digest() for image in images]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(images), 32).copy()


def total_checksum(rows: npt.NDArray[np.uint8]) -> str:
    """One sha256 (hex) for the checksums (N, 32) of images in the order of their sample numbers."""
    return hashlib.sha256(rows.tobytes()).hexdigest()


def seen_in_training(cell: Cell, augment: AugmentConfig, height: int = UNITS, width: int = UNITS) -> str:
    """Whether training with ``augment`` shows such damage.

    Args:
        cell: what was done to the test images.
        augment: the run's own.
        height, width: of the images.

    Returns:
        ``seen`` if shape, fill and size lie in the training's range; ``unseen size`` if shape and fill do, or
        if Gaussian noise is trained with other strengths; ``unseen kind`` otherwise. Bands and halves are
        rectangles.
    """
    if cell.kind == "gaussian_noise":
        noise = augment.noise
        if not (augment.enabled and noise.probability > 0 and noise.sigma[1] > 0):
            return UNSEEN_KIND
        inside = noise.sigma[0] <= GAUSSIAN_SIGMA[cell.severity - 1] <= noise.sigma[1]
        return SEEN if inside else UNSEEN_SIZE
    trained = augment.occlusion
    shape = {"square": "rectangle", "circle": "circle", **dict.fromkeys(BANDS, "rectangle")}.get(cell.kind)
    fills = {"mean": ("mean", "random"), "noise": ("noise", "random")}.get(cell.fill, ())
    if cell.fill == "zero" and trained.value == 0:
        fills = ("constant", "random")
    if not (augment.enabled and trained.probability > 0 and trained.shape in (shape, "both")):
        return UNSEEN_KIND
    area = covered_fraction(cell, height, width)
    if shape is None or area is None or trained.fill not in fills:
        return UNSEEN_KIND
    inside = trained.area[0] <= area <= trained.area[1]
    if shape == "rectangle":
        top, bottom, left, right = BANDS.get(cell.kind, (0, 1, 0, 1))
        aspect = (bottom - top) * height / ((right - left) * width) if cell.kind in BANDS else 1.0
        inside = inside and trained.aspect[0] <= aspect <= trained.aspect[1]
    return SEEN if inside else UNSEEN_SIZE


# Draws


def _key(kind: str, severity: int, seed: int) -> Words:
    """The key of a Philox stream, uint64 (2,)."""
    number = list(KINDS).index(kind)
    state = np.random.SeedSequence([seed, number, severity]).generate_state(2, np.uint64)
    return np.asarray(state, dtype=np.uint64)


def _uniforms(key: Words, index: Integers, count: int) -> npt.NDArray[np.float64]:
    """A few numbers in [0, 1) for each sample, float64 (B, count): the stream cut into rows of ``count``."""
    rows = int(index.max(initial=-1)) + 1
    words = np.random.Philox(key=key).random_raw(rows * count).reshape(rows, count)[index]
    return np.asarray((words >> np.uint64(11)) * 2.0**-53)


def _bytes(key: Words, index: Integers, count: int) -> npt.NDArray[np.uint8]:
    """Uniform bytes for each sample, uint8 (B, count): each sample has a part of the counter's range."""
    words = -(-count // 8)
    rows = [
        np.random.Philox(key=key, counter=[0, sample, 1, 0]).random_raw(words) for sample in index.tolist()
    ]
    return np.array(rows, dtype="<u8").reshape(len(index), words).view(np.uint8)[:, :count]


def _halfwords(key: Words, images: Images, index: Integers) -> npt.NDArray[np.uint16]:
    """Uniform 16-bit numbers, one for each value of the images."""
    return _bytes(key, index, 2 * images[0].size).view("<u2").reshape(images.shape)


# Shapes


def _squares(place: npt.NDArray[np.float64], side: float, height: int, width: int) -> Mask:
    """Squares of whole pixels; ``place`` (B, 2) in [0, 1) is where between the edges."""
    pixels = round(side)
    top, left = np.rint(place[:, :1] * (height - pixels)), np.rint(place[:, 1:] * (width - pixels))
    rows, columns = np.arange(height) - top, np.arange(width) - left
    inside_rows, inside_columns = (rows >= 0) & (rows < pixels), (columns >= 0) & (columns < pixels)
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def _circles(place: npt.NDArray[np.float64], side: float, height: int, width: int) -> Mask:
    """The pixels whose centres lie in a circle of the square's area."""
    radius = side / math.sqrt(math.pi)
    # Pixel p spans [p, p + 1].
    rows = np.arange(height) + 0.5 - (place[:, :1] * (height - 2 * radius) + radius)
    columns = np.arange(width) + 0.5 - (place[:, 1:] * (width - 2 * radius) + radius)
    return rows[:, :, None] ** 2 + columns[:, None, :] ** 2 < radius**2


def _random_cells(key: Words, index: Integers, share: float, height: int, width: int) -> Mask:
    """Cells of the grid, without order or repetition, as many as have the square's area."""
    cells = GRID_CELLS**2
    ranks = _bytes(key, index, 8 * cells).view("<u8").argsort(axis=1, kind="stable")
    chosen = np.zeros((len(index), cells), dtype=bool)
    np.put_along_axis(chosen, ranks[:, : round(share**2 * cells)], True, axis=1)
    rows, columns = np.arange(height) * GRID_CELLS // height, np.arange(width) * GRID_CELLS // width
    return chosen.reshape(-1, GRID_CELLS, GRID_CELLS)[:, rows][:, :, columns]


def _band(kind: str, height: int, width: int) -> Mask:
    """A fixed rectangle: bool (H, W)."""
    y, x = _coordinates(height, width)
    top, bottom, left, right = BANDS[kind]
    return (top <= y) & (y < bottom) & (left <= x) & (x < right)


def _coordinates(height: int, width: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The pixels' centres in 48ths: y (H, 1) and x (1, W)."""
    y = (np.arange(height)[:, None] + 0.5) * UNITS / height
    x = (np.arange(width)[None, :] + 0.5) * UNITS / width
    return y, x


def _drawn(kind: str, height: int, width: int) -> tuple[Mask, Images]:
    """Sunglasses or a surgical mask: bool (H, W) where it covers, and uint8 (H, W) gray levels."""
    y, x = _coordinates(height, width)
    return _glasses(y, x) if kind == "glasses" else _surgical_mask(y, x)


def _glasses(y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> tuple[Mask, Images]:
    """Two dark lenses (gray level 40) in black frames, a bridge and temples to the image's edges."""
    off_centre = abs(x - 24)

    def ellipse(half_width: float, half_height: float) -> Mask:
        return ((off_centre - 8.5) / half_width) ** 2 + ((y - 17.5) / half_height) ** 2 < 1

    lens = ellipse(6.5, 4.5)
    bar = (abs(y - 16.5) < 1) & ((off_centre < 2) | (off_centre > 15))
    return ellipse(7.5, 5.5) | bar, np.where(lens, np.uint8(40), np.uint8(0))


def _surgical_mask(y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> tuple[Mask, Images]:
    """Light cloth (gray level 200) from the nose to the chin with three folds (160), and two straps (200)."""
    off_centre = abs(x - 24)
    top = 24 + off_centre**2 / 64  # over the nose, falling to the cheeks
    bottom = 48 - off_centre**2 / 64
    cloth = (y > top) & (y < bottom) & (off_centre < 17)
    strap = (off_centre >= 17) & (abs(y - (28.5 - (off_centre - 17) * 0.5)) < 1)
    folds = cloth & ((y - 30) % 5 < 1) & (off_centre < 15) & (y > 29) & (y < 42)
    return cloth | strap, np.where(folds, np.uint8(160), np.uint8(200))


# Noise


def _add_gaussian(images: Images, key: Words, index: Integers, sigma: float) -> Images:
    """Noise of 65,536 equally likely levels, rounded to whole gray levels: finer than the 256 of an image."""
    levels = np.rint(255 * sigma * ndtri((np.arange(2**16) + 0.5) / 2**16)).astype(np.int16)
    noisy = images + levels[_halfwords(key, images, index)]
    return np.asarray(noisy.clip(0, 255), dtype=np.uint8)


def _add_impulses(images: Images, key: Words, index: Integers, share: float) -> Images:
    """Each value becomes black or white, both equally often, with probability ``share``."""
    draws, half = _halfwords(key, images, index), round(share * 2**15)
    return np.where(draws < half, np.uint8(0), np.where(draws < 2 * half, np.uint8(255), images))
