"""Random fields: uniform bytes and Gaussian noise, from an explicit generator on its own device.

Both are cut from 64-bit words, since drawing words is what costs: a byte takes an eighth of one, a Gaussian
value a quarter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

LEVELS = 2**16


def _random_words(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """`size` independent integers, uniform over all values of the integer `dtype`."""
    words = torch.empty(-(-size * dtype.itemsize // 8), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(dtype)[:size]


@cache
def normal_quantiles(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    """The normal quantiles at the middles of 65,536 equally likely intervals: (65536,), not to be changed.

    They reach to +-4.3 and are finer than the 256 gray levels that they are added to.
    """
    middles = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    quantiles: Tensor = torch.special.ndtri(middles)
    return quantiles.to(device, dtype)


def uniform_bytes(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """uint8 noise of the given shape, uniform over 0-255."""
    return _random_words(math.prod(shape), torch.uint8, generator).view(*shape)


def standard_normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """float32 Gaussian noise of the given shape, mean 0, standard deviation 1.

    One of `normal_quantiles` for each value, at half the cost of `torch.randn` on a CPU.
    """
    index = _random_words(math.prod(shape), torch.int16, generator).to(torch.int32).add_(LEVELS // 2)
    return normal_quantiles(generator.device, torch.float32).index_select(0, index).view(*shape)


def add_noise_(images: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Add noise of standard deviation `sigma` in place, and clamp to what an image can hold.

    Args:
        images: float (B, C, H, W) in [0, 1].
        noise: float (B, C, H, W), standard normal.
        sigma: float (B,), in units of white.
    """
    return images.addcmul_(noise, sigma[:, None, None, None]).clamp_(0, 1)
