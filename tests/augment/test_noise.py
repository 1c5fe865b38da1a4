"""Random fields: their distributions, independence and reproducibility."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from ferdist.augment.noise import add_noise_, standard_normal, uniform_bytes


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bytes_are_uniform_over_all_gray_levels() -> None:
    counts = torch.bincount(uniform_bytes((64, 1, 48, 48), _generator()).flatten().long(), minlength=256)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_noise_is_gaussian() -> None:
    noise = standard_normal((64, 1, 48, 48), _generator())
    assert noise.dtype == torch.float32
    assert stats.kstest(noise.flatten().numpy()[::3], "norm").pvalue > 1e-3
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert 4 < noise.abs().max() < 4.4


@pytest.mark.parametrize("draw", [uniform_bytes, standard_normal])
def test_neighbours_are_independent(draw) -> None:
    field = draw((64, 1, 48, 48), _generator()).double().flatten()
    field = (field - field.mean()) / field.std()
    bound = 4.5 / len(field) ** 0.5  # standard errors
    for lag in (1, 2, 3, 4, 7, 8, 48, 2304):
        assert abs((field[lag:] * field[:-lag]).mean()) < bound, lag


@pytest.mark.parametrize("draw", [uniform_bytes, standard_normal])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 5, 7), (2, 3, 11, 13), (0, 1, 4, 4)])
def test_any_shape_and_reproducible(draw, shape: tuple[int, ...]) -> None:
    first, again = draw(shape, _generator(5)), draw(shape, _generator(5))
    assert first.shape == shape
    assert torch.equal(first, again)
    if first.numel() > 1:
        assert not torch.equal(first, draw(shape, _generator(6)))


def test_noise_is_scaled_per_sample_and_clamped() -> None:
    images = torch.full((3, 1, 64, 64), 0.5)
    noise = standard_normal(images.shape, _generator())
    noisy = add_noise_(images.clone(), noise, torch.tensor([0.0, 0.05, 1.0]))
    assert torch.equal(noisy[0], images[0])
    assert abs(noisy[1].std() - 0.05) < 0.002
    assert (noisy[2].min(), noisy[2].max()) == (0, 1)
