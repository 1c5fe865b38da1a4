"""Noise, with the levels of ImageNet-C (Hendrycks and Dietterich, Benchmarking neural network robustness to
common corruptions and perturbations, ICLR 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from ferdist.augment.occlusions.base import (
    NONE,
    SEEN,
    UNSEEN_KIND,
    UNSEEN_SIZE,
    Faces,
    Fill,
    Occlusion,
    Stream,
    register,
)
from ferdist.data.record import Images

if TYPE_CHECKING:
    from ferdist.augment.config import AugmentConfig


class Noise(Occlusion):
    """Noise in each value of an image.

    Attributes:
        amounts: by severity.
    """

    severities = 5
    fills = (NONE,)
    amounts: ClassVar[tuple[float, ...]]

    @property
    def label(self) -> str:
        """The name for people, short enough for a table's column."""
        return self.name.removesuffix("_noise")


@register
class GaussianNoise(Noise):
    """Noise of sigma 0.08, 0.12, 0.18, 0.26, 0.38 where white is 1."""

    name, number = "gaussian_noise", 10
    amounts = (0.08, 0.12, 0.18, 0.26, 0.38)

    def cover(self, images: Images, severity: int, fill: Fill, stream: Stream, faces: Faces) -> Images:
        """Adds one of 65,536 equally likely levels, finer than the 256 gray levels of an image."""
        quantiles = ndtri((np.arange(2**16) + 0.5) / 2**16)
        levels = np.rint(255 * self.amounts[severity - 1] * quantiles).astype(np.int16)
        noisy = images + levels[_halfwords(stream, images)]
        return np.asarray(noisy.clip(0, 255), dtype=np.uint8)

    def seen(self, severity: int, fill: Fill, augment: AugmentConfig, height: int, width: int) -> str:
        """Seen if training adds noise of this sigma."""
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

    def cover(self, images: Images, severity: int, fill: Fill, stream: Stream, faces: Faces) -> Images:
        """Black and white are equally likely."""
        draws, half = _halfwords(stream, images), round(self.amounts[severity - 1] * 2**15)
        return np.where(draws < half, np.uint8(0), np.where(draws < 2 * half, np.uint8(255), images))


def _halfwords(stream: Stream, images: Images) -> npt.NDArray[np.uint16]:
    """Uniform 16-bit numbers, one for each value of the images."""
    return stream.bytes(2 * images[0].size).view("<u2").reshape(images.shape)
