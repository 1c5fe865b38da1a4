"""Mixup weights and blending."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from ferdist.augment import draw_mixup, mix


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_weights_follow_the_beta_distribution(alpha: float) -> None:
    lam = draw_mixup(5000, alpha, 1.0, _generator())
    assert stats.kstest(lam.double().numpy(), "beta", args=(alpha, alpha)).pvalue > 1e-3


def test_probability_is_per_sample() -> None:
    lam = draw_mixup(10_000, 1.0, 0.3, _generator())
    assert abs((lam < 1).float().mean() - 0.3) < 4 * (0.3 * 0.7 / 10_000) ** 0.5
    assert (draw_mixup(100, 1.0, 0.0, _generator()) == 1).all()


def test_the_smallest_alpha_is_finite() -> None:
    lam = draw_mixup(5000, 0.01, 1.0, _generator())
    assert ((lam >= 0) & (lam <= 1)).all()
    assert ((lam < 0.01) | (lam > 0.99)).float().mean() > 0.9


def test_weights_depend_on_the_generator_only() -> None:
    first = draw_mixup(16, 0.5, 0.5, _generator(3))
    torch.manual_seed(99)
    assert torch.equal(first, draw_mixup(16, 0.5, 0.5, _generator(3)))
    assert not torch.equal(first, draw_mixup(16, 0.5, 0.5, _generator(4)))


def test_each_sample_is_blended_with_the_reversed_batch() -> None:
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    lam = torch.tensor([0.75, 0.5, 1.0])
    mixed = mix(images, lam)
    assert mixed[:, 0, 0, 0].tolist() == [0.5, 1.0, 2.0]  # the middle is its own partner
    targets = mix(torch.eye(3), lam)
    assert targets.tolist() == [[0.75, 0, 0.25], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weight_one_changes_nothing(dtype: torch.dtype) -> None:
    images = torch.randn(5, 3, 4, 4, dtype=dtype)
    mixed = mix(images, torch.ones(5))
    assert mixed.dtype == dtype
    assert torch.equal(mixed, images)
