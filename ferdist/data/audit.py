"""What is wrong with a data set's samples: exact copies, conflicting labels, leaks, empty images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from ferdist.data.folds import Evenness, fold_evenness
from ferdist.data.record import SPLITS, Count, FaceDataset, Images, Integers

NEAR_CONSTANT_STD: Final = 2.0
"""Standard deviation of an image's values (0-255) below which it shows nothing.

In FER2013's Training and PublicTest 13 images are below it, 12 of them black; the next one has 4.15."""


EQUALISED: Final = (0.9, 0.05)
"""Images count as histogram-equalised where more than this share of them has values from 0 to 255, and half
of them have deciles within this of equal parts of that range. Of FER2013's own images 16 % span it, and half
have deciles within 0.24; of an equalised copy all of them, and half within 0.012."""
EQUALISED_TEXT: Final = (
    "the images look histogram-equalised: published scores are not about this copy; get the original"
)
_SAMPLED: Final = 2000


class Groups(TypedDict):
    """Groups of samples, and the samples in them."""

    groups: Count
    samples: Count


class NearConstant(TypedDict):
    """Images with a standard deviation below NEAR_CONSTANT_STD: how many, and which."""

    samples: Count
    indices: list[Count]


class Leaks(TypedDict):
    """Samples of val with a copy in train, of test with one in train or val, and with one in another fold."""

    val_in_train: Count
    test_in_train_or_val: Count
    across_folds: Count


class Summary(TypedDict):
    """The findings in numbers.

    ``copies`` are groups of exact copies, ``conflicting_labels`` those of them with more than one label;
    ``equalised`` is whether the images look histogram-equalised, which manifests of earlier versions do not
    say; ``folds`` is there where each sample has one.
    """

    unique_images: Count
    copies: Groups
    conflicting_labels: Groups
    near_constant: NearConstant
    equalised: NotRequired[bool]
    leaks: Leaks
    folds: NotRequired[Evenness]


@dataclass(frozen=True)
class Audit:
    """The findings.

    Attributes:
        copy_group: int64 (N,), the smallest index with exactly the same pixels; a sample without a copy has
            its own index.
        summary: them in numbers.
    """

    copy_group: Integers
    summary: Summary


def audit(dataset: FaceDataset) -> Audit:
    """Look for exact copies, labels that disagree about them, leaks and near-constant images."""
    first: dict[bytes, int] = {}
    digests = [hashlib.sha256(image.tobytes()).digest() for image in dataset.images]
    group = np.array([first.setdefault(digest, row) for row, digest in enumerate(digests)], dtype=np.int64)
    copied = np.bincount(group, minlength=len(group))[group] > 1
    conflicting = _varies_within(group, dataset.labels)
    constant = [row for row, image in enumerate(dataset.images) if image.std() < NEAR_CONSTANT_STD]
    train, val, test = (dataset.split == code for code in range(len(SPLITS)))
    in_folds = dataset.fold >= 0
    summary: Summary = {
        "unique_images": len(np.unique(group)),
        "copies": _count(group, copied),
        "conflicting_labels": _count(group, conflicting),
        "near_constant": {"samples": len(constant), "indices": constant},
        "equalised": looks_equalised(dataset.images),
        "leaks": {
            "val_in_train": int(np.isin(group[val], group[train]).sum()),
            "test_in_train_or_val": int(np.isin(group[test], group[train | val]).sum()),
            "across_folds": int(_varies_within(group[in_folds], dataset.fold[in_folds]).sum()),
        },
    }
    if in_folds.all():
        summary["folds"] = fold_evenness(dataset)
    return Audit(copy_group=group, summary=summary)


def looks_equalised(images: Images) -> bool:
    """Whether somebody has equalised the histograms: most images span 0 to 255 with every value as frequent.

    Args:
        images: uint8 (N, C, H, W); at most 2,000 of them are looked at, at equal distances.
    """
    rows = images[:: -(-len(images) // _SAMPLED)].reshape(-1, images[0].size)
    spanning = (rows.min(axis=1) == 0) & (rows.max(axis=1) == 255)
    parts = np.linspace(0.1, 0.9, 9)
    apart = np.abs(np.quantile(rows, parts, axis=1) / 255 - parts[:, None]).max(axis=0)
    share, most = EQUALISED
    return bool(spanning.mean() > share and np.median(apart) < most)


def _varies_within(group: Integers, values: Integers) -> npt.NDArray[np.bool_]:
    """(N,) whether the sample's group holds more than one value."""
    pairs = np.unique(np.column_stack([group, values]), axis=0)
    groups, distinct = np.unique(pairs[:, 0], return_counts=True)
    return np.isin(group, groups[distinct > 1])


def _count(group: Integers, chosen: npt.NDArray[np.bool_]) -> Groups:
    return {"groups": len(np.unique(group[chosen])), "samples": int(chosen.sum())}
