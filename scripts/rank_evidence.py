#!/usr/bin/env python3
"""How well evidence ranks the places of a face: ``python scripts/rank_evidence.py RUN [BETON]``.

Each of the 16 squares of a face is filled with the mean, and the score of the predicted class falls by so
much; a map of evidence ranks the squares as well, by its mean in them. Printed is Spearman's rank correlation
of the two, mean over the faces and its standard error, for Grad-CAM and its place-by-place form over the last
features of each size, and for a map that is the same for every face: the mean fall of all other faces.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from ferdist.augment import normalise
from ferdist.data.beton import open_beton
from ferdist.evaluation.data import ScoredData
from ferdist.evaluation.model import load_trained

FACES, SQUARES = 96, 4


def main(run: str, data: str | None = None) -> None:
    """Print the table for a run; its beton must have a side that 4 divides."""
    trained = load_trained(run, None, torch.device("cpu"))
    settings, network = trained.card.config.data, trained.network
    beton = open_beton(Path(data or settings.path))
    scored = ScoredData.of(
        beton, trained.card.config, "val", settings.holdout, trained.card.mean, torch.device("cpu")
    )
    index = np.random.default_rng(0).permutation(scored.indices)[:FACES]
    pixels = normalise(
        torch.from_numpy(scored.images(index)), trained.card.mean, trained.card.std
    ).requires_grad_()

    features: dict[tuple[int, ...], Tensor] = {}  # the last of each size

    def keep(_module: object, _inputs: object, output: Tensor) -> None:
        if output.ndim == 4 and output.requires_grad and min(output.shape[1:]) > 1:
            features[tuple(output.shape[2:])] = output

    hooks = [module.register_forward_hook(keep) for module in network.modules()]
    scores = network(pixels)
    for hook in hooks:
        hook.remove()
    predicted = scores.argmax(1, keepdim=True)
    score = scores.gather(1, predicted)
    falls = fall_of_squares(network, pixels.detach(), predicted, score.detach())

    others = (falls.sum(0) - falls) / (len(falls) - 1)
    print(f"{len(falls)} faces\n{'the mean fall of all other faces':<34}{agreement(others, falls)}")
    for (height, width), values in features.items():
        (gradient,) = torch.autograd.grad(score.sum(), values, retain_graph=True)
        maps = {
            "Grad-CAM": F.relu((gradient.mean((2, 3), keepdim=True) * values).sum(1)),
            "place by place": F.relu((gradient * values).sum(1)),
        }
        for name, found in maps.items():
            print(f"{f'{height} x {width}, {name}':<34}{agreement(in_squares(found, pixels), falls)}")


def fall_of_squares(network: torch.nn.Module, pixels: Tensor, predicted: Tensor, score: Tensor) -> Tensor:
    """By how much the score of the predicted class falls for each square filled with the mean: (B, 16)."""
    height, width = (side // SQUARES for side in pixels.shape[2:])
    falls = []
    with torch.no_grad():
        for place in range(SQUARES**2):
            row, column = divmod(place, SQUARES)
            covered = pixels.clone()
            covered[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width] = 0
            falls.append(score - network(covered).gather(1, predicted))
    return torch.cat(falls, 1)


def in_squares(maps: Tensor, pixels: Tensor) -> Tensor:
    """Maps (B, h, w), enlarged to the image, as their mean in each square: (B, 16)."""
    large = F.interpolate(maps.detach()[:, None], pixels.shape[2:], mode="bilinear")
    return F.adaptive_avg_pool2d(large, SQUARES).flatten(1)


def agreement(maps: Tensor, falls: Tensor) -> str:
    """Spearman's rank correlation, mean over the faces and its standard error; a constant map has none."""
    ranks = [float(spearmanr(a, b).statistic) for a, b in zip(maps, falls, strict=True)]
    known = np.array([rank for rank in ranks if not np.isnan(rank)])
    return f"{known.mean():.2f} ({known.std(ddof=1) / len(known) ** 0.5:.2f})"


if __name__ == "__main__":
    main(*sys.argv[1:])
