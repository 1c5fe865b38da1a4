"""Batched augmentation on the device: occlusion, noise, geometry, brightness and contrast, and mixup."""

from ferdist.augment.config import (
    AugmentConfig,
    GeometryConfig,
    MixupConfig,
    NoiseConfig,
    OcclusionConfig,
    PhotometricConfig,
)
from ferdist.augment.mixup import draw_mixup, mix
from ferdist.augment.pipeline import Augment, Draws, denormalise, normalise

__all__ = [
    "Augment",
    "AugmentConfig",
    "Draws",
    "GeometryConfig",
    "MixupConfig",
    "NoiseConfig",
    "OcclusionConfig",
    "PhotometricConfig",
    "denormalise",
    "draw_mixup",
    "mix",
    "normalise",
]
