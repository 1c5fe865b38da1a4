"""The part of a data set that a model is scored on, and the ways in which predictions for it are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from ferdist.config import Config
from ferdist.data.beton import Beton, BetonLoader, Labels, labels_of
from ferdist.data.folds import Holdout
from ferdist.data.record import SPLITS, Images, Integers
from ferdist.evaluation.attention import CELLS, Watched, choose_faces, watch
from ferdist.evaluation.benchmark import Benchmark, Cell, choose_donors
from ferdist.evaluation.model import TrainedModel
from ferdist.evaluation.predict import cluster_of
from ferdist.evaluation.predictions import Predictions, by_sequence
from ferdist.evaluation.records import EvaluationKey

BATCH_SIZE: Final = 256


@dataclass(frozen=True)
class ScoredData:
    """A split of a beton, or a held-out fold, as a model is scored on it.

    Attributes:
        beton: the data.
        labels: that it is scored by.
        indices: int64 (M,), the samples of the split or fold.
        mean: that the network's inputs are normalised with, per channel, in [0, 1] units.
        loader: of ``beton``.
    """

    beton: Beton
    labels: Labels
    indices: Integers
    mean: tuple[float, ...]
    loader: BetonLoader

    @staticmethod
    def of(
        beton: Beton,
        config: Config,
        split: str,
        holdout: Holdout,
        mean: Sequence[float],
        device: torch.device,
    ) -> ScoredData:
        """The data as the config of a run reads them.

        Raises:
            DataError: if there is no such split or fold, or the beton lacks the config's labels.
        """
        loader = BetonLoader(
            beton,
            batch_size=BATCH_SIZE,
            device=device,
            workers=config.data.workers,
            timeout=config.data.timeout,
        )
        labels = labels_of(beton, config.data.labels)
        return ScoredData(beton, labels, beton.indices(split, holdout), tuple(mean), loader)

    def images(self, index: Integers) -> Images:
        """The images of these samples in this order, uint8 (B, C, H, W)."""
        none = np.empty((0, *self.beton.manifest.image_shape), dtype=np.uint8)
        batches = self.loader.batches(index)
        return np.concatenate([none, *(batch.image.cpu().numpy() for batch in batches)])

    def benchmark(self, cells: Sequence[Cell]) -> Benchmark:
        """What makes the images of these cells; it reads faces to take patches from if they have any."""
        patches = any(cell.kind == "patch" for cell in cells)
        donors = choose_donors(self.indices) if patches else np.empty(0, dtype=np.int64)
        return Benchmark(
            tuple(round(255 * level) for level in self.mean),
            cluster_of(self.beton, np.arange(self.beton.manifest.samples)),
            donors,
            self.images(donors),
        )

    def watch(self, trained: TrainedModel, rounds: int) -> tuple[list[Integers], list[Watched]]:
        """Where a model looks in a face of each class in each round, as they are and covered.

        Returns:
            The samples of each round, and all of them, in this order, under each of `attention.CELLS`.

        Raises:
            RunError: if the network has no features that are fine enough.
        """
        chosen = choose_faces(self.labels.scorable(self.indices), self.labels.label, rounds)
        index, card = np.concatenate(chosen), trained.card
        faces = self.images(index), index, self.labels.label[index]
        return chosen, watch(trained.network, *faces, self.benchmark(CELLS), card.mean, card.std)


def key_of(beton: Beton, split: str, holdout: Holdout, tta: str, checkpoint: str) -> EvaluationKey:
    """The key of the plain evaluation of a split."""
    return EvaluationKey(
        data=beton.manifest.name,
        beton_sha256=beton.manifest.sha256,
        split=split,
        fold=holdout.fold,
        inner_fold=holdout.inner_fold,
        tta=tta,
        checkpoint=checkpoint,
    )


def has_copy(beton: Beton, index: Integers, split: str, holdout: Holdout) -> npt.NDArray[np.bool_]:
    """Which samples, bool (N,), have an exact copy in train, or in train or val (of ``test``)."""
    learned = [beton.indices("train", holdout)]
    if split == "test" and (beton.split == SPLITS.index("val")).any():
        learned.append(beton.indices("val", holdout))
    return np.isin(beton.copy_group[index], beton.copy_group[np.concatenate(learned)])


def ways(
    whole: Predictions,
    beton: Beton,
    copied: npt.NDArray[np.bool_] | None,
    agreed: npt.NDArray[np.bool_] | None = None,
    *,
    part: str = "all",
) -> dict[tuple[str, str], Predictions]:
    """Predictions for images as they are, in each way in which they are scored, by subset and unit.

    Args:
        whole: for N samples.
        beton: the data.
        copied: samples that the subset ``no_copies`` leaves out, bool (N,); None for no such subset.
        agreed: the labels' own, of which the subset ``majority`` is made; None for no such subset.
        part: what the samples are: ``all`` of a split, or those of a published list, by its subset.

    Returns:
        Per ``image`` and, where all samples belong to one, per ``sequence``; a subset may be empty.
    """
    subsets = {part: whole}
    if copied is not None:
        subsets["no_copies" if part == "all" else f"{part}_no_copies"] = whole.select(~copied)
    if agreed is not None and part == "all":  # a list has labels of its own
        subsets["majority"] = whole.select(agreed[whole.index])
    found = {}
    for subset, rows in subsets.items():
        found[subset, "image"] = rows
        if (beton.sequence[whole.index] >= 0).all():
            found[subset, "sequence"] = by_sequence(rows, beton.sequence[rows.index])
    return found
