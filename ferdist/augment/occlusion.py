"""Rectangles and circles that cover part of an image, and what they are filled with.

A rectangle has the area and aspect ratio that were drawn and a circle the area; both are placed by a centre
that is uniform over the image, so they may reach over its edge (a hand or a scarf does), and then cover less
of it than their area.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CONSTANT, MEAN, NOISE = 0, 1, 2
"""Codes of the fills in `occlude_`."""


def occluder_size(area: Tensor, aspect: Tensor, circle: Tensor, height: int, width: int) -> Tensor:
    """Height and width in pixels of shapes with a given area.

    Args:
        area: float (B,), fraction of the image's area.
        aspect: float (B,), height / width of a rectangle; circles ignore it.
        circle: bool (B,).
        height: image height in pixels.
        width: image width in pixels.

    Returns:
        float (B, 2); both are the diameter where `circle`.
    """
    pixels = area * (height * width)
    diameter = 2 * torch.sqrt(pixels / math.pi)
    return torch.stack(
        [
            torch.where(circle, diameter, torch.sqrt(pixels * aspect)),
            torch.where(circle, diameter, torch.sqrt(pixels / aspect)),
        ],
        1,
    )


def occluder_mask(centre: Tensor, size: Tensor, circle: Tensor, height: int, width: int) -> Tensor:
    """The pixels whose centre lies inside a shape.

    Args:
        centre: float (B, 2), y and x of the shape's centre in pixels; pixel 0 has its centre at 0.
        size: float (B, 2), height and width in pixels; 0 covers nothing. A circle's are equal.
        circle: bool (B,), a circle rather than a rectangle.
        height: image height in pixels.
        width: image width in pixels.

    Returns:
        (B, H, W), dtype of `centre`: 1 where covered, 0 elsewhere.
    """
    y = torch.arange(height, device=centre.device, dtype=centre.dtype)
    x = torch.arange(width, device=centre.device, dtype=centre.dtype)
    y_squared, x_squared = (y - centre[:, :1]) ** 2, (x - centre[:, 1:]) ** 2
    reach = (size / 2) ** 2
    # dy^2 < r^2 - dx^2 is a circle. With 0 inside and 1 outside on the left, 1 inside and 0 outside on the
    # right, the same comparison is a rectangle: a single pass over (B, H, W) for both shapes.
    circle = circle[:, None]
    left = torch.where(circle, y_squared, (y_squared >= reach[:, :1]).to(centre.dtype))
    right = torch.where(circle, reach[:, :1] - x_squared, (x_squared < reach[:, 1:]).to(centre.dtype))
    return (right[:, None, :] - left[:, :, None]).gt_(0)


def occlude_(
    images: Tensor, mask: Tensor, fill: Tensor, *, value: float, mean: Tensor, texture: Tensor | None
) -> Tensor:
    """Paint the covered pixels, in place.

    Args:
        images: float (B, C, H, W) in [0, 1].
        mask: float (B, H, W), 1 where covered and 0 elsewhere.
        fill: int64 (B,), CONSTANT, MEAN or NOISE.
        value: gray level of CONSTANT, in [0, 1].
        mean: float (C, 1, 1), the training data's mean in [0, 1], for MEAN.
        texture: uint8 (B, C, H, W) for NOISE, or None when no sample has that fill.
    """
    fill = fill[:, None, None, None]
    paint = torch.where(fill == MEAN, mean, value)
    if texture is not None:
        is_noise = fill == NOISE
        gain, level = torch.where(is_noise, 1 / 255, 0.0), torch.where(is_noise, 0.0, paint)
        paint = texture.to(images.dtype).mul_(gain).add_(level)
    # A weight of 0 or 1 makes lerp exact, and on a CPU it is several times faster than torch.where.
    return images.lerp_(paint, mask[:, None])
