"""Batched augmentation on the device: occlusion, noise, geometry, brightness and contrast, and mixup.

What needs PyTorch is imported at its first use, so that configs do without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    """The public name from the module that has it (PEP 562)."""
    for module in ("config", "pipeline", "mixup") if name in __all__ else ():
        if hasattr(found := import_module(f"{__name__}.{module}"), name):
            return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
