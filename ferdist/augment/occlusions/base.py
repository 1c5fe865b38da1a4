"""What an occlusion is, what it can be filled with, and the registry of its kinds.

Geometry is stated in 48ths of the image's side, the size of FER2013's and CK+'s images, and scales with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ferdist.data.record import Images, Integers
from ferdist.errors import ConfigError

if TYPE_CHECKING:
    from ferdist.augment.config import AugmentConfig

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Array = TypeVar("Array", Tensor, npt.NDArray[Any])

UNITS: Final = 48
SIDES: Final = (8 / 48, 16 / 48, 24 / 48, 32 / 48, 36 / 48)
"""For severities 1 to 5: side of a square of the covered area, as a share of the image's shorter side."""

SEEN: Final = "seen"
UNSEEN_SIZE: Final = "unseen size"
UNSEEN_KIND: Final = "unseen kind"


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

    @property
    def _key(self) -> npt.NDArray[np.uint64]:
        state = np.random.SeedSequence([self.seed, self.number, self.severity]).generate_state(2, np.uint64)
        return np.asarray(state, dtype=np.uint64)

    def uniforms(self, count: int) -> Floats:
        """Numbers in [0, 1) for each sample, float64 (B, count): the stream cut into rows of ``count``."""
        rows = int(self.index.max(initial=-1)) + 1
        words = np.random.Philox(key=self._key).random_raw(rows * count).reshape(rows, count)[self.index]
        return np.asarray((words >> np.uint64(11)) * 2.0**-53)

    def bytes(self, count: int) -> npt.NDArray[np.uint8]:
        """Uniform bytes for each sample, uint8 (B, count): each has a part of the counter's range."""
        words, key = -(-count // 8), self._key
        rows = [
            np.random.Philox(key=key, counter=[0, sample, 1, 0]).random_raw(words)
            for sample in self.index.tolist()
        ]
        return np.array(rows, dtype="<u8").reshape(len(self.index), words).view(np.uint8)[:, :count]


class Faces(Protocol):
    """What the benchmark knows of the data."""

    @property
    def mean(self) -> tuple[int, ...]:
        """Gray level 0-255 per channel of the training data's mean."""

    def others(self, index: Integers, choice: Floats) -> Images:
        """For each sample a face of somebody else; ``choice``, float64 (B,) in [0, 1), says which."""


@dataclass(frozen=True)
class Fill:
    """What an occluder shows: a weighted sum of a gray level, the data's mean and noise.

    Attributes:
        name: in results.json and of ``--fills``.
        label: for people; empty where there is nothing to say.
        trained: its name as ``augment.occlusion.fill``; empty where training does not draw it.
        gray: weight of ``augment.occlusion.value`` (in the benchmark: of black).
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


class Occlusion(ABC):
    """A way to cover or spoil a face. The first paragraph of a kind's docstring describes it in the docs.

    Attributes:
        name: in results.json and of ``--kinds``.
        number: its place in the benchmark and part of its streams' keys: unique, and never changed.
        severities: how many it has.
        fills: what it can be filled with.
        graded: whether its severities are covered areas, so that accuracy has a curve over them.
    """

    name: ClassVar[str]
    number: ClassVar[int]
    severities: ClassVar[int] = 1
    fills: ClassVar[tuple[Fill, ...]] = FILLS
    graded: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The name for people."""
        return self.name.replace("_", " ")

    @abstractmethod
    def cover(self, images: Images, severity: int, fill: Fill, stream: Stream, faces: Faces) -> Images:
        """Damaged copies of images, uint8 (B, C, H, W), for the benchmark."""

    def covered(self, severity: int, height: int, width: int) -> float | None:
        """Share of an image's pixels that are replaced, 0 to 1; None where nothing is covered."""
        return None

    def seen(self, severity: int, fill: Fill, augment: AugmentConfig, height: int, width: int) -> str:
        """Whether training with ``augment`` shows this: ``SEEN``, ``UNSEEN_SIZE`` or ``UNSEEN_KIND``."""
        return UNSEEN_KIND


class Occluder(Occlusion):
    """An occlusion that hides pixels.

    Attributes:
        trained: as ``augment.occlusion.shape``, the name of the shape that this is a case of; empty where
            training draws nothing like it.
    """

    trained: ClassVar[str] = ""

    @abstractmethod
    def hidden(self, stream: Stream, severity: int, height: int, width: int) -> Mask:
        """The covered pixels: bool (B, H, W), or (1, H, W) where they are the same for all samples."""

    @abstractmethod
    def covered(self, severity: int, height: int, width: int) -> float:
        """Share of an image's pixels that are covered, 0 to 1."""

    def aspect(self, height: int, width: int) -> float:
        """Its height / width in an image of this size."""
        return 1.0

    def paint(self, images: Images, fill: Fill, stream: Stream, faces: Faces) -> Images:
        """What the covered pixels show, uint8, to be broadcast over ``images``."""
        paint = fill.mean * np.array(faces.mean)[:, None, None]
        if fill.noise:
            paint = paint + fill.noise * stream.bytes(images[0].size).reshape(images.shape)
        return np.rint(paint).astype(np.uint8)

    def cover(self, images: Images, severity: int, fill: Fill, stream: Stream, faces: Faces) -> Images:
        """Copies with the hidden pixels painted over."""
        hidden = self.hidden(stream, severity, *images.shape[2:])[:, None]
        return np.where(hidden, self.paint(images, fill, stream, faces), images)

    def seen(self, severity: int, fill: Fill, augment: AugmentConfig, height: int, width: int) -> str:
        """Seen if shape, fill, area and, for shapes that stretch, aspect lie in the training's ranges."""
        drawn = augment.occlusion
        shape = next((shape for shape in drawn.shapes() if shape.trained == self.trained), None)
        fills = [known for known in drawn.fills() if known is not BLACK or drawn.value == 0]
        if not (augment.enabled and drawn.probability > 0) or shape is None or fill not in fills:
            return UNSEEN_KIND
        inside = drawn.area[0] <= self.covered(severity, height, width) <= drawn.area[1]
        if shape.stretches:
            inside = inside and drawn.aspect[0] <= self.aspect(height, width) <= drawn.aspect[1]
        return SEEN if inside else UNSEEN_SIZE


class Shape(Occluder):
    """An occluder at a random place, which training draws as ``augment.occlusion.shape``.

    In the benchmark it lies wholly inside the image and has the area of ``SIDES``; in training it is placed
    by its centre and may reach over the edge, as a hand or a scarf does, and then covers less than its area.

    Attributes:
        stretches: whether training draws its aspect.
        whole_pixels: whether the benchmark rounds size and place to whole pixels.
        draws: random numbers that the benchmark draws for a sample; the first two say where.
    """

    severities = 5
    graded = True
    stretches: ClassVar[bool] = False
    whole_pixels: ClassVar[bool] = False
    draws: ClassVar[int] = 2

    @abstractmethod
    def size(self, pixels: Array, aspect: Array) -> tuple[Array, Array]:
        """Height and width in pixels, for an area in pixels and a height / width.

        Torch and numpy both call this, as well as `edges`: use only what both know, such as operators and
        ``abs``.
        """

    @abstractmethod
    def edges(self, y: Array, x: Array, half_height: Array, half_width: Array) -> tuple[Array, Array]:
        """The shape as one comparison: a pixel is covered where its row's value is less than its column's.

        Two vectors in place of an image: then a batch of several shapes is one pass over its pixels.

        Args:
            y, x: (B, H) and (B, W), from the shape's centre to the pixels' centres, in pixels.
            half_height, half_width: of the shape, in pixels, (B, 1); 0 must cover nothing.

        Returns:
            (B, H) and (B, W).
        """

    def hidden(self, stream: Stream, severity: int, height: int, width: int) -> Mask:
        """Where `edges` says, wholly inside the image."""
        pixels = np.array((SIDES[severity - 1] * min(height, width)) ** 2)
        snap = np.rint if self.whole_pixels else np.positive
        size = snap(np.stack(self.size(pixels, np.array(self.aspect(height, width)))))
        corner = snap(stream.uniforms(self.draws)[:, :2] * (np.array([height, width]) - size))
        half, centre = size / 2, corner + size / 2
        # Pixel p spans [p, p + 1].
        y, x = np.arange(height) + 0.5 - centre[:, :1], np.arange(width) + 0.5 - centre[:, 1:]
        rows, columns = self.edges(y, x, half[0], half[1])
        return np.asarray(rows[:, :, None] < columns[:, None, :])

    def covered(self, severity: int, height: int, width: int) -> float:
        """The nominal area, which whole pixels meet to within half a pixel of a square's side."""
        return graded_area(severity, height, width)


class Fixed(Occluder):
    """An occluder that lies in the same place in every image."""

    @abstractmethod
    def region(self, y: Floats, x: Floats) -> Mask:
        """The covered pixels, bool (H, W), by their centres in 48ths: y (H, 1) and x (1, W)."""

    def hidden(self, stream: Stream, severity: int, height: int, width: int) -> Mask:
        """The region, for all samples."""
        return self.region(*coordinates(height, width))[None]

    def covered(self, severity: int, height: int, width: int) -> float:
        """The region's share of the pixels."""
        return float(self.region(*coordinates(height, width)).mean())


KINDS: Final[dict[str, Occlusion]] = {}
"""All kinds by name, in the order of their numbers."""

Kind = TypeVar("Kind", bound=type[Occlusion])


def register(kind: Kind) -> Kind:
    """Decorate a class to make it a kind of occlusion.

    Raises:
        ConfigError: if its name or number is taken.
    """
    for other in KINDS.values():
        if other.name == kind.name or other.number == kind.number:
            raise ConfigError(f"{kind.__name__}: {other.name!r} has its name or number {kind.number} already")
    kinds = [*KINDS.values(), kind()]
    KINDS.clear()
    KINDS.update((one.name, one) for one in sorted(kinds, key=lambda one: one.number))
    return kind


def trained_shapes() -> dict[str, Shape]:
    """The shapes that training can draw, by their names as ``augment.occlusion.shape``."""
    shapes = [kind for kind in KINDS.values() if isinstance(kind, Shape) and kind.trained]
    return {shape.trained: shape for shape in shapes}


def kind_label(name: str) -> str:
    """A kind's name for people, of other versions' kinds too."""
    return KINDS[name].label if name in KINDS else name.replace("_", " ")


def fill_label(name: str) -> str:
    """A fill's name for people; empty where there is nothing to say."""
    return ALL_FILLS[name].label if name in ALL_FILLS else name


def graded_area(severity: int, height: int, width: int) -> float:
    """The area of ``SIDES`` as a share of an image's pixels."""
    return SIDES[severity - 1] ** 2 * min(height, width) ** 2 / (height * width)


def coordinates(height: int, width: int) -> tuple[Floats, Floats]:
    """The pixels' centres in 48ths: y (H, 1) and x (1, W)."""
    y = (np.arange(height)[:, None] + 0.5) * UNITS / height
    x = (np.arange(width)[None, :] + 0.5) * UNITS / width
    return y, x
