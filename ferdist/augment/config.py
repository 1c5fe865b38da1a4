"""The `augment` section of a configuration.

Plain types only (float, bool, str, list[float]), so that omegaconf builds structured configurations on it.
Every range is a pair `[low, high]`; every part has its own probability, per sample, and 0 turns it off.
The defaults are the published FER2013 recipe of 73.70 % (rotate 10 degrees, scale 0.8-1.2, translate,
brightness, contrast and flip, each for half of the samples) with half its translation and brightness, plus
occlusion and noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from ferdist.errors import ConfigError

SHAPES = ("rectangle", "circle", "both")
FILLS = ("constant", "mean", "noise", "random")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_number(key: str, value: object, low: float, high: float) -> None:
    if not (_is_number(value) and low <= value <= high):
        raise ConfigError(f"{key} is {value!r}: give a number from {low:g} to {high:g}")


def _require_range(key: str, value: object, low: float, high: float) -> None:
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
    if not (is_pair and low <= value[0] <= value[1] <= high):  # type: ignore[index]
        raise ConfigError(f"{key} is {value!r}: give [low, high] with {low:g} <= low <= high <= {high:g}")


def _require_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key} is {value!r}: give one of {', '.join(choices)}")


@dataclass
class GeometryConfig:
    """Flip, and rotation, scale and translation about the image's centre.

    Attributes:
        flip: probability of a left-right flip.
        probability: probability that a sample is rotated, scaled and translated.
        rotate: largest rotation in degrees; the angle is uniform in [-rotate, rotate].
        scale: range of the magnification; above 1 the face grows.
        translate: largest shift as a fraction of the width and of the height, each way.
    """

    flip: float = 0.5
    probability: float = 0.5
    rotate: float = 10.0
    scale: list[float] = field(default_factory=lambda: [0.8, 1.2])
    translate: float = 0.1

    def __post_init__(self) -> None:
        _require_number("augment.geometry.flip", self.flip, 0, 1)
        _require_number("augment.geometry.probability", self.probability, 0, 1)
        _require_number("augment.geometry.rotate", self.rotate, 0, 180)
        _require_range("augment.geometry.scale", self.scale, 0.1, 10)
        _require_number("augment.geometry.translate", self.translate, 0, 1)


@dataclass
class PhotometricConfig:
    """Brightness and contrast.

    Attributes:
        probability: probability that a sample's brightness and contrast are changed.
        brightness: intensities are multiplied by a factor uniform in [1 - brightness, 1 + brightness].
        contrast: distances from the image's mean are multiplied by one in [1 - contrast, 1 + contrast].
    """

    probability: float = 0.5
    brightness: float = 0.25
    contrast: float = 0.25

    def __post_init__(self) -> None:
        _require_number("augment.photometric.probability", self.probability, 0, 1)
        _require_number("augment.photometric.brightness", self.brightness, 0, 1)
        _require_number("augment.photometric.contrast", self.contrast, 0, 1)


@dataclass
class OcclusionConfig:
    """One rectangle or circle over the face.

    Attributes:
        probability: probability that a sample is occluded.
        shape: rectangle, circle or both (each for half of the occluded samples).
        area: range of the shape's area as a fraction of the image's; uniform.
        aspect: range of a rectangle's height / width; log-uniform.
        fill: constant (`value`), mean (of the training data, 0 after normalisation), noise (uniform over
            all gray levels, per pixel and channel) or random (one of the three per sample).
        value: gray level of the constant fill, 0 (black) to 1.
    """

    probability: float = 0.5
    shape: str = "both"
    area: list[float] = field(default_factory=lambda: [0.02, 0.33])
    aspect: list[float] = field(default_factory=lambda: [0.3, 3.3])
    fill: str = "random"
    value: float = 0.0

    def __post_init__(self) -> None:
        _require_number("augment.occlusion.probability", self.probability, 0, 1)
        _require_choice("augment.occlusion.shape", self.shape, SHAPES)
        _require_range("augment.occlusion.area", self.area, 0, 1)
        _require_range("augment.occlusion.aspect", self.aspect, 0.01, 100)
        _require_choice("augment.occlusion.fill", self.fill, FILLS)
        _require_number("augment.occlusion.value", self.value, 0, 1)


@dataclass
class NoiseConfig:
    """Gaussian noise, independent per pixel and channel.

    Attributes:
        probability: probability that a sample gets noise.
        sigma: range of its standard deviation, where white is 1; uniform.
    """

    probability: float = 0.15
    sigma: list[float] = field(default_factory=lambda: [0.0, 0.1])

    def __post_init__(self) -> None:
        _require_number("augment.noise.probability", self.probability, 0, 1)
        _require_range("augment.noise.sigma", self.sigma, 0, 1)


@dataclass
class MixupConfig:
    """Mixup (Zhang et al. 2018); off by default, since it pays only in long trainings.

    Attributes:
        probability: probability that a sample is mixed with its partner.
        alpha: the mixing weight is drawn from Beta(alpha, alpha).
    """

    probability: float = 0.0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _require_number("augment.mixup.probability", self.probability, 0, 1)
        _require_number("augment.mixup.alpha", self.alpha, 0.01, 100)


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
