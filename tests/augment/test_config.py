"""The augment section: errors that name the key."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from ferdist.augment import (
    AugmentConfig,
    GeometryConfig,
    MixupConfig,
    NoiseConfig,
    OcclusionConfig,
    PhotometricConfig,
)
from ferdist.errors import ConfigError

BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: GeometryConfig(flip=1.5), "augment.geometry.flip is 1.5: give a number from 0 to 1"),
    (lambda: GeometryConfig(probability=-0.1), "augment.geometry.probability is -0.1"),
    (lambda: GeometryConfig(rotate=181), "augment.geometry.rotate is 181: give a number from 0 to 180"),
    (lambda: GeometryConfig(scale=[1.2, 0.8]), "augment.geometry.scale is [1.2, 0.8]: give [low, high]"),
    (lambda: GeometryConfig(scale=[0.0, 1.0]), "0.1 <= low <= high <= 10"),
    (lambda: GeometryConfig(translate=2), "augment.geometry.translate is 2"),
    (lambda: PhotometricConfig(probability=float("nan")), "augment.photometric.probability is nan"),
    (lambda: PhotometricConfig(brightness=1.1), "augment.photometric.brightness is 1.1"),
    (lambda: PhotometricConfig(contrast=True), "augment.photometric.contrast is True"),
    (lambda: OcclusionConfig(probability="often"), "augment.occlusion.probability is 'often'"),
    (
        lambda: OcclusionConfig(shape="square"),
        "augment.occlusion.shape is 'square': give one of rectangle, circle",
    ),
    (lambda: OcclusionConfig(area=[0.02]), "augment.occlusion.area is [0.02]: give [low, high]"),
    (lambda: OcclusionConfig(area=[0.1, 1.01]), "0 <= low <= high <= 1"),
    (lambda: OcclusionConfig(area=0.3), "augment.occlusion.area is 0.3"),
    (lambda: OcclusionConfig(area=["a", "b"]), "augment.occlusion.area is ['a', 'b']"),
    (lambda: OcclusionConfig(aspect=[0.0, 1.0]), "augment.occlusion.aspect is [0.0, 1.0]"),
    (lambda: OcclusionConfig(fill="black"), "augment.occlusion.fill is 'black': give one of constant, mean"),
    (lambda: OcclusionConfig(value=255), "augment.occlusion.value is 255: give a number from 0 to 1"),
    (lambda: NoiseConfig(probability=2), "augment.noise.probability is 2"),
    (lambda: NoiseConfig(sigma=[0.0, float("inf")]), "augment.noise.sigma is [0.0, inf]"),
    (lambda: MixupConfig(probability=2), "augment.mixup.probability is 2"),
    (lambda: MixupConfig(alpha=0), "augment.mixup.alpha is 0: give a number from 0.01 to 100"),
    (lambda: AugmentConfig(enabled="yes"), "augment.enabled is 'yes': give true or false"),
]


@pytest.mark.parametrize(("build", "message"), BAD, ids=[message.split(":")[0] for _, message in BAD])
def test_a_bad_value_is_named_with_what_is_allowed(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        build()
    assert "\n" not in str(error.value)


def test_the_ends_of_every_range_are_allowed() -> None:
    GeometryConfig(flip=1, probability=0, rotate=180, scale=[1, 1], translate=1)
    PhotometricConfig(probability=1, brightness=1, contrast=0)
    OcclusionConfig(probability=1, area=[0, 1], aspect=[1, 1], value=1)
    NoiseConfig(probability=1, sigma=[1, 1])
