"""The one record that every reader returns and the beton writer takes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from ferdist.data.parallel import in_order, progress
from ferdist.errors import DataError

Images = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Source = str | Callable[[], str]
Count = Annotated[int, Meta(ge=0, le=2**53)]
"""A count in a JSON file."""

SPLITS: Final = ("train", "val", "test")
"""Names of the split codes 0, 1 and 2; -1 stands for "no split" (data with folds only)."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What a data set may be called: its files, evaluations and charts bear the name."""
NAME_RULE: Final = "use letters, digits, '_', '.' and '-' only, with a letter or digit first"

FER2013_CLASSES: Final = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
CKPLUS7_CLASSES: Final = ("angry", "disgust", "fear", "happy", "sad", "surprise", "contempt")
CKPLUS8_CLASSES: Final = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral", "contempt")

_SLICE: Final = 256


@dataclass(frozen=True)
class Decoded:
    """Images that are decoded whenever they are read.

    Attributes:
        shape: (N, C, H, W).
        decode: gives the image of a number from 0 to N - 1, uint8 (C, H, W), 0-255; threads call it.
        title: what the progress bar says.
    """

    shape: tuple[int, int, int, int]
    decode: Callable[[int], Images]
    title: str
    dtype: ClassVar = np.dtype(np.uint8)
    ndim: ClassVar = 4

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.concatenate(list(slices(self, _SLICE))).astype(dtype or self.dtype, copy=False)


def slices(images: Images | Decoded, rows: int) -> Iterator[Images]:
    """The images in order, uint8 (M, C, H, W) with M at most ``rows``."""
    if isinstance(images, Decoded):
        decoded = in_order(images.decode, progress(range(len(images)), images.title))
        while part := list(itertools.islice(decoded, rows)):
            yield np.stack(part)
    else:
        for start in range(0, len(images), rows):
            yield images[start : start + rows]


@dataclass(frozen=True)
class FaceDataset:
    """Faces with their labels.

    All arrays have one entry per sample; -1 means "none". ``subject`` and ``sequence`` index
    ``subject_names`` and ``sequence_names``.

    Attributes:
        name: file stem of the beton that is made of it, e.g. ``fer2013``.
        images: uint8, (N, C, H, W), 0-255, in memory or decoded when they are read; C is 1 for gray and 3
            for RGB.
        labels: int64, (N,), 0 to len(classes) - 1.
        split: int64, (N,), index into ``SPLITS`` or -1.
        subject: int64, (N,), the person, or -1.
        sequence: int64, (N,), the video sequence that the frame comes from, or -1.
        fold: int64, (N,), cross-validation fold in which the sample is held out, or -1.
        source_id: what names the sample in the raw data (row number, file name).
        classes: class names, in label order.
        sources: sha256 (hex) of each raw file or archive that was read, by name, or what gives it once the
            images have been read.

    Raises:
        DataError: if the arrays do not agree in length, dtype or range.
    """

    name: str
    images: Images | Decoded
    labels: Integers
    split: Integers
    subject: Integers
    sequence: Integers
    fold: Integers
    source_id: Sequence[str]
    classes: tuple[str, ...]
    subject_names: tuple[str, ...] = ()
    sequence_names: tuple[str, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[1] not in (1, 3):
            raise DataError(
                f"{self.name}: images must be uint8 (N, 1 or 3, H, W), "
                f"not {self.images.dtype} {self.images.shape}"
            )
        if len(self.images) == 0:
            raise DataError(f"{self.name}: no images")
        limits = {
            "labels": (0, len(self.classes)),
            "split": (-1, len(SPLITS)),
            "subject": (-1, len(self.subject_names)),
            "sequence": (-1, len(self.sequence_names)),
            "fold": (-1, len(self)),
        }
        for name, (low, high) in limits.items():
            values: Integers = getattr(self, name)
            if values.dtype != np.int64 or values.shape != (len(self),):
                raise DataError(
                    f"{self.name}: {name} must be int64 ({len(self)},), not {values.dtype} {values.shape}"
                )
            if values.min() < low or values.max() >= high:
                raise DataError(f"{self.name}: {name} must lie in {low}..{high - 1}")
        if len(self.source_id) != len(self):
            raise DataError(f"{self.name}: {len(self.source_id)} source ids for {len(self)} images")

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def of(
        cls,
        name: str,
        images: Images | Decoded,
        labels: npt.ArrayLike,
        classes: tuple[str, ...],
        source_id: Sequence[str],
        *,
        split: npt.ArrayLike = -1,
        subjects: Sequence[str] = (),
        sequences: Sequence[str] = (),
        sources: Mapping[str, Source] | None = None,
    ) -> FaceDataset:
        """A data set without folds, from what a reader finds.

        Subjects and sequences are given by name, one per sample, "" for none (or none at all), and numbered
        in sorted order; ``split`` may be one number for all samples.
        """
        subject, subject_names = _numbered(subjects or [""] * len(images))
        sequence, sequence_names = _numbered(sequences or [""] * len(images))
        return cls(
            name=name,
            images=images,
            labels=np.array(labels, dtype=np.int64),
            split=np.array(np.broadcast_to(split, len(images)), dtype=np.int64),
            subject=subject,
            sequence=sequence,
            fold=no_values(len(images)),
            source_id=source_id,
            classes=classes,
            subject_names=subject_names,
            sequence_names=sequence_names,
            sources=sources or {},
        )


def _numbered(names: Sequence[str]) -> tuple[Integers, tuple[str, ...]]:
    distinct = tuple(sorted(set(names) - {""}))
    number = {name: code for code, name in enumerate(distinct)} | {"": -1}
    return np.array([number[name] for name in names], dtype=np.int64), distinct


def no_values(samples: int) -> Integers:
    """An int64 array (samples,) of -1: "none" for split, subject, sequence or fold."""
    return np.full(samples, -1, dtype=np.int64)


def named(codes: Integers, names: Sequence[str]) -> npt.NDArray[np.object_]:
    """The name of each code, "" for -1."""
    return np.array([*names, ""], dtype=object)[codes]
