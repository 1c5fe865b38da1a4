"""Subject-independent, stratified k-fold cross-validation."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Final, TypedDict

import numpy as np
from msgspec import Meta

from ferdist.data.record import SPLITS, Count, FaceDataset, Integers, no_values
from ferdist.errors import DataError

HOLDOUT: Final = "holdout"
ALL: Final = "all"
"""What is scored of data without splits, by a model that was trained on others."""
"""Name of the part of the train split that ``data.val_share`` leaves out."""

Span = Annotated[list[Count], Meta(min_length=2, max_length=2)]
"""The least and the most over the folds."""

_DRAWS: Final = 20
"""Seeded assignments of which the most even is kept."""


class Evenness(TypedDict):
    """How even folds are: samples and subjects of a fold, samples by class name, and `unevenness`."""

    samples: Span
    subjects: Span
    per_class: dict[str, Span]
    unevenness: float


@dataclasses.dataclass(frozen=True)
class Holdout:
    """What a model is not trained on; with nothing set, what the data's own splits leave out.

    Attributes:
        fold: train on all other folds and validate on this one.
        inner_fold: another fold, to validate on in place of ``fold``, which nothing reads then.
        val_share: share of the train split to leave out, as the part "holdout": whole subjects, or groups of
            copies where not every sample has a subject, drawn once and for all.
    """

    fold: int | None = None
    inner_fold: int | None = None
    val_share: float = 0.0

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that are left out of the training; the last is validated on."""
        return tuple(fold for fold in (self.fold, self.inner_fold) if fold is not None)

    @property
    def scored_fold(self) -> int | None:
        """The fold that is validated on, if one is."""
        return self.folds[-1] if self.folds else None

    @property
    def validated(self) -> str:
        """The part of the data that is validated on, as `Beton.indices` names it."""
        return HOLDOUT if self.val_share else "val"


def assign_folds(dataset: FaceDataset, folds: int, seed: int) -> FaceDataset:
    """Assign each subject, with all its images, to one of ``folds`` folds.

    scikit-learn's StratifiedGroupKFold evens out the classes but lets the fold sizes drift, so it is drawn
    20 times and the most even assignment (see ``unevenness``) is kept. That looks at labels, subjects and
    counts only, never at images or a model, and is a function of the data set and ``seed``.

    Args:
        dataset: every sample must have a subject.
        folds: number of folds, at least 2 and at most the number of subjects.
        seed: chooses among the assignments; 0 or more.

    Returns:
        The data set with ``fold`` set to 0..folds-1: the fold in which the sample is held out.

    Raises:
        DataError: if samples have no subject, ``folds`` does not fit the number of subjects or is above
            every class's count, or ``seed`` is negative.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    without = int((dataset.subject < 0).sum())
    if without:
        raise DataError(
            f"{dataset.name}: {without} of {len(dataset)} samples have no subject, so two folds could "
            "share a person; name the subjects (for CK_data.h5 by --subjects-from a CK+48 folder, "
            "for folders by --subject-regex)"
        )
    if seed < 0:
        raise DataError(f"{dataset.name}: seed {seed} is negative; use 0 or more")
    subjects = len(np.unique(dataset.subject))
    if not 2 <= folds <= subjects:
        raise DataError(
            f"{dataset.name}: cannot make {folds} folds of {subjects} subjects; ask for 2 to {subjects}"
        )
    largest = int(np.bincount(dataset.labels).max())
    if folds > largest:
        raise DataError(
            f"{dataset.name}: cannot make {folds} folds where no class has more than {largest} samples; "
            "ask for fewer folds or prepare more samples"
        )

    def draw(state: int) -> Integers:
        fold = no_values(len(dataset))
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
        for number, (_, held_out) in enumerate(
            splitter.split(dataset.labels, dataset.labels, dataset.subject)
        ):
            fold[held_out] = number
        return fold

    states = np.random.SeedSequence(seed).generate_state(_DRAWS)
    best = min((draw(int(state)) for state in states), key=lambda fold: unevenness(dataset.labels, fold))
    check_folds(dataset.subject, best)
    return dataclasses.replace(dataset, fold=best)


def hold_out(dataset: FaceDataset, share: float, seed: int) -> FaceDataset:
    """Move a part of the train split to val, the same share of each class.

    For data that come without a val split: settings are chosen on this one, never on test. Which samples go
    depends on the order of the data set, the labels and ``seed`` only.

    Args:
        dataset: with a train split and without a val split.
        share: of train, in [0, 1); 0 leaves the data set as it is.
        seed: 0 or more.

    Raises:
        DataError: if share or seed is out of its range, or no sample would go.
    """
    if not 0 <= share < 1 or seed < 0:
        raise DataError(
            f"{dataset.name}: a val share of {share:g} with seed {seed}: choose a share from 0 to below 1, "
            "and a seed of 0 or more"
        )
    split, generator = dataset.split.copy(), np.random.default_rng(seed)
    for label in range(len(dataset.classes)):
        rows = np.flatnonzero((dataset.split == SPLITS.index("train")) & (dataset.labels == label))
        split[generator.permutation(rows)[: round(share * len(rows))]] = SPLITS.index("val")
    if share and (split == dataset.split).all():
        raise DataError(f"{dataset.name}: a val share of {share:g} holds no sample of any class; choose more")
    return dataclasses.replace(dataset, split=split)


def unevenness(labels: Integers, fold: Integers) -> float:
    """Chi-square distance of the counts per fold and class from an even share; 0 is perfectly even.

    The sum over folds and classes of (count - share)^2 / share, share being the class's count over the
    number of folds, plus the same for the counts per fold.

    Args:
        labels: int64 (N,).
        fold: int64 (N,), 0 to the number of folds - 1.
    """
    counts = np.zeros((fold.max() + 1, labels.max() + 1))
    np.add.at(counts, (fold, labels), 1)
    counts = counts[:, counts.sum(axis=0) > 0]
    table = np.column_stack([counts, counts.sum(axis=1)])
    share = table.mean(axis=0)
    return float(((table - share) ** 2 / share).sum())


def check_folds(subject: Integers, fold: Integers) -> None:
    """Make sure that no subject lies in two folds and no fold is empty.

    Raises:
        DataError: names the first subject or fold at fault.
    """
    pairs = np.unique(np.column_stack([subject, fold]), axis=0)
    codes, times = np.unique(pairs[:, 0], return_counts=True)
    if (times > 1).any():
        code = codes[times > 1][0]
        shared = ", ".join(map(str, pairs[pairs[:, 0] == code, 1]))
        raise DataError(f"subject {code} lies in folds {shared}; assign the folds by subject")
    empty = np.setdiff1d(np.arange(fold.max() + 1), fold)
    if fold.min() < 0 or len(empty):
        what = f"fold {empty[0]} is empty" if len(empty) else "samples without a fold"
        raise DataError(f"{what}; ask for fewer folds")


def fold_evenness(dataset: FaceDataset) -> Evenness:
    """How even the folds are; every sample has one."""
    classes = len(dataset.classes)
    held_out = [dataset.fold == number for number in range(dataset.fold.max() + 1)]
    per_class = np.stack([np.bincount(dataset.labels[part], minlength=classes) for part in held_out])
    samples, subjects = per_class.sum(axis=1), [len(np.unique(dataset.subject[part])) for part in held_out]
    return {
        "samples": [int(samples.min()), int(samples.max())],
        "subjects": [min(subjects), max(subjects)],
        "per_class": {
            name: [int(column.min()), int(column.max())]
            for name, column in zip(dataset.classes, per_class.T, strict=True)
        },
        "unevenness": round(unevenness(dataset.labels, dataset.fold), 3),
    }
