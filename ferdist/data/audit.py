"""What is wrong with a data set's samples: exact copies, conflicting labels, leaks, empty images."""

from __future__ import annotations

import hashlib
from typing import Final, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from ferdist.data.folds import Evenness, fold_evenness
from ferdist.data.record import SPLITS, Count, Decoded, FaceDataset, Images, Integers, slices

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
"""Images, at equal distances, that are looked at for equalised histograms at most."""
_SLICE: Final = 256


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


class Pixels:
    """What is to be known of a data set's pixels, gathered in one pass.

    Args:
        shape: (N, C, H, W) of the images that `add` will be given.

    Attributes:
        sums: int64 (N, C), of each channel's values.
        squares: int64 (N, C), of their squares.
        copy_group: int64 (N,), the smallest index with exactly the same pixels; a sample without a copy has
            its own index.
        size: pixels of a channel.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        samples, channels, height, width = shape
        self.size = height * width
        self.sums, self.squares = np.empty((2, samples, channels), dtype=np.int64)
        self.copy_group = np.empty(samples, dtype=np.int64)
        self._first: dict[bytes, int] = {}
        self._seen, self._step = 0, -(-samples // _SAMPLED)
        self._evenness: list[npt.NDArray[np.float64]] = []

    @classmethod
    def of(cls, images: Images | Decoded) -> Pixels:
        """All of a data set's images, read once."""
        pixels = cls(images.shape)
        for part in slices(images, _SLICE):
            pixels.add(part)
        return pixels

    def add(self, images: Images) -> None:
        """Take in the next images, uint8 (M, C, H, W)."""
        images = np.ascontiguousarray(images)
        start, self._seen = self._seen, self._seen + len(images)
        part = slice(start, self._seen)
        for row, image in enumerate(images, start):
            self.copy_group[row] = self._first.setdefault(hashlib.sha256(image.data).digest(), row)
        self.sums[part] = images.sum(axis=(2, 3), dtype=np.int64)
        self.squares[part] = np.square(images, dtype=np.uint16).sum(axis=(2, 3), dtype=np.int64)
        sampled = images[-start % self._step :: self._step]
        if len(sampled):
            self._evenness.append(_evenness(sampled.reshape(len(sampled), -1)))

    @property
    def near_constant(self) -> list[int]:
        """Indices of the images whose standard deviation is below ``NEAR_CONSTANT_STD``."""
        count = self.size * self.sums.shape[1]
        scatter = count * self.squares.sum(axis=1) - self.sums.sum(axis=1) ** 2  # variance * count^2
        return np.flatnonzero(scatter < (NEAR_CONSTANT_STD * count) ** 2).tolist()

    @property
    def equalised(self) -> bool:
        """Whether somebody has equalised the histograms: most images have all values about as often."""
        spanning, apart = np.concatenate(self._evenness, axis=1)
        share, most = EQUALISED
        return bool(spanning.mean() > share and np.median(apart) < most)


def _evenness(rows: Images) -> npt.NDArray[np.float64]:
    """(2, M) of images (M, values): whether each spans 0 to 255, and how far its deciles are from even."""
    parts = np.linspace(0.1, 0.9, 9)
    spanning = (rows.min(axis=1) == 0) & (rows.max(axis=1) == 255)
    deciles = np.quantile(rows, parts, axis=1)
    return np.stack([spanning, np.abs(deciles / 255 - parts[:, None]).max(axis=0)])


def audit(dataset: FaceDataset, pixels: Pixels) -> Summary:
    """Look for exact copies, labels that disagree about them, leaks and near-constant images."""
    group = pixels.copy_group
    copied = np.bincount(group, minlength=len(group))[group] > 1
    conflicting = _varies_within(group, dataset.labels)
    constant = pixels.near_constant
    train, val, test = (dataset.split == code for code in range(len(SPLITS)))
    in_folds = dataset.fold >= 0
    summary: Summary = {
        "unique_images": len(np.unique(group)),
        "copies": _count(group, copied),
        "conflicting_labels": _count(group, conflicting),
        "near_constant": {"samples": len(constant), "indices": constant},
        "equalised": pixels.equalised,
        "leaks": {
            "val_in_train": int(np.isin(group[val], group[train]).sum()),
            "test_in_train_or_val": int(np.isin(group[test], group[train | val]).sum()),
            "across_folds": int(_varies_within(group[in_folds], dataset.fold[in_folds]).sum()),
        },
    }
    if in_folds.all():
        summary["folds"] = fold_evenness(dataset)
    return summary


def _varies_within(group: Integers, values: Integers) -> npt.NDArray[np.bool_]:
    """(N,) whether the sample's group holds more than one value."""
    pairs = np.unique(np.column_stack([group, values]), axis=0)
    groups, distinct = np.unique(pairs[:, 0], return_counts=True)
    return np.isin(group, groups[distinct > 1])


def _count(group: Integers, chosen: npt.NDArray[np.bool_]) -> Groups:
    return {"groups": len(np.unique(group[chosen])), "samples": int(chosen.sum())}
