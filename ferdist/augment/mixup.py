"""Mixup: each sample blended with its partner in the reversed batch (Zhang et al. 2018, "mixup: Beyond
Empirical Risk Minimization")."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_mixup(samples: int, alpha: float, probability: float, generator: torch.Generator) -> Tensor:
    """Weights of the samples themselves: 1 for a sample that is not mixed, else from Beta(alpha, alpha).

    Args:
        samples: number of weights, B; that of the global batch, so that they do not depend on the world size.
        alpha: above 0; 1 is uniform, below 1 most samples stay nearly pure.
        probability: of being mixed, per sample.
        generator: source of randomness; the weights are on its device.

    Returns:
        float32 (B,) in [0, 1].
    """
    mixed = (
        torch.rand(samples, device=generator.device, dtype=torch.float32, generator=generator) < probability
    )
    # A Dirichlet of two is a Beta, and torch.distributions takes no generator.
    concentration = torch.full((samples, 2), alpha, device=generator.device, dtype=torch.float32)
    weights = torch._sample_dirichlet(concentration, generator=generator)[:, 0]
    return torch.where(mixed, weights, 1.0)


def mix(values: Tensor, lam: Tensor) -> Tensor:
    """`lam * values + (1 - lam) * values.flip(0)`: for images, and for one-hot or soft targets alike.

    The partner is taken within the (micro-)batch given: a middle sample is its own partner.

    Args:
        values: float (B, ...).
        lam: float (B,) from `draw_mixup`, sliced as the batch is.

    Returns:
        Shape and dtype of `values`.
    """
    weights = lam.to(values.dtype).view(-1, *[1] * (values.dim() - 1))
    return torch.lerp(values.flip(0), values, weights)
