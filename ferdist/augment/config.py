"""The `augment` section of a configuration.

Plain types only (float, bool, str, list[float]), so that omegaconf builds structured configurations on it.
Every range is a pair `[low, high]`; every part has its own probability, per sample, and 0 turns it off.
The defaults are the published FER2013 recipe of 73.70 % (rotate 10 degrees, scale 0.8-1.2, translate,
brightness, contrast and flip, each for half of the samples) with half its translation and brightness, plus
occlusion and noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import ClassVar, TypeGuard

from ferdist.augment.occlusions import FILLS, Fill, Shape, trained_shapes
from ferdist.errors import ConfigError

Check = dict[str, Callable[[object], str | None]]
"""Metadata of a field: ``error`` says what is wrong with a value."""


def _number(low: float, high: float) -> Check:
    def error(value: object) -> str | None:
        inside = _is_number(value) and low <= value <= high
        return None if inside else f"give a number from {low:g} to {high:g}"

    return {"error": error}


def _range(low: float, high: float) -> Check:
    def error(value: object) -> str | None:
        is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
        inside = is_pair and low <= value[0] <= value[1] <= high  # type: ignore[index]
        return None if inside else f"give [low, high] with {low:g} <= low <= high <= {high:g}"

    return {"error": error}


def _choice(choices: Callable[[], list[str]]) -> Check:
    return {"error": lambda value: None if value in choices() else f"give one of {', '.join(choices())}"}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Part:
    """Checks the fields of a part of the section."""

    part: ClassVar[str]

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if error := one.metadata["error"](value):
                raise ConfigError(f"augment.{self.part}.{one.name} is {value!r}: {error}")


@dataclass
class GeometryConfig(_Part):
    """Flip, and rotation, scale and translation about the image's centre.

    Attributes:
        flip: probability of a left-right flip.
        probability: probability that a sample is rotated, scaled and translated.
        rotate: largest rotation in degrees; the angle is uniform in [-rotate, rotate].
        scale: range of the magnification; above 1 the face grows.
        translate: largest shift as a fraction of the width and of the height, each way.
    """

    part = "geometry"
    flip: float = field(default=0.5, metadata=_number(0, 1))
    probability: float = field(default=0.5, metadata=_number(0, 1))
    rotate: float = field(default=10.0, metadata=_number(0, 180))
    scale: list[float] = field(default_factory=lambda: [0.8, 1.2], metadata=_range(0.1, 10))
    translate: float = field(default=0.1, metadata=_number(0, 1))


@dataclass
class PhotometricConfig(_Part):
    """Brightness and contrast.

    Attributes:
        probability: probability that a sample's brightness and contrast are changed.
        brightness: intensities are multiplied by a factor uniform in [1 - brightness, 1 + brightness].
        contrast: distances from the image's mean are multiplied by one in [1 - contrast, 1 + contrast].
    """

    part = "photometric"
    probability: float = field(default=0.5, metadata=_number(0, 1))
    brightness: float = field(default=0.25, metadata=_number(0, 1))
    contrast: float = field(default=0.25, metadata=_number(0, 1))


@dataclass
class OcclusionConfig(_Part):
    """One shape over the face.

    Attributes:
        probability: probability that a sample is occluded.
        shape: a shape of `ferdist.augment.occlusions` such as rectangle or circle, or both (each of these two
            for half of the occluded samples).
        area: range of the shape's area as a fraction of the image's; uniform.
        aspect: range of a rectangle's height / width; log-uniform.
        fill: constant (`value`), mean (of the training data, 0 after normalisation), noise (uniform over
            all gray levels, per pixel and channel) or random (one of the three per sample).
        value: gray level of the constant fill, 0 (black) to 1.
    """

    part = "occlusion"
    probability: float = field(default=0.5, metadata=_number(0, 1))
    shape: str = field(default="both", metadata=_choice(lambda: [*trained_shapes(), "both"]))
    area: list[float] = field(default_factory=lambda: [0.02, 0.33], metadata=_range(0, 1))
    aspect: list[float] = field(default_factory=lambda: [0.3, 3.3], metadata=_range(0.01, 100))
    fill: str = field(
        default="random", metadata=_choice(lambda: [*(fill.trained for fill in FILLS), "random"])
    )
    value: float = field(default=0.0, metadata=_number(0, 1))

    def shapes(self) -> tuple[Shape, ...]:
        """The shapes that are drawn, all equally often."""
        known = trained_shapes()
        return (known["circle"], known["rectangle"]) if self.shape == "both" else (known[self.shape],)

    def fills(self) -> tuple[Fill, ...]:
        """The fills that are drawn, all equally often."""
        return FILLS if self.fill == "random" else tuple(one for one in FILLS if one.trained == self.fill)


@dataclass
class NoiseConfig(_Part):
    """Gaussian noise, independent per pixel and channel.

    Attributes:
        probability: probability that a sample gets noise.
        sigma: range of its standard deviation, where white is 1; uniform.
    """

    part = "noise"
    probability: float = field(default=0.15, metadata=_number(0, 1))
    sigma: list[float] = field(default_factory=lambda: [0.0, 0.1], metadata=_range(0, 1))


@dataclass
class MixupConfig(_Part):
    """Mixup (Zhang et al. 2018); off by default, since it pays only in long trainings.

    Attributes:
        probability: probability that a sample is mixed with its partner.
        alpha: the mixing weight is drawn from Beta(alpha, alpha).
    """

    part = "mixup"
    probability: float = field(default=0.0, metadata=_number(0, 1))
    alpha: float = field(default=1.0, metadata=_number(0.01, 100))


@dataclass
class AugmentConfig:
    """What is done to training images; `enabled: false` turns all of it off, mixup included."""

    enabled: bool = True
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    photometric: PhotometricConfig = field(default_factory=PhotometricConfig)
    occlusion: OcclusionConfig = field(default_factory=OcclusionConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    mixup: MixupConfig = field(default_factory=MixupConfig)

    def __post_init__(self) -> None:
        if not isinstance(self.enabled, bool):
            raise ConfigError(f"augment.enabled is {self.enabled!r}: give true or false")
