"""Many images in one picture: for `ferdist inspect --grid` and for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import make_grid

from ferdist.augment.pipeline import Augment, denormalise
from ferdist.data.record import Images, Integers
from ferdist.errors import DataError
from ferdist.io import atomic_path

_READABLE_PIXELS = 96
"""Small images are enlarged by a whole factor to about this height in a saved grid."""


def image_grid(images: Tensor | Images, columns: int) -> Images:
    """Lay images out row by row.

    Args:
        images: (N, C, H, W) with C 1 or 3; uint8, or float in [0, 1] (values outside are clamped).
        columns: images in a row.

    Returns:
        uint8 (height, width, 3), with a black line of 2 pixels around each image.
    """
    batch = torch.as_tensor(images)
    if batch.is_floating_point():
        batch = batch.detach().to(torch.float32).clamp(0, 1).mul(255).round().to(torch.uint8)
    grid: Images = make_grid(batch, nrow=columns, padding=2).permute(1, 2, 0).cpu().numpy()
    return grid


def save_grid(images: Tensor | Images, columns: int, path: Path, row_names: Sequence[str] = ()) -> None:
    """Write a grid as a PNG, small images enlarged, with the rows' names on the left.

    Raises:
        DataError: if the file cannot be written.
    """
    batch = torch.as_tensor(images)
    factor = max(1, round(_READABLE_PIXELS / batch.shape[2]))
    enlarged = batch.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    grid = Image.fromarray(image_grid(enlarged, columns))
    measure = ImageDraw.Draw(grid)
    margin = round(max((8 + measure.textlength(name) for name in row_names), default=0))
    picture = Image.new("RGB", (grid.width + margin, grid.height))
    picture.paste(grid, (margin, 0))
    draw, row_height = ImageDraw.Draw(picture), grid.height / max(1, len(row_names))
    for row, name in enumerate(row_names):
        draw.text((4, (row + 0.5) * row_height), name, fill="white", anchor="lm")
    try:
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")
    except OSError as error:
        raise DataError(f"{path}: cannot write the grid: {error.strerror or error}") from error


def augmented(images: Images, augment: Augment, columns: int, seed: int) -> Tensor:
    """A row for each image: the original, then augmented versions of it.

    Args:
        images: uint8 (N, C, H, W).
        augment: what to apply.
        columns: images in a row.
        seed: of the draws.

    Returns:
        float32 (N * columns, C, H, W) in [0, 1].
    """
    originals = torch.as_tensor(images)
    repeated = originals.repeat_interleave(columns, 0)
    generator = torch.Generator().manual_seed(seed)
    draws = augment.draw(len(repeated), (repeated.shape[1], repeated.shape[2], repeated.shape[3]), generator)
    shown = denormalise(augment(repeated, draws), augment.mean, augment.std)
    shown[::columns] = originals.to(torch.float32) / 255
    return shown


def by_class(images: Images, labels: Integers, columns: int) -> Images:
    """A row for each class that has samples, in label order: its first ones, then black.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        columns: images in a row.

    Returns:
        uint8 (classes * columns, C, H, W).
    """
    present = np.unique(labels)
    rows = np.zeros((len(present), columns, *images.shape[1:]), dtype=np.uint8)
    for row, label in zip(rows, present, strict=True):
        chosen = images[labels == label][:columns]
        row[: len(chosen)] = chosen
    return rows.reshape(-1, *images.shape[1:])
