"""What lies beside a beton: the manifest (``X.json``) and the table of samples (``X.samples.csv``)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Final, Literal, NotRequired, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
from msgspec import Meta

from ferdist.data.audit import Pixels, Summary
from ferdist.data.beton.files import open_part
from ferdist.data.record import NAME, SPLITS, Count, FaceDataset, Integers, named
from ferdist.errors import DataError

SCHEMA: Final = 1
SAMPLE_COLUMNS: Final = {
    "index": "int64",
    "source_id": "str",
    "label": "int64",
    "class": "str",
    "split": "str",
    "subject": "str",
    "sequence": "str",
    "fold": "Int64",
    "copy_group": "int64",
}
"""Columns of ``X.samples.csv`` with their types in pandas; where there is none, text is "" and a fold NA."""

_AGAIN: Final = "run `ferdist prepare` again"


Content = bytes  # a manifest has a field of this name
FileName = Annotated[str, Meta(pattern=rf"^{NAME.pattern}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Fold = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,5})\Z")]
Share = Annotated[float, Meta(ge=0, le=1)]
Side = Annotated[int, Meta(ge=1, le=2**15)]


class ImageSize(TypedDict):
    """Of each image; pixels are uint8."""

    channels: Literal[1, 3]
    height: Side
    width: Side


class SplitCounts(TypedDict):
    """Samples of a split: how many, and how many of each class in label order."""

    samples: Count
    per_class: list[Count]


class FoldCounts(SplitCounts):
    """Samples of a fold, with the sorted names of the subjects in it."""

    subjects: list[str]


class Moments(TypedDict):
    """Mean and standard deviation of the pixels, one per channel, in units where 255 is 1."""

    mean: list[Share]
    std: list[Share]


class Statistics(TypedDict):
    """Moments of the training pixels: see ``pixel_statistics``."""

    train: NotRequired[Moments]
    all: NotRequired[Moments]
    without_fold: dict[Fold, Moments]


class _Version(TypedDict):
    schema: int


@dataclass(frozen=True)
class Manifest:
    """The manifest of a beton, with the keys of its JSON file.

    Attributes:
        name: stem of the beton.
        samples: number of samples, N.
        image: ``channels``, ``height`` and ``width`` of each image.
        classes: class names in label order.
        splits: counts by split name; only splits that have samples.
        folds: counts by fold number (as text, "0" to "K-1"); empty without folds.
        statistics: ``train`` (or ``all`` where no sample has a split) with mean and std of those pixels;
            ``without_fold`` with the same for the samples of all other folds, by fold number.
        sources: sha256 of the raw files, by name.
        bytes: size of the beton.
        sha256: checksum of the beton.
        samples_sha256: checksum of ``X.samples.csv``.
        audit: what the audit found.
        created: versions of ferdist, ffcv and numpy, and the date (UTC).
    """

    name: FileName
    samples: Annotated[int, Meta(ge=1, le=2**53)]
    image: ImageSize
    classes: Annotated[list[str], Meta(min_length=1)]
    splits: dict[str, SplitCounts]
    folds: Annotated[dict[Fold, FoldCounts], Meta(max_length=10_000)]
    statistics: Statistics
    sources: dict[str, str]
    bytes: Count
    sha256: Sha256
    samples_sha256: Sha256
    audit: Summary
    created: dict[str, str]

    def __post_init__(self) -> None:
        """Check what the parts say of each other, with a ValueError that `parse` tells like others."""
        rest, channels = self.statistics["without_fold"], self.image["channels"]
        if len(self.folds) > 1 and set(rest) != set(self.folds):
            raise ValueError("'statistics.without_fold' must have the folds of 'folds'")
        moments = [self.statistics[key] for key in ("train", "all") if key in self.statistics]
        moments += rest.values()
        if any({len(one["mean"]), len(one["std"])} != {channels} for one in moments):
            raise ValueError(f"'statistics' must have a mean and std per channel ({channels})")
        parts = (*self.splits.values(), *self.folds.values())
        if any(len(part["per_class"]) != len(self.classes) for part in parts):
            raise ValueError(f"'per_class' must have a number per class ({len(self.classes)})")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each image."""
        return self.image["channels"], self.image["height"], self.image["width"]

    def moments_without(self, *left_out: int) -> Moments | None:
        """Moments of the pixels of all folds but those given, from the moments that leave out one fold each.

        With the sums over all K folds S and over fold k S_k, the sums without one fold, S - S_k, add up to
        (K - 1) S: so each S_k is known, without reading a pixel.

        Returns:
            None where no fold is left.
        """
        folds = [str(number) for number in sorted(map(int, self.folds))]
        if len(folds) <= len(left_out):
            return None
        counts = np.array([self.folds[number]["samples"] for number in folds], dtype=np.float64)
        rest = [self.statistics["without_fold"][number] for number in folds]
        mean, std = (np.array([moments[name] for moments in rest]) for name in ("mean", "std"))
        outside = (counts.sum() - counts)[:, None]
        sums = np.stack([outside * mean, outside * (std**2 + mean**2)])  # (2, K, C), without each fold
        whole = sums.sum(axis=1) / (len(folds) - 1)
        parts = whole[:, None] - sums
        kept = [position for position, number in enumerate(folds) if int(number) not in left_out]
        first, second = parts[:, kept].sum(axis=1) / counts[kept].sum()
        deviation = np.sqrt(np.maximum(second - first**2, 0.0))
        return {"mean": first.tolist(), "std": deviation.tolist()}

    def to_json(self) -> str:
        """The text of the JSON file: the schema version, then the keys in the order of the attributes."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read and validate a manifest.

        Raises:
            DataError: if the file cannot be read, is not JSON, has another schema version, lacks a key, or
                holds a value of the wrong type.
        """
        try:
            with open_part(path, ".json") as file:
                return cls.parse(file.read(), path)
        except OSError as error:
            raise DataError(f"{path}: cannot read the manifest: {error.strerror}; {_AGAIN}") from error

    @classmethod
    def parse(cls, content: Content, path: Path) -> Manifest:
        """Validate the content of a manifest, which errors call ``path``.

        Raises:
            DataError: as `load`.
        """
        try:
            schema = msgspec.json.decode(content, type=_Version)["schema"]
            if schema != SCHEMA:
                raise ValueError(f"its schema is {schema}, and this version of ferdist reads schema {SCHEMA}")
            return msgspec.json.decode(content, type=cls)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a manifest: {_first_line(error)}; {_AGAIN}") from error


def count_parts(
    label: Integers, split: Integers, fold: Integers, subjects: npt.NDArray[np.object_], classes: int
) -> tuple[dict[str, SplitCounts], dict[str, FoldCounts]]:
    """Counts by name of each split that has samples, and by number of each fold.

    Args:
        label, split, fold: int64 (N,), -1 for no split or fold.
        subjects: names (N,), "" for none.
        classes: number of classes.
    """

    def count(code: Integers, number: int) -> list[SplitCounts]:
        within = code >= 0
        table = np.zeros((number, classes), dtype=np.int64)
        np.add.at(table, (code[within], label[within]), 1)
        return [{"samples": sum(row), "per_class": row} for row in table.tolist()]

    folds, of_fold = np.unique(fold, return_inverse=True)
    of_fold = np.where(fold >= 0, of_fold, -1)
    present: list[set[str]] = [set() for _ in folds]
    for number, subject in set(zip(of_fold.tolist(), subjects.tolist(), strict=True)):
        if number >= 0 and subject:
            present[number].add(subject)
    return (
        {name: part for name, part in zip(SPLITS, count(split, len(SPLITS)), strict=True) if part["samples"]},
        {
            str(number): {**part, "subjects": sorted(names)}
            for number, part, names in zip(folds.tolist(), count(of_fold, len(folds)), present, strict=True)
            if number >= 0
        },
    )


def pixel_statistics(pixels: Pixels, split: Integers, fold: Integers) -> Statistics:
    """Mean and standard deviation of the training pixels, from exact integer sums.

    Args:
        pixels: of N images.
        split: int64 (N,), index into ``SPLITS`` or -1.
        fold: int64 (N,), fold number or -1.

    Returns:
        ``train`` (``all`` where no sample has a split; neither where there are splits but no train) and
        ``without_fold``: for each fold, the moments of the samples of all other folds.
    """

    def moments(chosen: npt.NDArray[np.bool_]) -> Moments:
        count = int(chosen.sum()) * pixels.size
        total, square = (part[chosen].sum(axis=0).tolist() for part in (pixels.sums, pixels.squares))
        deviation = [math.sqrt(count * q - t**2) for t, q in zip(total, square, strict=True)]
        return {"mean": [t / (255 * count) for t in total], "std": [d / (255 * count) for d in deviation]}

    train = split == SPLITS.index("train")
    rest = {str(number): (fold >= 0) & (fold != number) for number in np.unique(fold[fold >= 0])}
    without_fold = {number: moments(mask) for number, mask in rest.items() if mask.any()}
    if (split < 0).all():
        return {"all": moments(split < 0), "without_fold": without_fold}
    if train.any():
        return {"train": moments(train), "without_fold": without_fold}
    return {"without_fold": without_fold}


def samples_table(dataset: FaceDataset, extra_columns: pd.DataFrame | None) -> pd.DataFrame:
    """The rows of ``X.samples.csv``: codes as names, -1 as an empty cell; copy groups are not known yet.

    Raises:
        DataError: if the extra columns do not fit, or two subjects or sequences have one name, or none.
    """
    for kind, names in (("subject", dataset.subject_names), ("sequence", dataset.sequence_names)):
        if len({*names, ""}) != len(names) + 1:
            raise DataError(f"{dataset.name}: each {kind} must have a name of its own")

    table = pd.DataFrame(
        {
            "index": np.arange(len(dataset)),
            "source_id": np.asarray(dataset.source_id, dtype=object),
            "label": dataset.labels,
            "class": named(dataset.labels, dataset.classes),
            "split": named(dataset.split, SPLITS),
            "subject": named(dataset.subject, dataset.subject_names),
            "sequence": named(dataset.sequence, dataset.sequence_names),
            "fold": pd.Series(dataset.fold, dtype="Int64").mask(dataset.fold < 0),
            "copy_group": -1,
        }
    )
    if extra_columns is None:
        return table
    if len(extra_columns) != len(table):
        raise DataError(
            f"{dataset.name}: {len(extra_columns)} rows of extra columns for {len(table)} samples"
        )
    return pd.concat([table, extra_columns.reset_index(drop=True)], axis="columns")


def read_samples(content: bytes, path: Path) -> pd.DataFrame:
    """Read ``X.samples.csv``: ``SAMPLE_COLUMNS``, then extra columns as pandas infers them.

    Args:
        content: of the file.
        path: what errors call it.

    Raises:
        DataError: if it lacks a column, or holds something other than integers in a number column.
    """
    try:
        columns = pd.read_csv(BytesIO(content), nrows=0).columns
        with np.errstate(invalid="raise"):  # a warning on stderr otherwise
            table = pd.read_csv(
                BytesIO(content),
                dtype=SAMPLE_COLUMNS,
                keep_default_na=False,  # a subject may be called NA
                na_values={column: [""] for column in columns if SAMPLE_COLUMNS.get(column) != "str"},
            )
    except (ValueError, TypeError, ArithmeticError) as error:  # parser and decoding errors are among them
        raise DataError(f"{path}: not a table of samples ({_first_line(error)}); {_AGAIN}") from error
    missing = [column for column in SAMPLE_COLUMNS if column not in table.columns]
    if missing:
        raise DataError(f"{path}: the column {missing[0]!r} is missing; {_AGAIN}")
    return table


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
