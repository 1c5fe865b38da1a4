"""Occluders of a training batch: exact pixels against brute force and torchvision, areas, fills."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF

from ferdist.augment.kinds import FILLS, trained_shapes
from ferdist.augment.occlusion import occlude_, occluder_mask, occluder_size

SHAPES = [trained_shapes()[name] for name in ("rectangle", "circle")]
RECTANGLE, CIRCLE = torch.tensor([0]), torch.tensor([1])


def _mask(
    centre: tuple[float, float], size: tuple[float, float], shape: torch.Tensor, image_size: tuple[int, int]
) -> torch.Tensor:
    return occluder_mask(SHAPES, shape, torch.tensor([centre]), torch.tensor([size]), *image_size)[0]


@pytest.mark.parametrize(
    "top, left, height, width", [(0, 0, 1, 1), (3, 5, 10, 4), (0, 2, 20, 7), (19, 29, 1, 1)]
)
def test_a_whole_pixel_rectangle_is_torchvisions_erase(top: int, left: int, height: int, width: int) -> None:
    mask = _mask((top + (height - 1) / 2, left + (width - 1) / 2), (height, width), RECTANGLE, (20, 30))
    expected = TF.erase(torch.zeros(1, 20, 30), top, left, height, width, torch.ones(1, height, width))[0]
    assert torch.equal(mask, expected)


def test_shapes_against_brute_force() -> None:
    """Over the image's edges too, where the image is not square, and for shapes of no size."""
    rng = np.random.default_rng(0)
    count, height, width = 60, 31, 44
    centre = rng.uniform([-5, -5], [height + 5, width + 5], (count, 2)).astype(np.float32)
    size = rng.uniform(0, 40, (count, 2)).astype(np.float32)
    size[:4] = 0
    shape = rng.integers(0, 2, count)
    size[shape == 1, 1] = size[shape == 1, 0]
    masks = occluder_mask(SHAPES, *map(torch.from_numpy, (shape, centre, size)), height, width).numpy()
    y, x = np.mgrid[:height, :width].astype(np.float64)
    for k in range(count):
        dy, dx = y - centre[k, 0], x - centre[k, 1]
        if shape[k] == 1:
            expected = np.hypot(dy, dx) < size[k, 0] / 2
        else:
            expected = (abs(dy) < size[k, 0] / 2) & (abs(dx) < size[k, 1] / 2)
        assert np.array_equal(masks[k], expected), k


@pytest.mark.parametrize("name", trained_shapes())
@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.7])
def test_covered_area_is_the_analytic_area(name: str, aspect: float) -> None:
    """With centres uniform within a pixel, the expected number of covered pixels is the area itself."""
    generator = torch.Generator().manual_seed(0)
    count, height, width = 6000, 60, 80
    shapes, which = [trained_shapes()[name]], torch.zeros(count, dtype=torch.int64)
    centre = torch.tensor([30.0, 40.0]) + torch.rand(count, 2, generator=generator)
    area, stretch = torch.full((count,), 0.15), torch.full((count,), aspect)
    size = occluder_size(shapes, which, area, stretch, height, width)
    covered = occluder_mask(shapes, which, centre, size, height, width).sum((1, 2))
    expected = 0.15 * height * width
    assert abs(covered.mean().item() - expected) < 1.0
    assert (covered - expected).abs().max() < 0.12 * expected  # at most about the outline's pixels
    ratio = aspect if shapes[0].stretches else 1.0
    torch.testing.assert_close(size[:, 0] / size[:, 1], torch.full((count,), ratio))


@pytest.mark.parametrize("channels", [1, 3])
def test_fills(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, channels, 6, 8, generator=generator)
    texture = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=generator)
    mask = (torch.rand(4, 6, 8, generator=generator) < 0.5).float()
    mask[3] = 0
    mean = torch.tensor([0.1, 0.2, 0.3][:channels]).view(-1, 1, 1)
    fill = torch.tensor([0, 1, 2, 2])
    painted = occlude_(images.clone(), mask, FILLS, fill, value=0.25, mean=mean, texture=texture)
    covered = mask[:, None].expand_as(images) == 1
    assert torch.equal(painted[~covered], images[~covered])
    assert (painted[0][covered[0]] == 0.25).all()
    assert torch.equal(painted[1][covered[1]], mean.expand(channels, 6, 8)[covered[1]])
    torch.testing.assert_close(painted[2][covered[2]], texture[2][covered[2]] / 255)
    plain = occlude_(images.clone(), mask, FILLS[:1], fill * 0, value=0.25, mean=mean, texture=None)
    assert torch.equal(plain[0], painted[0])
