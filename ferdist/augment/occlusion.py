"""Occlusion of a training batch, on its device: several shapes and fills in one pass over the pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ferdist.augment.kinds import Fill, Shape


def occluder_size(
    shapes: Sequence[Shape], which: Tensor, area: Tensor, aspect: Tensor, height: int, width: int
) -> Tensor:
    """Height and width in pixels, float (B, 2), of shapes with a given area.

    Args:
        shapes: those that may be drawn.
        which: int64 (B,), places in ``shapes``.
        area: float (B,), fraction of the image's area.
        aspect: float (B,), height / width of the shapes that stretch.
        height, width: of the images in pixels.
    """
    pixels = area * (height * width)
    return _choose(which[:, None], [torch.stack(shape.size(pixels, aspect), 1) for shape in shapes])


def occluder_mask(
    shapes: Sequence[Shape], which: Tensor, centre: Tensor, size: Tensor, height: int, width: int
) -> Tensor:
    """The pixels whose centre lies inside a shape: (B, H, W), dtype of `centre`, 1 where covered, else 0.

    Args:
        shapes, which: as for `occluder_size`.
        centre: float (B, 2), y and x of the shape's centre in pixels; pixel 0 has its centre at 0.
        size: float (B, 2), height and width in pixels; 0 covers nothing.
        height, width: of the images in pixels.
    """
    y = torch.arange(height, device=centre.device, dtype=centre.dtype) - centre[:, :1]
    x = torch.arange(width, device=centre.device, dtype=centre.dtype) - centre[:, 1:]
    half = size / 2
    edges = [shape.edges(y, x, half[:, :1], half[:, 1:]) for shape in shapes]
    rows, columns = (_choose(which[:, None], side).to(centre.dtype) for side in zip(*edges, strict=True))
    return (columns[:, None, :] - rows[:, :, None]).gt_(0)


def occlude_(
    images: Tensor,
    mask: Tensor,
    fills: Sequence[Fill],
    which: Tensor,
    *,
    value: float,
    mean: Tensor,
    texture: Tensor | None,
) -> Tensor:
    """Paint the covered pixels, in place.

    Args:
        images: float (B, C, H, W) in [0, 1].
        mask: float (B, H, W), 1 where covered and 0 elsewhere.
        fills: those that may be drawn.
        which: int64 (B,), places in ``fills``.
        value: gray level of the constant fill, in [0, 1].
        mean: float (C, 1, 1), the training data's mean in [0, 1].
        texture: uint8 (B, C, H, W), or None where no fill has noise in it.
    """
    which = which[:, None, None, None]
    paint = _choose(which, [fill.gray * value + fill.mean * mean for fill in fills])
    if texture is not None:
        gain = _choose(which, [mean.new_full((), fill.noise / 255) for fill in fills])
        paint = texture.to(images.dtype).mul_(gain).add_(paint)
    # A weight of 0 or 1 makes lerp exact, and on a CPU it is several times faster than torch.where.
    return images.lerp_(paint, mask[:, None])


def _choose(which: Tensor, options: Sequence[Tensor]) -> Tensor:
    """For each sample the option that ``which`` names."""
    chosen = options[0]
    for number, option in enumerate(options[1:], 1):
        chosen = torch.where(which == number, option, chosen)
    return chosen
