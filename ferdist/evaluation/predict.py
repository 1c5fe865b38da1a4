"""Probabilities for samples of a beton, each exactly once under any world size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import five_crop

from ferdist.augment import normalise
from ferdist.data.beton import Beton, BetonLoader, DeviceCache, Labels
from ferdist.data.record import Integers
from ferdist.errors import RunError
from ferdist.evaluation.benchmark import Benchmark, Cell, checksums, total_checksum
from ferdist.evaluation.predictions import Predictions
from ferdist.runtime.distributed import World
from ferdist.runtime.precision import autocast

Scorer = Callable[[Tensor], Tensor]
"""uint8 images (B, C, H, W) of the data, on the model's device, to probabilities, float32 (B, K)."""

TTA: Final = ("none", "flip", "ten-crop")
CROP: Final = 44 / 48
"""Side of ten-crop's crops as a share of the image's side."""


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
def probabilities(
    model: nn.Module,
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype | None,
    tta: str = "none",
) -> Tensor:
    """The mean softmax over the views of uint8 images (B, C, H, W) on the model's device: float32 (B, K).

    Args:
        model: in evaluation mode.
        images: of any size that the model takes.
        mean, std: per channel, in [0, 1] units.
        dtype: of autocast, None for fp32.
        tta: one of ``TTA``.
    """
    floats = normalise(images, mean, std).contiguous(memory_format=torch.channels_last)
    total, shown = torch.zeros(()), views(floats, tta)
    for view in shown:
        with autocast(images.device, dtype):
            logits = model(view)
        total = total + logits.float().softmax(1)
    return total / len(shown)


def scorer_of(
    model: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype | None,
    tta: str = "none",
) -> Scorer:
    """A network of ferdist's as a scorer; the arguments are those of `probabilities`."""
    return lambda images: probabilities(model, images, mean, std, dtype, tta)


def predict(
    scorer: Scorer,
    beton: Beton,
    labels: Labels,
    loader: BetonLoader | DeviceCache,
    indices: Integers,
    world: World,
    *,
    benchmark: Benchmark | None = None,
    cells: Sequence[Cell] = (),
) -> Predictions:
    """A model's probabilities for ``indices``, shared out over the ranks without padding.

    Args:
        scorer: of the model; the same weights on every rank.
        beton: where the samples are.
        labels: of ``beton``; samples that they do not score are left out.
        loader: of ``beton``, to the world's device.
        indices: int64 (M,) sample numbers.
        world: this rank; all ranks must call.
        benchmark: what covers the images, where there are cells.
        cells: of the benchmark; each image is read once for all of them.

    Returns:
        Predictions for all N samples, in ascending order of index, on every rank: of the images as they are,
        or under each cell.
    """
    shards = np.array_split(np.sort(labels.scorable(indices)), world.size)
    K, covers = len(labels.classes), cells or (None,)
    numbers = [torch.empty(0, dtype=torch.int64)]
    rows = [torch.empty(0, len(covers), K)]
    digests = [torch.empty(0, len(cells), 32, dtype=torch.uint8)]
    for batch in loader.batches(shards[world.rank]):
        numbers.append(batch.index)
        answers, sums = [], []
        for cell in covers:
            images = batch.image
            if benchmark is not None and cell is not None:
                covered = benchmark.cover(images.cpu().numpy(), batch.index.cpu().numpy(), cell)
                sums.append(torch.from_numpy(checksums(covered)))
                images = torch.from_numpy(covered).to(world.device)
            answers.append(scorer(images))
        rows.append(torch.stack(answers, 1))
        digests += [torch.stack(sums, 1)] if sums else []
    counts, index = [len(shard) for shard in shards], np.concatenate(shards)
    if not np.array_equal(world.gather_rows(_on_cpu(numbers), counts).numpy(), index):
        raise RunError(
            f"{beton.path}: the evaluated samples are not the ones asked for: report this as a bug"
        )
    gathered = world.gather_rows(_on_cpu(rows), counts)
    if not torch.isfinite(gathered).all():
        raise RunError(f"{beton.path}: the network's output is not finite: these weights cannot be used")
    by_cover = gathered.transpose(0, 1).contiguous().numpy()
    plain = Predictions(index, labels.label[index], by_cover[0], beton.manifest.sha256)
    if not cells:
        return plain
    digest_rows = world.gather_rows(_on_cpu(digests), counts).numpy()
    return replace(
        plain,
        probabilities=by_cover,
        cells=tuple(cells),
        checksums=tuple(total_checksum(digest_rows[:, number]) for number in range(len(cells))),
        cluster=cluster_of(beton, index),
    )


def _on_cpu(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.cpu() for part in parts])


def cluster_of(beton: Beton, index: Integers) -> Integers:
    """What intervals resample, and who is on an image: subjects, or groups of copies where not every one of
    these samples has a subject."""
    subject = beton.subject[index]
    return subject if (subject >= 0).all() else beton.copy_group[index]
