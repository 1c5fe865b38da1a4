"""Occluders: exact pixels against brute force and torchvision, areas against the analytic ones, fills."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF

from ferdist.augment.occlusion import CONSTANT, MEAN, NOISE, occlude_, occluder_mask, occluder_size

RECTANGLE, CIRCLE = torch.tensor([False]), torch.tensor([True])


def _mask(
    centre: tuple[float, float], size: tuple[float, float], circle: torch.Tensor, image_size: tuple[int, int]
) -> torch.Tensor:
    return occluder_mask(torch.tensor([centre]), torch.tensor([size]), circle, *image_size)[0]


@pytest.mark.parametrize(
    "top, left, height, width", [(0, 0, 1, 1), (3, 5, 10, 4), (0, 2, 20, 7), (19, 29, 1, 1)]
)
def test_a_whole_pixel_rectangle_is_torchvisions_erase(top: int, left: int, height: int, width: int) -> None:
    mask = _mask((top + (height - 1) / 2, left + (width - 1) / 2), (height, width), RECTANGLE, (20, 30))
    expected = TF.erase(torch.zeros(1, 20, 30), top, left, height, width, torch.ones(1, height, width))[0]
    assert torch.equal(mask, expected)
    assert mask.sum() == height * width


def test_shapes_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    count, height, width = 60, 31, 44
    centre = rng.uniform([-5, -5], [height + 5, width + 5], (count, 2)).astype(np.float32)
    size = rng.uniform(0, 40, (count, 2)).astype(np.float32)
    circle = rng.random(count) < 0.5
    size[circle, 1] = size[circle, 0]
    masks = occluder_mask(*map(torch.from_numpy, (centre, size, circle)), height, width).numpy()
    y, x = np.mgrid[:height, :width].astype(np.float64)
    for k in range(count):
        dy, dx = y - centre[k, 0], x - centre[k, 1]
        if circle[k]:
            expected = np.hypot(dy, dx) < size[k, 0] / 2
        else:
            expected = (abs(dy) < size[k, 0] / 2) & (abs(dx) < size[k, 1] / 2)
        assert np.array_equal(masks[k], expected), k


def test_covered_area_is_the_analytic_area() -> None:
    """With centres uniform within a pixel, the expected number of covered pixels is the area itself."""
    generator = torch.Generator().manual_seed(0)
    count, height, width = 6000, 60, 80
    centre = torch.tensor([30.0, 40.0]) + torch.rand(count, 2, generator=generator)
    area = torch.full((count,), 0.15)
    for circle, aspect in [(False, 0.5), (False, 1.7), (True, 1.0)]:
        is_circle = torch.full((count,), circle)
        size = occluder_size(area, torch.full((count,), aspect), is_circle, height, width)
        covered = occluder_mask(centre, size, is_circle, height, width).sum((1, 2))
        expected = 0.15 * height * width
        assert abs(covered.mean().item() - expected) < 1.0
        assert (covered - expected).abs().max() < 0.12 * expected  # at most about the outline's pixels


def test_size_has_the_area_and_the_aspect() -> None:
    area, aspect = torch.tensor([0.02, 0.33, 1.0, 0.2]), torch.tensor([0.3, 3.3, 1.0, 2.0])
    size = occluder_size(area, aspect, torch.tensor([False, False, False, True]), 48, 32)
    torch.testing.assert_close(size[:3].prod(1), area[:3] * 48 * 32)
    torch.testing.assert_close(size[:3, 0] / size[:3, 1], aspect[:3])
    assert size[3, 0] == size[3, 1]
    torch.testing.assert_close(math.pi / 4 * size[3, 0] ** 2, area[3] * 48 * 32)


def test_a_circle_is_round_where_the_image_is_not_square() -> None:
    mask = _mask((20, 50), (25, 25), CIRCLE, (41, 101))
    rows, columns = mask.any(1).sum(), mask.any(0).sum()
    assert rows == columns == 25
    around = mask[8:33, 38:63]
    assert torch.equal(around, around.T)
    assert torch.equal(around, around.flip(0))
    assert around[0, 0] == 0  # not a square


def test_the_whole_image_and_nothing() -> None:
    size = occluder_size(torch.tensor([1.0]), torch.tensor([20 / 30]), RECTANGLE, 20, 30)
    assert occluder_mask(torch.tensor([[9.5, 14.5]]), size, RECTANGLE, 20, 30).all()
    for shape in (RECTANGLE, CIRCLE):
        assert not _mask((7, 9), (0, 0), shape, (20, 30)).any()


def test_a_shape_may_reach_over_the_edge() -> None:
    mask = _mask((-0.5, -0.5), (20, 12), RECTANGLE, (20, 30))
    assert mask.sum() == 10 * 6  # a quarter, at the corner
    assert mask[:10, :6].all()


@pytest.mark.parametrize("channels", [1, 3])
def test_fills(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, channels, 6, 8, generator=generator)
    texture = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=generator)
    mask = (torch.rand(4, 6, 8, generator=generator) < 0.5).float()
    mask[3] = 0
    mean = torch.tensor([0.1, 0.2, 0.3][:channels]).view(-1, 1, 1)
    fill = torch.tensor([CONSTANT, MEAN, NOISE, NOISE])
    painted = occlude_(images.clone(), mask, fill, value=0.25, mean=mean, texture=texture)
    covered = mask[:, None].expand_as(images) == 1
    assert torch.equal(painted[~covered], images[~covered])
    assert (painted[0][covered[0]] == 0.25).all()
    assert torch.equal(painted[1][covered[1]], mean.expand(channels, 6, 8)[covered[1]])
    torch.testing.assert_close(painted[2][covered[2]], texture[2][covered[2]] / 255)


def test_without_texture_there_is_no_noise_fill() -> None:
    images = torch.rand(2, 1, 4, 4)
    fill = torch.tensor([CONSTANT, MEAN])
    mean = torch.full((1, 1, 1), 0.5)
    painted = occlude_(images, torch.ones(2, 4, 4), fill, value=1.0, mean=mean, texture=None)
    assert (painted[0] == 1).all()
    assert (painted[1] == 0.5).all()
