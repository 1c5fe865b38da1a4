"""The occlusion benchmark: covered and noisy copies of faces, the same on every device and world size.

Images are uint8 and made on the CPU. What is drawn for a sample is a function of (seed, kind, severity,
sample number) alone. The fill is not among them, so that an image is covered in the same place whatever it is
filled with. Only integers and products of small floats decide about a pixel, so other machines give the same
images. `ferdist.augment.kinds` has the kinds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ferdist.augment.config import AugmentConfig
from ferdist.augment.kinds import ALL_FILLS, FILLS, KINDS, UNITS, Faces, Mask, Stream
from ferdist.data.record import Images, Integers
from ferdist.errors import ConfigError

SEED: Final = 0
"""Of the published benchmark."""
DONORS: Final = 256
"""Most faces that patches are taken from."""


@dataclass(frozen=True)
class Cell:
    """One cell of the benchmark: the name of a kind, a severity from 1, and the name of one of its fills."""

    kind: str
    severity: int
    fill: str


def grid(kinds: Sequence[str] | None = None, fills: Sequence[str] | None = None) -> tuple[Cell, ...]:
    """The cells of the benchmark in their order, or a part of them.

    Args:
        kinds: names, all by default.
        fills: names of ``FILLS``, all by default; kinds that have a fill of their own keep it.

    Raises:
        ConfigError: for a kind or fill that does not exist.
    """
    choosable = [fill.name for fill in FILLS]
    for option, given, known in (("--kinds", kinds, list(KINDS)), ("--fills", fills, choosable)):
        for name in given or ():
            if name not in known:
                raise ConfigError(f"{option}: unknown name {name!r}: choose from {', '.join(known)}")
    return tuple(
        Cell(name, severity, fill.name)
        for name, kind in KINDS.items()
        if kinds is None or name in kinds
        for fill in kind.fills
        if fills is None or fill.name in fills or fill not in FILLS
        for severity in range(1, kind.severities + 1)
    )


def covered_fraction(cell: Cell, height: int = UNITS, width: int = UNITS) -> float | None:
    """Share of an image's pixels that a cell replaces, 0 to 1; None for noise, which covers nothing."""
    return KINDS[cell.kind].covered(cell.severity, height, width)


def seen_in_training(cell: Cell, augment: AugmentConfig, height: int = UNITS, width: int = UNITS) -> str:
    """Whether a run's training shows such damage.

    Returns:
        ``seen`` if shape, fill and size lie in the training's range; ``unseen size`` if shape and fill do, or
        if Gaussian noise is trained with other strengths; ``unseen kind`` otherwise. Bands and halves are
        rectangles.
    """
    return KINDS[cell.kind].seen(cell.severity, ALL_FILLS[cell.fill], augment, height, width)


def hidden_pixels(cell: Cell, index: Integers, height: int, width: int) -> Mask:
    """The pixels that a cell covers in images of samples ``index``, int64 (B,): bool (B, H, W)."""
    hidden = KINDS[cell.kind].hidden(_stream(cell, index), height, width)
    return np.broadcast_to(hidden, (len(index), height, width))


class Benchmark(Faces):
    """Makes the images of the benchmark."""

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
        return KINDS[cell.kind].cover(images, ALL_FILLS[cell.fill], _stream(cell, index), self)


def _stream(cell: Cell, index: Integers) -> Stream:
    return Stream(SEED, KINDS[cell.kind].number, cell.severity, index)


def choose_donors(candidates: Integers) -> Integers:
    """The samples that patches are taken from: at most ``DONORS``, int64, ascending.

    Args:
        candidates: int64 (M,), distinct sample numbers: all of the split or fold that is scored.
    """
    draws = Stream(SEED, KINDS["patch"].number, 0, candidates).uniforms(1)
    return np.sort(candidates[np.argsort(draws[:, 0], kind="stable")[:DONORS]])


def checksums(images: Images) -> npt.NDArray[np.uint8]:
    """The sha256 of each image's bytes, uint8 (B, 32)."""
    rows = [hashlib.sha256(image.tobytes()).digest() for image in images]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(images), 32).copy()


def total_checksum(rows: npt.NDArray[np.uint8]) -> str:
    """One sha256 (hex) for the checksums (N, 32) of images in the order of their sample numbers."""
    return hashlib.sha256(rows.tobytes()).hexdigest()
