"""FER+ (Barsoum et al. 2016): ten annotators' votes for each FER2013 image.

Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution, ICMI 2016.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ferdist.data.fer2013 import USAGE_SPLIT
from ferdist.data.record import FER2013_CLASSES, FaceDataset, Integers
from ferdist.errors import DataError
from ferdist.io import read_untrusted

FERPLUS_CLASSES: Final = ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt")
"""Classes in the order of FER+'s columns and of the label numbers in the published lists."""

VOTES: Final = (*FERPLUS_CLASSES, "unknown", "nf")
"""What can be voted for; NF is "not a face". The columns of samples.csv are ``votes_`` with one of these."""

ANNOTATORS: Final = 10
AGREEMENT: Final = 0.5
"""Share of the rows on which FER+ must agree with FER2013's label; shuffled rows agree on 18 %."""

BLOCK: Final = 1000
BLOCK_AGREEMENT: Final = 1 / 3
"""The share for each block of about ``BLOCK`` rows, so that a stretch of shifted rows is seen too."""

_CSV_VOTES: Final = (
    *("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    *("unknown", "NF"),
)
_VOTE_COLUMNS: Final = [f"votes_{vote}" for vote in VOTES]


class FerPlusLabels(NamedTuple):
    """Labels from votes.

    Attributes:
        majority: int64 (N,), index into ``FERPLUS_CLASSES``, or -1 where there is none.
        voted: int64 (N,), index of the class with the most votes, the first of several, or -1 where unknown
            or not a face has more.
        distribution: float32 (N, 8) over ``FERPLUS_CLASSES``; rows sum to 1, or are 0 where there is none.
    """

    majority: Integers
    voted: Integers
    distribution: npt.NDArray[np.float32]


# The votes


def read_ferplus(path: Path, dataset: FaceDataset) -> pd.DataFrame:
    """Read ``fer2013new.csv`` and join it, row by row, with the ``fer2013.csv`` that it was made for.

    Row position is the only key, since the number in an image's name is not its row. Equal numbers of rows,
    each row's Usage and the agreement of the labels show a wrong pair of any size.

    Args:
        path: of ``fer2013new.csv``.
        dataset: what ``read_fer2013`` made of a csv in its original row order.

    Returns:
        A row per sample, columns for samples.csv: ``image_name`` (str, FER+'s own, "" for the 173 images
        without one), then int64 ``votes_neutral`` to ``votes_contempt``, ``votes_unknown`` and ``votes_nf``.

    Raises:
        DataError: if the data set does not come from a csv, the numbers of rows differ, a Usage differs,
            votes are not integers that sum to 1 to 10 in a row, or the most voted of FER2013's classes
            is FER2013's label for less than half of all rows or a third of a block.
    """
    if dataset.classes != FER2013_CLASSES or not all(name.startswith("line ") for name in dataset.source_id):
        raise DataError(
            f"{path}: FER+ is joined by row position, and the image folders have lost the order of the rows; "
            "give the original fer2013.csv as the source"
        )
    csv = next(iter(dataset.sources), dataset.name)
    table = _read_table(path)
    if len(table) != len(dataset):
        raise DataError(
            f"{path}: {len(table)} rows, but {csv} has {len(dataset)}, and they are joined by row position; "
            "give the original files with all their rows"
        )
    _check_usage(path, table["Usage"], dataset, csv)
    votes = _read_votes(path, table)
    _check_agreement(path, votes, dataset, csv)
    columns = pd.DataFrame(votes, columns=_VOTE_COLUMNS)
    columns.insert(0, "image_name", table["Image name"])
    return columns


def _read_table(path: Path) -> pd.DataFrame:
    """The columns of the file as text."""
    try:
        content = BytesIO(read_untrusted(path))
        table = pd.read_csv(
            content, dtype="str", keep_default_na=False, index_col=False, skipinitialspace=True
        )
    except OSError as error:
        raise DataError(f"{path}: cannot read it: {error.strerror}; give fer2013new.csv") from error
    except ValueError as error:  # parser and decoding errors are among them
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a table ({reason}); give the original fer2013new.csv") from error
    table.columns = table.columns.str.strip()
    missing = [name for name in ("Usage", "Image name", *_CSV_VOTES) if name not in table.columns]
    if missing:
        raise DataError(f"{path}: column {missing[0]!r} is missing; give the original fer2013new.csv")
    return table.fillna("")


def _check_usage(path: Path, usage: pd.Series[str], dataset: FaceDataset, csv: str) -> None:
    split = usage.map(USAGE_SPLIT).fillna(len(USAGE_SPLIT)).to_numpy(dtype=np.int64)
    wrong = np.flatnonzero(split != dataset.split)
    if len(wrong):
        row = int(wrong[0])
        expected = list(USAGE_SPLIT)[dataset.split[row]]
        raise DataError(
            f"{path}: Usage of row {row + 1} is {usage[row]!r}, but of {dataset.source_id[row]} in {csv} "
            f"{expected!r}; give the original files with their rows in order"
        )


def _read_votes(path: Path, table: pd.DataFrame) -> Integers:
    """Votes, int64 (N, 10), in the order of ``VOTES``."""
    numbers = table[list(_CSV_VOTES)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    right = (numbers >= 0) & (numbers <= ANNOTATORS) & (numbers == np.rint(numbers))
    for row, column in np.argwhere(~right)[:1].tolist():
        name = _CSV_VOTES[column]
        raise DataError(
            f"{path}: row {row + 1}: {name} is {table[name][row]!r}, not a number of votes from 0 to "
            f"{ANNOTATORS}; give the original fer2013new.csv"
        )
    votes: Integers = numbers.astype(np.int64)
    total = votes.sum(axis=1)
    for row in np.flatnonzero((total < 1) | (total > ANNOTATORS))[:1].tolist():
        raise DataError(
            f"{path}: row {row + 1} has {total[row]} votes, not 1 to {ANNOTATORS}; "
            "give the original fer2013new.csv"
        )
    return votes


def _check_agreement(path: Path, votes: Integers, dataset: FaceDataset, csv: str) -> None:
    shared = votes[:, [FERPLUS_CLASSES.index(name) for name in FER2013_CLASSES]]
    agrees = (shared.argmax(axis=1) == dataset.labels) & (shared.max(axis=1) > 0)
    everything = np.arange(len(dataset))
    blocks = np.array_split(everything, max(1, len(dataset) // BLOCK))
    for rows, least in [(everything, AGREEMENT), *((block, BLOCK_AGREEMENT) for block in blocks)]:
        share = float(agrees[rows].mean())
        if share < least:
            raise DataError(
                f"{path}: in rows {rows[0] + 1} to {rows[-1] + 1} the most voted class is the label in {csv} "
                f"for {share:.1%}, not for at least {least:.0%}: their rows are not in the same order; "
                "give the original files"
            )


def most_voted(dataset: FaceDataset, columns: pd.DataFrame) -> tuple[FaceDataset, pd.DataFrame]:
    """FERPlus as a data set of its own: each image with the class that has the most votes.

    Images where unknown or not a face has more votes are left out. That keeps 28,389, 3,553 and 3,546 images
    of the three splits; counted by image names, four of which are given twice, 28,386, 3,553 and 3,545.

    Args:
        dataset: FER2013 as `read_ferplus` has joined it.
        columns: what `read_ferplus` returned.

    Returns:
        The data set ``ferplus`` in FERPLUS_CLASSES with its rows of the columns, so that ``data.labels`` can
        choose the majority or the distribution of the votes, too.

    Raises:
        DataError: if no image is left.
    """
    label = ferplus_labels(columns).voted
    rows = np.flatnonzero(label >= 0)
    faces = FaceDataset.of(
        "ferplus",
        np.asarray(dataset.images)[rows],
        label[rows],
        FERPLUS_CLASSES,
        [dataset.source_id[row] for row in rows.tolist()],
        split=dataset.split[rows],
        sources=dataset.sources,
    )
    return faces, columns.iloc[rows]


# The labels


def ferplus_labels(samples: pd.DataFrame) -> FerPlusLabels:
    """Make labels of the votes by the rules of the code that was published with FER+.

    First of all, what a single annotator voted for is taken as an outlier: its vote is removed, in all ten
    columns. Half and three quarters below are of the votes that remain.

    - majority ("majority" there): the class with more than half of the votes; none without such a class, and
      none where it is unknown or not a face.
    - distribution ("crossentropy" and "probability" there): the votes, divided by their sum, of the classes
      with the most votes. Classes are added from the most voted down, those with equal votes together, until
      they hold three quarters of the votes or are three, or until unknown or not a face has more votes than
      the next. None where they then hold half of the votes or fewer, or are more than three.

    So there is a distribution wherever there is a majority, and for some images besides. FER+'s authors
    publish scores for the images with a majority. Those of SCN and RAN (Wang et al. 2020) score by the class
    with the most votes ("voted", of the ten columns as they are), which more and harder images have.

    Args:
        samples: a table with the ``votes_`` columns, as ``read_ferplus`` or samples.csv gives them.

    Raises:
        DataError: if a column is missing or does not hold votes.
    """
    missing = [column for column in _VOTE_COLUMNS if column not in samples.columns]
    if missing:
        raise DataError(
            f"the table of samples has no column {missing[0]}, so there are no FER+ labels; "
            "run `ferdist prepare fer2013` again with --ferplus fer2013new.csv"
        )
    for column in _VOTE_COLUMNS:
        if not (samples[column].dtype == np.int64 and samples[column].between(0, ANNOTATORS).all()):
            raise DataError(
                f"the column {column} of the table of samples is not of integers from 0 to {ANNOTATORS}; "
                "run `ferdist prepare fer2013` again"
            )
    votes = samples[_VOTE_COLUMNS].to_numpy(dtype=np.int64)
    chosen = votes.argmax(axis=1)
    votes = np.where(votes > 1, votes, 0)
    total = votes.sum(axis=1)
    best = votes.argmax(axis=1)
    found = (2 * votes.max(axis=1) > total) & (best < len(FERPLUS_CLASSES))
    return FerPlusLabels(
        majority=np.where(found, best, -1).astype(np.int64),
        voted=np.where(chosen < len(FERPLUS_CLASSES), chosen, -1).astype(np.int64),
        distribution=_distribution(votes[:, : len(FERPLUS_CLASSES)], votes[:, len(FERPLUS_CLASSES) :], total),
    )


def _distribution(classes: Integers, others: Integers, total: Integers) -> npt.NDArray[np.float32]:
    """Args: votes (N, 8) for the classes, (N, 2) for unknown and not a face, (N,) for both together."""
    ahead = classes[:, np.newaxis, :] > classes[:, :, np.newaxis]  # (N, 8, 8): has more votes than
    votes_ahead = (ahead * classes[:, np.newaxis, :]).sum(axis=2)
    taken = (
        (classes > 0)
        & (classes >= others.max(axis=1, keepdims=True))
        & (4 * votes_ahead < 3 * total[:, np.newaxis])
        & (ahead.sum(axis=2) < 3)
    )
    kept = np.where(taken, classes, 0)
    valid = (2 * kept.sum(axis=1) > total) & (taken.sum(axis=1) <= 3)
    kept[~valid] = 0
    shares: npt.NDArray[np.float64] = kept / np.maximum(kept.sum(axis=1, keepdims=True), 1)
    return shares.astype(np.float32)
