"""Which labels a run learns and is scored by: the data set's own, or FER+'s."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ferdist.data.beton.opened import Beton
from ferdist.data.ferplus import FERPLUS_CLASSES, ferplus_labels
from ferdist.data.record import Integers
from ferdist.errors import DataError


@dataclass(frozen=True)
class Labels:
    """A label for each sample of a beton.

    Attributes:
        classes: names, in label order.
        label: int64 (N,), what a sample is scored by; -1 where it has no such label and is left out.
        targets: float32 (N, K), what is learned: one-hot or the share of each class; rows sum to 1, or are
            zero where there is nothing to learn from.
        agreed: bool (N,), where the annotators have a majority; None where all that is scored has one, or no
            votes are known.
    """

    classes: tuple[str, ...]
    label: Integers
    targets: npt.NDArray[np.float32]
    agreed: npt.NDArray[np.bool_] | None = None

    def learnable(self, indices: Integers) -> Integers:
        """Those of the samples that can be trained on."""
        kept: Integers = indices[self.targets[indices].sum(axis=1) > 0]
        return kept

    def scorable(self, indices: Integers) -> Integers:
        """Those of the samples that can be scored.

        Raises:
            DataError: if there is none.
        """
        kept = indices[self.label[indices] >= 0]
        if len(kept) == 0:
            raise DataError("none of these samples has a label to be scored by: choose other data.labels")
        return kept


def labels_of(beton: Beton, kind: str) -> Labels:
    """The labels that ``data.labels`` names.

    Args:
        beton: for FER+ one that was prepared with --ferplus.
        kind: ``own``; ``ferplus-majority`` (8 classes; samples without a majority are left out);
            ``ferplus-soft`` and ``ferplus-voted`` (learn the distribution of the votes, and are scored by the
            majority and by the class with the most votes, which more images have).

    Raises:
        DataError: if the beton has no FER+ votes.
    """
    classes, label = tuple(beton.manifest.classes), beton.label
    if kind != "own":
        try:
            votes = ferplus_labels(beton.samples)
        except DataError as error:
            raise DataError(f"{beton.path}: {error}") from None
        classes, label = FERPLUS_CLASSES, votes.majority
        if kind == "ferplus-voted":
            return Labels(classes, votes.voted, votes.distribution, label >= 0)
        if kind == "ferplus-soft":
            return Labels(classes, label, votes.distribution)
    one_hot = np.eye(len(classes) + 1, len(classes), dtype=np.float32)[label]  # -1 picks the row of zeros
    return Labels(classes, label, one_hot)
