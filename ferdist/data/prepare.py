"""Raw files to a beton: read, assign folds, audit, write."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from ferdist.data.audit import EQUALISED_TEXT, audit
from ferdist.data.beton import write_beton
from ferdist.data.ckplus import read_ckplus
from ferdist.data.fer2013 import read_ckextended, read_fer2013
from ferdist.data.ferplus import read_ferplus
from ferdist.data.folders import read_folders
from ferdist.data.folds import assign_folds, fold_evenness
from ferdist.data.rawformats import write_synthetic
from ferdist.data.record import FaceDataset
from ferdist.data.synthetic import synthesize
from ferdist.errors import DataError, tell
from ferdist.io import sha256

SYNTHETIC_FOLDS = 10


def fer2013(
    source: Path,
    out: Path,
    *,
    allow_extra: bool = False,
    ferplus: Path | None = None,
    ckextended: bool = False,
) -> Path:
    """Convert FER2013, with FER+'s names and votes where its csv is given; the path of the beton."""
    dataset = read_ckextended(source) if ckextended else read_fer2013(source, allow_extra=allow_extra)
    if ferplus is None:
        return _write(dataset, out)
    votes = read_ferplus(ferplus, dataset)
    sources = {**dataset.sources, ferplus.name: sha256(ferplus)}
    return _write(dataclasses.replace(dataset, sources=sources), out, votes)


def ckplus(
    source: Path,
    out: Path,
    *,
    folds: int = 10,
    seed: int = 0,
    classes: int = 7,
    subjects_from: Path | None = None,
) -> Path:
    """Convert CK+ with subject-independent folds; the path of the beton."""
    dataset = read_ckplus(source, classes, subjects_from=subjects_from)
    return _write(assign_folds(dataset, folds, seed), out)


def folders(
    source: Path,
    out: Path,
    *,
    name: str,
    size: int = 48,
    subject_regex: str | None = None,
    folds: int = 0,
    seed: int = 0,
) -> Path:
    """Convert a folder of class folders; the path of the beton."""
    dataset = read_folders(source, name, size=size, subject_regex=subject_regex)
    return _write(assign_folds(dataset, folds, seed) if folds else dataset, out)


def synthetic(out: Path, *, images: int, seed: int = 0, format: str = "beton") -> Path:
    """Write drawn faces as a beton, or in the raw layout that ``format`` names; the path written."""
    if format != "beton":
        return write_synthetic(out, images, seed, format)
    return _write(assign_folds(synthesize(images, seed), SYNTHETIC_FOLDS, seed), out)


def _write(dataset: FaceDataset, out: Path, extra_columns: pd.DataFrame | None = None) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: the folder cannot be made: {error.strerror}") from None
    findings = audit(dataset)
    if findings.summary["equalised"]:
        tell(f"ferdist: {dataset.name}: {EQUALISED_TEXT}")
    if (dataset.fold >= 0).all():
        evenness = fold_evenness(dataset)
        spread = {name: evenness[name] for name in ("samples", "subjects", "per_class", "unevenness")}
        findings = dataclasses.replace(findings, summary={**findings.summary, "folds": spread})
    return write_beton(dataset, out, findings, extra_columns=extra_columns)
