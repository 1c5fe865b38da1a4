"""Probabilities for samples of a beton, each exactly once under any world size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import five_crop

from ferdist.augment import normalise
from ferdist.data.beton import Beton, BetonLoader, DeviceCache, Labels
from ferdist.data.record import Images, Integers
from ferdist.errors import RunError
from ferdist.evaluation.benchmark import checksums, total_checksum
from ferdist.evaluation.metrics import Predictions
from ferdist.runtime.distributed import World
from ferdist.runtime.precision import autocast

TTA: Final = ("none", "flip", "ten-crop")
CROP: Final = 44 / 48
"""Side of ten-crop's crops as a share of the image's side."""

Cover = Callable[[Images, Integers], Images]


class Covered(NamedTuple):
    """Predictions for covered images, and the checksum of these images (`benchmark.total_checksum`)."""

    predictions: Predictions
    checksum: str


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

    Returns:
        Predictions for all N samples, in ascending order of index, on every rank.
    """
    forward = partial(_forward, model, mean=mean, std=std, dtype=dtype, tta=tta, world=world)
    shards = _shards(labels, indices, world)
    index, rows = [], []
    for batch in loader.batches(shards[world.rank]):
        index.append(batch.index)
        rows.append(forward(batch.image))
    _check_index(_gather(index, shards, world, torch.empty(0, dtype=torch.int64)), shards, beton)
    probabilities = _gather(rows, shards, world, torch.empty(0, len(labels.classes)))
    return _predictions(probabilities, beton, labels, np.concatenate(shards))


def predict_covered(
    model: nn.Module,
    beton: Beton,
    labels: Labels,
    loader: BetonLoader | DeviceCache,
    indices: Integers,
    world: World,
    covers: Sequence[Cover],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype | None,
    tta: str = "none",
) -> list[Covered]:
    """As `predict`, once for each of ``covers``; an image is read once for all of them.

    Args:
        covers: M ways to make, from uint8 images (B, C, H, W) and their sample numbers, those that are shown.

    Returns:
        M predictions with the checksums of the images that they are for, on every rank.
    """
    forward = partial(_forward, model, mean=mean, std=std, dtype=dtype, tta=tta, world=world)
    shards = _shards(labels, indices, world)
    index, rows, sums = [], [], []
    for batch in loader.batches(shards[world.rank]):
        images, numbers = batch.image.cpu().numpy(), batch.index.cpu().numpy()
        answers, digests = [], []
        for cover in covers:
            shown = cover(images, numbers)
            digests.append(torch.from_numpy(checksums(shown)))
            answers.append(forward(torch.from_numpy(shown).to(world.device)))
        index.append(batch.index)
        rows.append(torch.stack(answers, 1))
        sums.append(torch.stack(digests, 1))
    M, K = len(covers), len(labels.classes)
    _check_index(_gather(index, shards, world, torch.empty(0, dtype=torch.int64)), shards, beton)
    probabilities = _gather(rows, shards, world, torch.empty(0, M, K))
    digest_rows = _gather(sums, shards, world, torch.empty(0, M, 32, dtype=torch.uint8)).numpy()
    return [
        Covered(
            _predictions(probabilities[:, number], beton, labels, np.concatenate(shards)),
            total_checksum(digest_rows[:, number]),
        )
        for number in range(M)
    ]


@torch.inference_mode()
def _forward(
    model: nn.Module,
    images: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype | None,
    tta: str,
    world: World,
) -> Tensor:
    """uint8 (B, C, H, W) on the world's device to probabilities, float32 (B, K)."""
    floats = normalise(images, mean, std).contiguous(memory_format=torch.channels_last)
    return _probabilities(model, views(floats, tta), world, dtype)


def _shards(labels: Labels, indices: Integers, world: World) -> list[Integers]:
    """The samples that can be scored, ascending, in consecutive parts for the ranks."""
    return np.array_split(np.sort(labels.scorable(indices)), world.size)


def _gather(parts: list[Tensor], shards: list[Integers], world: World, none: Tensor) -> Tensor:
    """All ranks' rows; ``none`` has the shape and dtype of a rank's that has no sample."""
    return world.gather_rows(
        torch.cat([none, *(part.cpu() for part in parts)]), [len(shard) for shard in shards]
    )


def _check_index(index: Tensor, shards: list[Integers], beton: Beton) -> None:
    if not np.array_equal(index.numpy(), np.concatenate(shards)):
        raise RunError(
            f"{beton.path}: the evaluated samples are not the ones asked for: report this as a bug"
        )


def _predictions(probabilities: Tensor, beton: Beton, labels: Labels, index: Integers) -> Predictions:
    if not torch.isfinite(probabilities).all():
        raise RunError(f"{beton.path}: the network's output is not finite: these weights cannot be used")
    rows = probabilities.contiguous().numpy()
    return Predictions(index, labels.label[index], rows, beton.manifest.sha256)


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
