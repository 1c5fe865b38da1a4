"""The kinds of occlusion, each one class, which training, the benchmark, the report and the docs share.

A class under ``@register`` is all that a new kind takes (docs/extending.md). Geometry is stated in 48ths of
the image's side, the size of FER2013's and CK+'s images, and scales with it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import numpy as np
import numpy.typing as npt

from ferdist.data.record import Images, Integers
from ferdist.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from ferdist.augment.config import AugmentConfig

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Array = TypeVar("Array", "Tensor", npt.NDArray[Any])

UNITS: Final = 48
SIDES: Final = (8 / 48, 16 / 48, 24 / 48, 32 / 48, 36 / 48)
"""For severities 1 to 5: side of a square of the covered area, as a share of the image's shorter side."""

SEEN: Final = "seen"
UNSEEN_SIZE: Final = "unseen size"
UNSEEN_KIND: Final = "unseen kind"


@dataclass(frozen=True)
class Fill:
    """What an occluder shows: a weighted sum of a gray level, the data's mean and noise.

    Attributes:
        name: in results.json and of ``--fills``.
        label: for people; empty where there is nothing to say.
        trained: its name as ``augment.occlusion.fill``; empty where training does not draw it.
        gray: weight of ``augment.occlusion.value``; the benchmark's is 0, black.
        mean: weight of the training data's mean.
        noise: weight of bytes that are uniform over all gray levels, per pixel and channel.
    """

    name: str
    label: str = ""
    trained: str = ""
    gray: float = 0.0
    mean: float = 0.0
    noise: float = 0.0


BLACK: Final = Fill("zero", "black", trained="constant", gray=1.0)
FILLS: Final = (
    BLACK,
    Fill("mean", "mean gray", trained="mean", mean=1.0),
    Fill("noise", "noise", trained="noise", noise=1.0),
)
"""The fills that training draws, in the order of its draws."""
FACE: Final = Fill("face", "another face")
DRAWN: Final = Fill("drawn")
NONE: Final = Fill("none")
ALL_FILLS: Final = {fill.name: fill for fill in (*FILLS, FACE, DRAWN, NONE)}


@dataclass(frozen=True)
class Stream:
    """Random numbers of the benchmark: a function of (seed, kind, severity, sample number) alone.

    Philox, a counter-based generator (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011),
    with its key from the first three and its counter from the last.

    Attributes:
        seed: of the benchmark.
        number: of the kind.
        severity: from 1.
        index: int64 (B,), sample numbers.
    """

    seed: int
    number: int
    severity: int
    index: Integers

    def _key(self) -> npt.NDArray[np.uint64]:
        state = np.random.SeedSequence([self.seed, self.number, self.severity]).generate_state(2, np.uint64)
        return np.asarray(state, dtype=np.uint64)

    def uniforms(self, count: int) -> Floats:
        """Numbers in [0, 1) for each sample, float64 (B, count): the stream cut into rows of ``count``."""
        rows = int(self.index.max(initial=-1)) + 1
        words = np.random.Philox(key=self._key()).random_raw(rows * count).reshape(rows, count)[self.index]
        return np.asarray((words >> np.uint64(11)) * 2.0**-53)

    def bytes(self, count: int) -> npt.NDArray[np.uint8]:
        """Uniform bytes for each sample, uint8 (B, count): each has a part of the counter's range."""
        words, key = -(-count // 8), self._key()
        parts = [np.random.Philox(key=key, counter=[0, number, 1, 0]) for number in self.index.tolist()]
        rows = np.array([part.random_raw(words) for part in parts], dtype="<u8")
        return rows.reshape(len(parts), words).view(np.uint8)[:, :count]


@dataclass(frozen=True)
class Faces:
    """What the benchmark knows of the data.

    Attributes:
        mean: gray level 0-255 per channel of the fill ``mean``.
        identity: int64 (N,), who is on each sample of the data.
        donors: int64 (P,), the samples that patches are taken from.
        donor_images: uint8 (P, C, H, W), theirs.
    """

    mean: tuple[int, ...]
    identity: Integers
    donors: Integers
    donor_images: Images

    def others(self, index: Integers, choice: Floats) -> Images:
        """For each sample a face of another person; ``choice``, float64 (B,) in [0, 1), says which donor's.

        Raises:
            DataError: if no donor shows another person.
        """
        order = np.argsort(self.identity[self.donors], kind="stable")
        people, own = self.identity[self.donors][order], self.identity[index]
        first, last = np.searchsorted(people, own, "left"), np.searchsorted(people, own, "right")
        others = len(people) - (last - first)
        if not others.all():
            raise DataError("a patch of another face needs faces of two people: leave `patch` out of --kinds")
        chosen = (choice * others).astype(np.int64)
        return self.donor_images[order[np.where(chosen < first, chosen, chosen + (last - first))]]


class Occlusion(ABC):
    """A way to cover or spoil a face. A kind's docstring describes it in docs/occlusion.md.

    Attributes:
        name: in results.json and of ``--kinds``.
        number: part of its random streams' keys: unique, and never changed.
        severities: how many it has.
        fills: what it can be filled with.
        graded: whether its severities are covered areas, so that accuracy has a curve over them.
        trained: the shape, as ``augment.occlusion.shape``, that it is a case of; empty if training draws
            nothing like it.
    """

    name: ClassVar[str]
    number: ClassVar[int]
    severities: ClassVar[int] = 1
    fills: ClassVar[tuple[Fill, ...]] = FILLS
    graded: ClassVar[bool] = False
    trained: ClassVar[str] = ""

    @property
    def label(self) -> str:
        """The name for people, short enough for a table's column."""
        return self.name.replace("_", " ")

    def cover(self, images: Images, fill: Fill, stream: Stream, faces: Faces) -> Images:
        """Damaged copies of images, uint8 (B, C, H, W)."""
        hidden = self.hidden(stream, *images.shape[2:])
        return np.where(hidden[:, None], self.paint(images, fill, stream, faces), images)

    @abstractmethod
    def hidden(self, stream: Stream, height: int, width: int) -> Mask:
        """The covered pixels: bool (B, H, W), or (1, H, W) where they are the same for all samples."""

    def paint(self, images: Images, fill: Fill, stream: Stream, faces: Faces) -> Images:
        """What the covered pixels show, uint8, to be broadcast over ``images``."""
        if fill.noise:
            return stream.bytes(images[0].size).reshape(images.shape)
        return np.rint(fill.mean * np.array(faces.mean)[:, None, None]).astype(np.uint8)

    def covered(self, severity: int, height: int, width: int) -> float | None:
        """Share of an image's pixels that are replaced, 0 to 1; None for noise.

        This is the nominal area, which whole pixels meet to within half a pixel of a square's side.
        """
        return SIDES[severity - 1] ** 2 * min(height, width) ** 2 / (height * width)

    def aspect(self, height: int, width: int) -> float:
        """Its height / width in pixels, in an image of this size."""
        return 1.0

    def seen(self, severity: int, fill: Fill, augment: AugmentConfig, height: int, width: int) -> str:
        """Whether training shows this: shape, fill, area and, if the shape stretches, aspect."""
        drawn = augment.occlusion
        shape = next((shape for shape in drawn.shapes() if shape.trained == self.trained), None)
        fills = [known for known in drawn.fills() if known is not BLACK or drawn.value == 0]
        area = self.covered(severity, height, width)
        on = augment.enabled and drawn.probability > 0
        if not on or shape is None or area is None or fill not in fills:
            return UNSEEN_KIND
        inside = drawn.area[0] <= area <= drawn.area[1]
        if shape.stretches:
            inside = inside and drawn.aspect[0] <= self.aspect(height, width) <= drawn.aspect[1]
        return SEEN if inside else UNSEEN_SIZE


KINDS: Final[dict[str, Occlusion]] = {}
"""All kinds by name, in the order of the benchmark."""
Kind = TypeVar("Kind", bound=type[Occlusion])


def register(kind: Kind) -> Kind:
    """Decorate a class to make it a kind of occlusion.

    Raises:
        ConfigError: if its name or number is taken.
    """
    for other in KINDS.values():
        if kind.name == other.name or kind.number == other.number:
            raise ConfigError(f"{kind.__name__}: {other.name!r} already has the name or the number")
    KINDS[kind.name] = kind()
    return kind


def kind_label(name: str) -> str:
    """A kind's name for people; other versions may have other kinds."""
    return KINDS[name].label if name in KINDS else name.replace("_", " ")


def fill_label(name: str) -> str:
    """A fill's name for people; empty where there is nothing to say."""
    return ALL_FILLS[name].label if name in ALL_FILLS else name


# Shapes at random places


class Shape(Occlusion):
    """A shape at a random place: ``augment.occlusion.shape`` in training, an area for each severity here.

    In the benchmark it lies wholly inside the image; in training its centre is uniform over the image, so it
    may reach over the edge (a hand or a scarf does), and then covers less than its area.

    Training calls `size` and `edges` with tensors, the benchmark with arrays: use what both know.

    Attributes:
        filled: share of its bounding box that it covers.
        stretches: whether training draws its aspect.
        whole_pixels: whether the benchmark rounds size and place to whole pixels.
        draws: random numbers that the benchmark draws for a sample; the first two say where.
    """

    severities = 5
    graded = True
    filled: ClassVar[float] = 1.0
    stretches: ClassVar[bool] = False
    whole_pixels: ClassVar[bool] = False
    draws: ClassVar[int] = 2

    def size(self, pixels: Array, aspect: Array) -> tuple[Array, Array]:
        """Height and width in pixels, for an area in pixels and a height / width."""
        tall, wide = (pixels * aspect, pixels / aspect) if self.stretches else (pixels, pixels)
        return 2 * (tall / (4 * self.filled)) ** 0.5, 2 * (wide / (4 * self.filled)) ** 0.5

    @abstractmethod
    def edges(self, y: Array, x: Array, half_height: Array, half_width: Array) -> tuple[Array, Array]:
        """The shape as one comparison: a pixel is covered where its row's value is below its column's.

        Two vectors in place of a mask: so a batch of several shapes takes one pass over its pixels.

        Args:
            y, x: (B, H) and (B, W), pixels from the shape's centre to the middles of rows and columns.
            half_height, half_width: of the shape in pixels; nothing may be covered where they are 0.

        Returns:
            (B, H) and (B, W).
        """

    def hidden(self, stream: Stream, height: int, width: int) -> Mask:
        pixels = np.array((SIDES[stream.severity - 1] * min(height, width)) ** 2)
        snap = np.rint if self.whole_pixels else np.positive
        size = snap(np.stack(self.size(pixels, np.array(self.aspect(height, width)))))
        corner = snap(stream.uniforms(self.draws)[:, :2] * (np.array([height, width]) - size))
        half, centre = size / 2, corner + size / 2
        # Pixel p spans [p, p + 1].
        y, x = np.arange(height) + 0.5 - centre[:, :1], np.arange(width) + 0.5 - centre[:, 1:]
        rows, columns = self.edges(y, x, half[0], half[1])
        return np.asarray(rows[:, :, None] < columns[:, None, :])


def trained_shapes() -> dict[str, Shape]:
    """The shapes that training can draw, by their names as ``augment.occlusion.shape``."""
    shapes = [kind for kind in KINDS.values() if isinstance(kind, Shape) and kind.trained]
    return {shape.trained: shape for shape in shapes}


@register
class Square(Shape):
    """A square of side 8, 16, 24, 32, 36 at a random place, wholly inside; a rectangle in training."""

    name, number, trained = "square", 0, "rectangle"
    stretches = whole_pixels = True

    def edges(self, y: Array, x: Array, half_height: Array, half_width: Array) -> tuple[Array, Array]:
        return y**2 >= half_height**2, x**2 < half_width**2  # false < true: not outside, and inside


@register
class Circle(Shape):
    """A circle of the same area, likewise."""

    name, number, trained = "circle", 1, "circle"
    filled = math.pi / 4

    def edges(self, y: Array, x: Array, half_height: Array, half_width: Array) -> tuple[Array, Array]:
        return y**2, half_height**2 - x**2


@register
class Cells(Occlusion):
    """4, 16, 36, 64, 81 random cells of a 12 x 12 grid (4 px at 48 px)."""

    name, number = "cells", 2
    severities = 5
    graded = True

    def hidden(self, stream: Stream, height: int, width: int) -> Mask:
        side, count = 12, round(SIDES[stream.severity - 1] ** 2 * 144)
        ranks = stream.bytes(8 * side**2).view("<u8").argsort(axis=1, kind="stable")
        chosen = np.zeros(ranks.shape, dtype=bool)
        np.put_along_axis(chosen, ranks[:, :count], True, axis=1)
        rows, columns = np.arange(height) * side // height, np.arange(width) * side // width
        return chosen.reshape(-1, side, side)[:, rows][:, :, columns]


@register
class Patch(Square):
    """The square, showing the same place of another person's face, as in CutMix."""

    name, number, trained = "patch", 3, ""
    fills = (FACE,)
    draws = 3  # the third chooses the face

    def paint(self, images: Images, fill: Fill, stream: Stream, faces: Faces) -> Images:
        return faces.others(stream.index, stream.uniforms(self.draws)[:, 2])


# Covers that lie where FER2013's and CK+'s crops have eyes and mouth


class Fixed(Occlusion):
    """What lies in the same place in every image."""

    @abstractmethod
    def region(self, y: Floats, x: Floats) -> Mask:
        """The covered pixels, bool (H, W), by their centres in 48ths: y (H, 1) and x (1, W)."""

    def hidden(self, stream: Stream, height: int, width: int) -> Mask:
        return self.region(*_centres(height, width))[None]

    def covered(self, severity: int, height: int, width: int) -> float:
        return float(self.region(*_centres(height, width)).mean())


def _centres(height: int, width: int) -> tuple[Floats, Floats]:
    y = (np.arange(height)[:, None] + 0.5) * UNITS / height
    x = (np.arange(width)[None, :] + 0.5) * UNITS / width
    return y, x


class Band(Fixed):
    """A rectangle: top, bottom, left and right in 48ths, left and right as one sees the image."""

    trained = "rectangle"
    box: ClassVar[tuple[int, int, int, int]]

    def region(self, y: Floats, x: Floats) -> Mask:
        top, bottom, left, right = self.box
        return (top <= y) & (y < bottom) & (left <= x) & (x < right)

    def aspect(self, height: int, width: int) -> float:
        top, bottom, left, right = self.box
        return (bottom - top) * height / ((right - left) * width)


@register
class EyeBand(Band):
    """Rows 10 to 22, the whole width."""

    name, number, box = "eye_band", 4, (10, 22, 0, 48)


@register
class MouthBand(Band):
    """Rows 31 to 43, the whole width."""

    name, number, box = "mouth_band", 5, (31, 43, 0, 48)


@register
class LeftHalf(Band):
    """The left half of the image, as one sees it."""

    name, number, box = "left_half", 6, (0, 48, 0, 24)


@register
class RightHalf(Band):
    """The right half of the image, as one sees it."""

    name, number, box = "right_half", 7, (0, 48, 24, 48)


@register
class Glasses(Fixed):
    """Drawn sunglasses: two ellipses 15 x 11 around (15.5, 17.5) and (32.5, 17.5), bridge, temples."""

    name, number, fills = "glasses", 8, (DRAWN,)

    def region(self, y: Floats, x: Floats) -> Mask:
        off_centre = abs(x - 24)
        bar = (abs(y - 16.5) < 1) & ((off_centre < 2) | (off_centre > 15))
        return self._ellipses(y, x, 7.5, 5.5) | bar

    def paint(self, images: Images, fill: Fill, stream: Stream, faces: Faces) -> Images:
        lenses = self._ellipses(*_centres(*images.shape[2:]), 6.5, 4.5)
        return np.where(lenses, np.uint8(40), np.uint8(0))

    def _ellipses(self, y: Floats, x: Floats, half_width: float, half_height: float) -> Mask:
        across, down = (abs(x - 24) - 8.5) / half_width, (y - 17.5) / half_height
        return np.asarray(across**2 + down**2 < 1)


@register
class SurgicalMask(Fixed):
    """A drawn surgical mask, from row 24 over the nose to the chin, 34 wide, with straps."""

    name, number, fills = "mask", 9, (DRAWN,)

    def region(self, y: Floats, x: Floats) -> Mask:
        off_centre = abs(x - 24)
        strap = (off_centre >= 17) & (abs(y - (28.5 - (off_centre - 17) * 0.5)) < 1)
        return self._cloth(y, x) | strap

    def paint(self, images: Images, fill: Fill, stream: Stream, faces: Faces) -> Images:
        y, x = _centres(*images.shape[2:])
        folds = self._cloth(y, x) & ((y - 30) % 5 < 1) & (abs(x - 24) < 15) & (y > 29) & (y < 42)
        return np.where(folds, np.uint8(160), np.uint8(200))

    def _cloth(self, y: Floats, x: Floats) -> Mask:
        off_centre = abs(x - 24)
        sag = off_centre**2 / 64  # over the nose, falling to the cheeks
        return np.asarray((y > 24 + sag) & (y < 48 - sag) & (off_centre < 17))


# Noise


class Noise(Occlusion):
    """Noise in every value, with the levels of ImageNet-C (Hendrycks and Dietterich, Benchmarking neural
    network robustness to common corruptions and perturbations, ICLR 2019) in ``amounts``."""

    severities = 5
    fills = (NONE,)
    amounts: ClassVar[tuple[float, ...]]

    def hidden(self, stream: Stream, height: int, width: int) -> Mask:
        return np.zeros((1, height, width), dtype=bool)

    def covered(self, severity: int, height: int, width: int) -> None:
        return None

    def halfwords(self, images: Images, stream: Stream) -> npt.NDArray[np.uint16]:
        """Uniform 16-bit numbers, one for each value of the images."""
        return stream.bytes(2 * images[0].size).view("<u2").reshape(images.shape)


@register
class GaussianNoise(Noise):
    """Sigma 0.08, 0.12, 0.18, 0.26, 0.38 where white is 1."""

    name, number = "gaussian_noise", 10
    amounts = (0.08, 0.12, 0.18, 0.26, 0.38)

    @property
    def label(self) -> str:
        return "Gaussian noise"

    def cover(self, images: Images, fill: Fill, stream: Stream, faces: Faces) -> Images:
        from ferdist.augment.noise import normal_quantiles

        quantiles = normal_quantiles().numpy()
        levels = np.rint(255 * self.amounts[stream.severity - 1] * quantiles).astype(np.int16)
        noisy = images + levels[self.halfwords(images, stream)]
        return np.asarray(noisy.clip(0, 255), dtype=np.uint8)

    def seen(self, severity: int, fill: Fill, augment: AugmentConfig, height: int, width: int) -> str:
        noise = augment.noise
        if not (augment.enabled and noise.probability > 0 and noise.sigma[1] > 0):
            return UNSEEN_KIND
        inside = noise.sigma[0] <= self.amounts[severity - 1] <= noise.sigma[1]
        return SEEN if inside else UNSEEN_SIZE


@register
class ImpulseNoise(Noise):
    """3, 6, 9, 17, 27 % of the values become black or white."""

    name, number = "impulse_noise", 11
    amounts = (0.03, 0.06, 0.09, 0.17, 0.27)

    def cover(self, images: Images, fill: Fill, stream: Stream, faces: Faces) -> Images:
        draws, half = self.halfwords(images, stream), round(self.amounts[stream.severity - 1] * 2**15)
        return np.where(draws < half, np.uint8(0), np.where(draws < 2 * half, np.uint8(255), images))
