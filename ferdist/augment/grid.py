"""Pictures of many images side by side: for `ferdist inspect --grid` and for TensorBoard."""

from __future__ import annotations

import os
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


def save_augment_grid(images: Images, augment: Augment, path: Path, columns: int, seed: int) -> None:
    """Write a PNG: one row per image, first the original, then augmented versions of it.

    Args:
        images: uint8 (N, C, H, W).
        augment: what to apply.
        path: of the PNG.
        columns: images in a row, at least 2.
        seed: of the draws.

    Raises:
        DataError: if there is no image, columns is below 2, or the file cannot be written.
    """
    if columns < 2:
        raise DataError(f"{path}: {columns} columns leave no room for augmented images; give at least 2")
    if len(images) == 0:
        raise DataError(f"{path}: there is no image to show")
    originals = torch.as_tensor(images)
    repeated = originals.repeat_interleave(columns, 0)
    generator = torch.Generator().manual_seed(seed)
    draws = augment.draw(len(repeated), (repeated.shape[1], repeated.shape[2], repeated.shape[3]), generator)
    shown = denormalise(augment(repeated, draws), augment.mean, augment.std)
    shown[::columns] = originals.to(torch.float32) / 255
    _save_png(_enlarge(shown), columns, path)


def save_class_grid(
    images: Images, labels: Integers, classes: Sequence[str], path: Path, *, columns: int, seed: int
) -> None:
    """Write a PNG: one row per class that has samples, its name on the left, samples drawn at random.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), 0 to len(classes) - 1.
        classes: names in label order.
        path: of the PNG.
        columns: samples in a row; a class with fewer leaves the rest of its row black.
        seed: of the choice.

    Raises:
        DataError: if there is no image, columns is below 1, or the file cannot be written.
    """
    if columns < 1:
        raise DataError(f"{path}: {columns} columns show nothing; give at least 1")
    if len(images) == 0:
        raise DataError(f"{path}: there is no image to show")
    rng = np.random.default_rng(seed)
    present = [label for label in range(len(classes)) if (labels == label).any()]
    shown = np.zeros((len(present), columns, *images.shape[1:]), dtype=np.uint8)
    for row, label in enumerate(present):
        chosen = rng.permutation(np.flatnonzero(labels == label))[:columns]
        shown[row, : len(chosen)] = images[chosen]
    batch = torch.from_numpy(shown.reshape(-1, *images.shape[1:]))
    _save_png(_enlarge(batch), columns, path, [classes[label] for label in present])


def _enlarge(images: Tensor) -> Tensor:
    factor = max(1, round(_READABLE_PIXELS / images.shape[2]))
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def _save_png(images: Tensor, columns: int, path: Path, row_names: Sequence[str] = ()) -> None:
    picture = Image.fromarray(image_grid(images, columns))
    if row_names:
        picture = _with_row_names(picture, row_names)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            picture.save(temporary, format="PNG")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot write the grid: {error.strerror or error}") from error


def _with_row_names(picture: Image.Image, names: Sequence[str]) -> Image.Image:
    draw = ImageDraw.Draw(picture)
    margin = 8 + round(max(draw.textlength(name) for name in names))
    wider = Image.new("RGB", (picture.width + margin, picture.height))
    wider.paste(picture, (margin, 0))
    draw, row_height = ImageDraw.Draw(wider), picture.height / len(names)
    for row, name in enumerate(names):
        draw.text((4, (row + 0.5) * row_height), name, fill="white", anchor="lm")
    return wider
