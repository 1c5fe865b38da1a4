"""What is wrong with a data set's samples: exact copies, conflicting labels, leaks, empty images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ferdist.datasets.record import SPLITS, FaceDataset, Images, Integers

NEAR_CONSTANT_STD: Final = 2.0
"""Standard deviation of an image's values (0-255) below which it shows nothing.

In FER2013's Training and PublicTest 12 images are below it, all of them black; the next one has 42.6."""


@dataclass(frozen=True)
class Audit:
    """The findings.

    Attributes:
        copy_group: int64 (N,), the smallest index with exactly the same pixels; a sample without a copy has
            its own index.
        summary: JSON-able counts: ``unique_images``; ``copies`` and ``conflicting_labels`` (groups of exact
            copies, and such groups with more than one label, each with the samples in them);
            ``near_constant`` (images with a standard deviation below NEAR_CONSTANT_STD); and ``leaks``:
            samples of val with a copy in train, of test with a copy in train or val, and samples with a
            copy in another fold.
    """

    copy_group: Integers
    summary: dict[str, Any]


def audit(dataset: FaceDataset) -> Audit:
    """Look for exact copies, labels that disagree about them, leaks and near-constant images."""
    group = _copy_groups(dataset.images)
    copied = np.bincount(group, minlength=len(group))[group] > 1
    conflicting = _varies_within(group, dataset.labels)
    constant = np.flatnonzero(_standard_deviations(dataset.images) < NEAR_CONSTANT_STD)
    train, val, test = (dataset.split == code for code in range(len(SPLITS)))
    in_folds = dataset.fold >= 0
    summary = {
        "unique_images": len(np.unique(group)),
        "copies": _count(group, copied),
        "conflicting_labels": _count(group, conflicting),
        "near_constant": {"samples": len(constant), "indices": constant.tolist()},
        "leaks": {
            "val_in_train": int(np.isin(group[val], group[train]).sum()),
            "test_in_train_or_val": int(np.isin(group[test], group[train | val]).sum()),
            "across_folds": int(_varies_within(group[in_folds], dataset.fold[in_folds]).sum()),
        },
    }
    return Audit(copy_group=group, summary=summary)


def _copy_groups(images: Images) -> Integers:
    first: dict[bytes, int] = {}
    return np.array(
        [first.setdefault(hashlib.sha256(image.tobytes()).digest(), row) for row, image in enumerate(images)],
        dtype=np.int64,
    )


def _varies_within(group: Integers, values: Integers) -> npt.NDArray[np.bool_]:
    """(N,) whether the sample's group holds more than one value."""
    pairs = np.unique(np.column_stack([group, values]), axis=0)
    groups, distinct = np.unique(pairs[:, 0], return_counts=True)
    return np.isin(group, groups[distinct > 1])


def _count(group: Integers, chosen: npt.NDArray[np.bool_]) -> dict[str, int]:
    return {"groups": len(np.unique(group[chosen])), "samples": int(chosen.sum())}


def _standard_deviations(images: Images) -> npt.NDArray[np.float64]:
    """(N,) over all values of an image, per channel pooled; row by row, to save memory."""
    return np.array([image.std() for image in images])
