"""An opened beton: verified against its manifest and table, with the samples of each part."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ferdist.data.beton.files import PAIR, Identity, identity, open_parts
from ferdist.data.beton.layout import CODES, read_records
from ferdist.data.beton.manifest import Manifest, count_parts, read_samples
from ferdist.data.folds import ALL, HOLDOUT, Holdout
from ferdist.data.record import SPLITS, Integers, named
from ferdist.errors import DataError
from ferdist.io import sha256


@dataclass(frozen=True)
class Beton:
    """An opened and verified beton.

    Attributes:
        path: the beton.
        manifest: its manifest.
        samples: ``X.samples.csv``, one row per index (see ``manifest.read_samples`` for the types).
        label: int64 (N,), 0 to K-1.
        split: int64 (N,), index into ``SPLITS`` or -1.
        subject: int64 (N,), person or -1.
        fold: int64 (N,), fold in which the sample is held out or -1.
        sequence: int64 (N,), number of the video sequence, counted in order of appearance, or -1.
        copy_group: int64 (N,), smallest index with exactly the same pixels.
        file: which file was verified.
    """

    path: Path
    manifest: Manifest
    samples: pd.DataFrame
    label: Integers
    split: Integers
    subject: Integers
    fold: Integers
    sequence: Integers
    copy_group: Integers
    file: Identity

    def indices(self, split: str, holdout: Holdout = Holdout()) -> Integers:
        """The samples of a split, ascending.

        Args:
            split: "train", "val" or "test"; "holdout", the part of train that a ``val_share`` leaves out; or
                "all", of data without splits.
            holdout: what is left out of train; by default the beton's splits say. Where a fold is held out,
                samples without a fold are in neither train nor val.

        Returns:
            int64 (M,), M > 0.

        Raises:
            DataError: if there is no such split or fold, or no sample in it.
        """
        if split not in (*SPLITS, HOLDOUT, ALL):
            raise DataError(f"{self.path}: no split {split!r}; choose one of {', '.join(SPLITS)}")
        if split == ALL and self.manifest.splits:
            raise DataError(f"{self.path}: all is for data without splits; it has {self._parts()}")
        fold = holdout.fold
        if split == ALL:
            chosen = np.ones(self.manifest.samples, dtype=np.bool_)
        elif fold is None and split == HOLDOUT:
            chosen = self._held_out(holdout.val_share)
        elif fold is None:
            chosen = self.split == SPLITS.index(split)
            if split == "train" and holdout.val_share:
                chosen &= ~self._held_out(holdout.val_share)
        elif split in ("test", HOLDOUT):
            raise DataError(f"{self.path}: fold {fold} has no {split} split; it has train and val")
        else:
            self._check_folds(holdout)
            if split == "val":
                chosen = self.fold == holdout.scored_fold
            else:
                chosen = (self.fold >= 0) & ~np.isin(self.fold, holdout.folds)
        indices: Integers = np.flatnonzero(chosen).astype(np.int64)
        if len(indices) == 0:
            place = "" if fold is None else f" beside fold {fold}"
            folded = split == "train" and fold is None and self.manifest.folds
            remedy = ": set data.fold=0 or another one, or use launch.kfold" if folded else ""
            raise DataError(f"{self.path}: no {split} sample{place}; it has {self._parts()}{remedy}")
        return indices

    def _held_out(self, share: float) -> npt.NDArray[np.bool_]:
        """Which samples belong to the part of the train split that is held out."""
        train = self.split == SPLITS.index("train")
        with_subjects = train.any() and (self.subject[train] >= 0).all()
        group = self.subject if with_subjects else self.copy_group
        names, sizes = np.unique(group[train], return_counts=True)
        order = np.random.default_rng(0).permutation(len(names))
        before = np.cumsum(sizes[order]) - sizes[order]
        drawn = names[order[before < share * sizes.sum()]]
        held_out: npt.NDArray[np.bool_] = train & np.isin(group, drawn)
        return held_out

    def normalisation(self, holdout: Holdout = Holdout()) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the training pixels, per channel, in units where 255 is 1.

        Args:
            holdout: the folds to leave out; without any, the pixels are those of the whole train split, or of
                all samples where there is no split.

        Returns:
            Mean and standard deviation, C numbers each, the latter above 0.

        Raises:
            DataError: if there is no such fold or no training sample, or all training pixels are the same.
        """
        statistics = self.manifest.statistics
        self._check_folds(holdout)
        if holdout.fold is None:
            moments = statistics.get("train") or statistics.get("all")
        elif holdout.inner_fold is None:
            moments = statistics["without_fold"].get(str(holdout.fold))
        else:
            moments = self.manifest.moments_without(*holdout.folds)
        if moments is None:
            raise DataError(f"{self.path}: no train sample to normalise by; it has {self._parts()}")
        if min(moments["std"]) <= 0:
            raise DataError(f"{self.path}: all training pixels of a channel are the same; check the raw data")
        return list(moments["mean"]), list(moments["std"])

    def _check_folds(self, holdout: Holdout) -> None:
        for fold in holdout.folds:
            if str(fold) not in self.manifest.folds:
                remedy = (
                    "to one of them" if self.manifest.folds else "to null, or take a config for these data"
                )
                raise DataError(
                    f"{self.path}: no fold {fold}; it has {self._parts()}: set data.fold {remedy}"
                )

    def _parts(self) -> str:
        splits = [f"{name} ({counts['samples']})" for name, counts in self.manifest.splits.items()]
        folds = sorted(map(int, self.manifest.folds))
        parts = [f"the splits {', '.join(splits)}"] if splits else ["no splits"]
        parts += [f"the folds {', '.join(map(str, folds))}"] if folds else ["no folds"]
        return " and ".join(parts)


def open_beton(path: Path, *, checksum: bool = False) -> Beton:
    """Open a beton after checking it against its manifest and table of samples.

    Every opening checks the size, FFCV's header, fields, records and allocation table, the table of samples
    (by checksum and row by row) and all counts. Only the checksum finds changed pixels.

    Args:
        path: ``X.beton``, with ``X.json`` and ``X.samples.csv`` beside it.
        checksum: also compare the sha256 of the whole file with the manifest's.

    Raises:
        DataError: if one of the three is missing, damaged, or belongs to another set.
    """
    path = Path(path)

    def check(right: bool, fault: str) -> None:
        if not right:
            raise DataError(f"{path}: {fault}; {PAIR}")

    with open_parts(path) as files:
        file = identity(os.fstat(files[".beton"].fileno()))
        manifest = Manifest.parse(files[".json"].read(), path.with_suffix(".json"))
        table = files[".samples.csv"].read()
        same = hashlib.sha256(table).hexdigest() == manifest.samples_sha256
        check(same, "the sha256 of its .samples.csv is not the manifest's: edited, or of another set")
        samples = read_samples(table, path.with_suffix(".samples.csv"))
        rows, classes = len(samples), len(manifest.classes)
        check(rows == manifest.samples, f"its table has {rows} rows for {manifest.samples} samples")
        records = read_records(files[".beton"], path, manifest.image_shape, manifest.samples)
        whole = not checksum or sha256(files[".beton"]) == manifest.sha256
        check(whole, "its sha256 is not the manifest's: damaged, or of another set")
    label, split, subject, fold, index = (
        np.ascontiguousarray(records[name], dtype=np.int64) for name in CODES
    )

    known = label.min() >= 0 and label.max() < classes and split.min() >= -1 and split.max() < len(SPLITS)
    known = known and {str(number) for number in np.unique(fold[fold >= 0])} == set(manifest.folds)
    check(known, "it has a label, split or fold that the manifest does not know")
    subjects = samples["subject"].to_numpy(dtype=object)
    check(
        count_parts(label, split, fold, subjects, classes) == (manifest.splits, manifest.folds),
        "its counts per split, fold or class are not the manifest's",
    )
    copy_group = samples["copy_group"].to_numpy(dtype=np.int64)
    agreement = {
        "index": samples["index"].to_numpy() == index,
        "label": samples["label"].to_numpy() == label,
        "split": samples["split"].to_numpy(dtype=object) == named(split, SPLITS),
        "subject": _numbered(samples["subject"], "") == _numbered(pd.Series(subject), -1),
        "fold": samples["fold"].fillna(-1).to_numpy(dtype=np.int64) == fold,
        "copy_group": (copy_group >= 0) & (copy_group <= index),
    }
    for column, equal in agreement.items():
        check(equal.all(), f"row {int(equal.argmin())} of its table has another {column}")
    sequence = _numbered(samples["sequence"], "")
    return Beton(path, manifest, samples, label, split, subject, fold, sequence, copy_group, file)


def _numbered(values: pd.Series, none: object) -> Integers:
    """Number the values in order of appearance, and ``none`` as -1."""
    numbers, _ = pd.factorize(values.mask(values == none))
    return np.asarray(numbers, dtype=np.int64)
