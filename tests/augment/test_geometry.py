"""Affine maps against torchvision, and brightness and contrast."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.transforms.functional as TF
from torchvision.transforms import InterpolationMode

from ferdist.augment.geometry import adjust_tone_, affine_matrices, mirror, warp

HEIGHT, WIDTH = 40, 56


def _matrices(
    flip: bool = False,
    degrees: float = 0.0,
    scale: float = 1.0,
    translate: tuple[float, float] = (0.0, 0.0),
    image_size: tuple[int, int] = (HEIGHT, WIDTH),
) -> torch.Tensor:
    return affine_matrices(
        torch.tensor([flip]),
        torch.tensor([degrees]),
        torch.tensor([scale]),
        torch.tensor([translate]),
        image_size,
    )


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("degrees", "scale", "shift"),
    [
        (0.0, 1.0, (0, 0)),
        (10.0, 1.0, (0, 0)),
        (-35.0, 0.8, (7, -3)),
        (90.0, 1.2, (-5, 11)),
        (170.0, 1.0, (0, 4)),
    ],
)
def test_the_same_picture_as_torchvision(
    flip: bool, degrees: float, scale: float, shift: tuple[int, int]
) -> None:
    images = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    matrices = _matrices(flip, degrees, scale, (shift[0] / WIDTH, shift[1] / HEIGHT))
    ours = warp(images, matrices)

    def theirs(picture: torch.Tensor) -> torch.Tensor:
        return TF.affine(picture, degrees, list(shift), scale, [0.0], InterpolationMode.BILINEAR)

    # Their padding is black: compare where the bilinear footprint lies inside the image.
    inside = theirs(torch.ones(1, 1, HEIGHT, WIDTH)) > 1 - 1e-5
    assert inside.float().mean() > 0.3
    expected = theirs(TF.hflip(images) if flip else images)
    torch.testing.assert_close(
        ours[inside.expand_as(ours)], expected[inside.expand_as(ours)], atol=2e-5, rtol=0
    )


def test_directions() -> None:
    picture = torch.zeros(1, 1, 49, 49)
    picture[0, 0, 24, 40] = 1  # right of the centre

    def brightest(matrices: torch.Tensor) -> tuple[int, int]:
        position = int(warp(picture, matrices).flatten().argmax())
        return position // 49, position % 49

    size = (49, 49)
    assert brightest(_matrices(degrees=90.0, image_size=size)) == (40, 24)  # clockwise: below
    assert brightest(_matrices(flip=True, image_size=size)) == (24, 8)
    assert brightest(_matrices(scale=0.5, image_size=size)) == (24, 32)
    assert brightest(_matrices(translate=(-10 / 49, 5 / 49), image_size=size)) == (29, 30)


def test_identity_and_flip_move_no_pixel() -> None:
    images = torch.rand(1, 1, HEIGHT, WIDTH)
    torch.testing.assert_close(warp(images, _matrices()), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(images, _matrices(flip=True)), images.flip(3), atol=1e-5, rtol=0)


def test_each_sample_has_its_own_matrix() -> None:
    images = torch.rand(2, 1, HEIGHT, WIDTH)
    both = warp(images, torch.cat([_matrices(degrees=30.0), _matrices(scale=1.5)]))
    torch.testing.assert_close(both[:1], warp(images[:1], _matrices(degrees=30.0)))
    torch.testing.assert_close(both[1:], warp(images[1:], _matrices(scale=1.5)))


def test_outside_the_image_the_edge_goes_on() -> None:
    uniform = torch.full((1, 1, HEIGHT, WIDTH), 0.7)
    moved = warp(uniform, _matrices(degrees=45.0, scale=0.5, translate=(0.5, 0.5)))
    torch.testing.assert_close(moved, uniform)


def test_mirror_flips_the_chosen_samples_exactly() -> None:
    images = torch.rand(3, 3, 5, 7)
    mirrored = mirror(images, torch.tensor([True, False, True]))
    assert torch.equal(mirrored[[0, 2]], images[[0, 2]].flip(3))
    assert torch.equal(mirrored[1], images[1])


def test_tone_is_torchvisions_brightness_then_contrast() -> None:
    images = 0.4 + 0.2 * torch.rand(2, 1, 8, 9)  # so that nothing is clamped
    brightness, contrast = torch.tensor([0.8, 1.3]), torch.tensor([1.4, 0.5])
    expected = torch.stack(
        [
            TF.adjust_contrast(TF.adjust_brightness(image, float(b)), float(c))
            for image, b, c in zip(images, brightness, contrast, strict=True)
        ]
    )
    torch.testing.assert_close(adjust_tone_(images.clone(), brightness, contrast), expected)


def test_contrast_keeps_the_mean_over_all_channels() -> None:
    images = 0.4 + 0.2 * torch.rand(4, 3, 8, 9)
    changed = adjust_tone_(images.clone(), torch.ones(4), torch.tensor([0.0, 0.5, 1.0, 1.5]))
    torch.testing.assert_close(changed.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(
        changed.std((1, 2, 3)),
        images.std((1, 2, 3)) * torch.tensor([0.0, 0.5, 1.0, 1.5]),
        atol=1e-6,
        rtol=1e-4,
    )


def test_tone_is_clamped() -> None:
    images = torch.rand(1, 1, 20, 20)
    changed = adjust_tone_(images, torch.tensor([1.5]), torch.tensor([3.0]))
    assert (changed.min(), changed.max()) == (0, 1)


def test_rotation_is_rigid_on_images_that_are_not_square() -> None:
    linear = _matrices(degrees=25.0)[0, :, :2]
    to_pixels = torch.diag(torch.tensor([WIDTH / 2, HEIGHT / 2]))
    in_pixels = to_pixels @ linear @ to_pixels.inverse()
    torch.testing.assert_close(in_pixels @ in_pixels.T, torch.eye(2))
    assert math.isclose(math.degrees(math.acos(float(in_pixels[0, 0]))), 25.0, abs_tol=1e-3)
