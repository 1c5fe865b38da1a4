"""Probabilities for samples of a beton, each exactly once under any world size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import five_crop

from ferdist.augment import normalise
from ferdist.beton import Beton, BetonLoader, DeviceCache, Labels
from ferdist.datasets.record import Images, Integers
from ferdist.errors import RunError
from ferdist.evaluation.metrics import Predictions
from ferdist.training.distributed import World
from ferdist.training.precision import autocast

TTA: Final = ("none", "flip", "ten-crop")
CROP: Final = 44 / 48
"""Side of ten-crop's crops as a share of the image's side."""

Cover = Callable[[Images, Integers], Images]


def views(images: Tensor, tta: str) -> list[Tensor]:
    """What test-time augmentation shows of images (N, C, H, W): a list of (N, C, h, w).

    ``none`` is the image, ``flip`` adds its mirror, ``ten-crop`` is the four corners and the centre at 44/48
    of the size and their mirrors.
    """
    if tta == "none":
        return [images]
    if tta == "flip":
        return [images, images.flip(3)]
    size = [round(side * CROP) for side in images.shape[2:]]
    crops = list(five_crop(images, size))
    return crops + [crop.flip(3) for crop in crops]


@torch.inference_mode()
def predict(
    model: nn.Module,
    beton: Beton,
    labels: Labels,
    loader: BetonLoader | DeviceCache,
    indices: Integers,
    world: World,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype | None,
    tta: str = "none",
    cover: Cover | None = None,
) -> Predictions:
    """The model's probabilities for ``indices``, shared out over the ranks without padding.

    Args:
        model: in evaluation mode, on the world's device; the same weights on every rank.
        beton: where the samples are.
        labels: of ``beton``; samples that they do not score are left out.
        loader: of ``beton``.
        indices: int64 (M,) sample numbers.
        world: this rank; all ranks must call.
        mean, std: per channel, in [0, 1] units.
        dtype: of autocast, None for fp32.
        tta: one of ``TTA``; the views' probabilities are averaged.
        cover: changes uint8 images (B, C, H, W) of given sample numbers before they are normalised.

    Returns:
        Predictions for all N samples, in ascending order of index, on every rank.
    """
    indices = np.sort(labels.scorable(indices))
    shards = np.array_split(indices, world.size)
    index, rows = [], []
    for batch in loader.batches(shards[world.rank]):
        images = batch.image
        if cover is not None:
            covered = cover(images.cpu().numpy(), batch.index.cpu().numpy())
            images = torch.from_numpy(covered).to(world.device)
        floats = normalise(images, mean, std).contiguous(memory_format=torch.channels_last)
        index.append(batch.index)
        rows.append(_probabilities(model, views(floats, tta), world, dtype))
    counts = [len(shard) for shard in shards]
    # The leading empty tensors serve ranks that have no sample.
    gathered_index = world.gather_rows(torch.cat([torch.empty(0, dtype=torch.int64), *_cpu(index)]), counts)
    gathered_rows = world.gather_rows(torch.cat([torch.empty(0, len(labels.classes)), *_cpu(rows)]), counts)
    if not np.array_equal(gathered_index.numpy(), indices):
        raise RunError(
            f"{beton.path}: the evaluated samples are not the ones asked for: report this as a bug"
        )
    if not torch.isfinite(gathered_rows).all():
        raise RunError(f"{beton.path}: the network's output is not finite: these weights cannot be used")
    return Predictions(indices, labels.label[indices], gathered_rows.numpy(), beton.manifest.sha256)


def _probabilities(model: nn.Module, shown: list[Tensor], world: World, dtype: torch.dtype | None) -> Tensor:
    """Mean over the views of the softmax, (N, K) float32."""
    total: Tensor | None = None
    for view in shown:
        with autocast(world.device, dtype):
            logits = model(view)
        rows = logits.float().softmax(1)
        total = rows if total is None else total + rows
    assert total is not None
    return total / len(shown)


def _cpu(parts: list[Tensor]) -> list[Tensor]:
    return [part.cpu() for part in parts]
