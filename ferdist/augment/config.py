"""The `augment` section of a configuration.

Every range is a pair `[low, high]`; every part has its own probability, per sample, and 0 turns it off.
The defaults are the published FER2013 recipe of 73.70 % (rotate 10 degrees, scale 0.8-1.2, translate,
brightness, contrast and flip, each for half of the samples) with half its translation and brightness, plus
occlusion and noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ferdist.augment.kinds import FILLS, Fill, Shape, trained_shapes
from ferdist.errors import ConfigError


def _check(part: str, config: object, **allowed: tuple[float, float] | list[float]) -> None:
    """Refuse numbers outside of (low, high), and ranges that do not lie within [low, high]."""
    for key, bounds in allowed.items():
        value, (low, high) = getattr(config, key), bounds
        is_range = isinstance(bounds, list)
        numbers = value if is_range and isinstance(value, list | tuple) else [value]
        known = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
        if not (known and len(numbers) == 1 + is_range and low <= numbers[0] <= numbers[-1] <= high):
            within = f"[low, high] with {low:g} <= low <= high <= {high:g}"
            wanted = within if is_range else f"a number from {low:g} to {high:g}"
            raise ConfigError(f"augment.{part}.{key} is {value!r}: give {wanted}")


def _check_choice(key: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        raise ConfigError(f"augment.{key} is {value!r}: give one of {', '.join(choices)}")


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
        _check("geometry", self, flip=(0, 1), probability=(0, 1), rotate=(0, 180))
        _check("geometry", self, scale=[0.1, 10], translate=(0, 1))


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
        _check("photometric", self, probability=(0, 1), brightness=(0, 1), contrast=(0, 1))


@dataclass
class OcclusionConfig:
    """One shape over the face.

    Attributes:
        probability: probability that a sample is occluded.
        shape: one of `ferdist.augment.kinds`, such as rectangle or circle; or both (each of these two for
            half of the occluded samples).
        area: range of its area as a fraction of the image's; uniform.
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
        _check("occlusion", self, probability=(0, 1), area=[0, 1], aspect=[0.01, 100], value=(0, 1))
        _check_choice("occlusion.shape", self.shape, [*trained_shapes(), "both"])
        _check_choice("occlusion.fill", self.fill, [*(fill.trained for fill in FILLS), "random"])

    def shapes(self) -> tuple[Shape, ...]:
        """The shapes that are drawn, all equally often."""
        known = trained_shapes()
        return (known["circle"], known["rectangle"]) if self.shape == "both" else (known[self.shape],)

    def fills(self) -> tuple[Fill, ...]:
        """The fills that are drawn, all equally often."""
        return FILLS if self.fill == "random" else tuple(one for one in FILLS if one.trained == self.fill)


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
        _check("noise", self, probability=(0, 1), sigma=[0, 1])


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
        _check("mixup", self, probability=(0, 1), alpha=(0.01, 100))


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
