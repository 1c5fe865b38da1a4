"""Write a beton with its manifest and table of samples, all three or none."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

import ferdist
from ferdist.data.audit import Audit, audit
from ferdist.data.beton.files import replacement
from ferdist.data.beton.layout import contents
from ferdist.data.beton.manifest import (
    SAMPLE_COLUMNS,
    Manifest,
    count_parts,
    pixel_statistics,
    read_samples,
    samples_table,
)
from ferdist.data.record import NAME, NAME_RULE, FaceDataset, named
from ferdist.errors import DataError
from ferdist.io import sha256


def write_beton(dataset: FaceDataset, out_dir: Path, *, extra_columns: pd.DataFrame | None = None) -> Path:
    """Audit a data set and write ``NAME.beton``, ``NAME.json`` and ``NAME.samples.csv`` into a folder.

    The files are written in a temporary folder beside their places, read back, compared with the data set
    byte by byte, and only then take the place of an older set of the same name, all at once (see
    ``files.replacement``). The same data set gives the same bytes of beton and table each time.

    Args:
        dataset: the samples; its name is the stem of the files.
        out_dir: an existing folder.
        extra_columns: further columns for the table of samples, one row per sample in the same order.

    Returns:
        Path of the beton.

    Raises:
        DataError: if the folder is missing or cannot be written, the disk is full, the name cannot name a
            file, or the extra columns do not fit the data set. Nothing new is left then.
    """
    if not NAME.fullmatch(dataset.name):
        raise DataError(f"{dataset.name!r} cannot name a file: {NAME_RULE}")
    if not out_dir.is_dir():
        raise DataError(f"{out_dir}: no such folder; create it first")
    findings = audit(dataset)
    table = samples_table(dataset, findings.copy_group, extra_columns)
    beton = out_dir / f"{dataset.name}.beton"
    try:
        with replacement(beton) as folder:
            written = folder / beton.name
            with written.open("xb") as file:
                file.writelines(contents(dataset))
            _verify(written, dataset)
            samples = written.with_suffix(".samples.csv")
            with samples.open("x", encoding="utf-8", newline="") as text:
                table.to_csv(text, index=False, lineterminator="\n")
            _verify_table(samples, table)
            description = _describe(dataset, findings, written, samples)
            written.with_suffix(".json").write_text(description.to_json(), encoding="utf-8")
    except BlockingIOError:
        raise DataError(
            f"{beton}: another `ferdist prepare` is writing this set; wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise DataError(f"{beton}: cannot write it: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{dataset.name}: a name is not UTF-8: {error.object!r:.80}; rename it") from error
    return beton


def _verify(path: Path, dataset: FaceDataset) -> None:
    """Read a beton back and compare every byte with the data set."""
    with path.open("rb") as file:
        if not all(file.read(len(part)) == part for part in contents(dataset)) or file.read(1):
            raise DataError(f"{path}: reads back different from what was written; check the disk")


def _verify_table(path: Path, table: pd.DataFrame) -> None:
    columns = list(SAMPLE_COLUMNS)
    found = read_samples(path.read_bytes(), path)[columns].astype(str)
    if not found.equals(table[columns].astype(str)):
        raise DataError(
            f"{path}: the table of samples reads back different; look for odd characters in file names"
        )


def _describe(dataset: FaceDataset, findings: Audit, beton: Path, samples: Path) -> Manifest:
    channels, height, width = dataset.images.shape[1:]
    subjects = named(dataset.subject, dataset.subject_names)
    splits, folds = count_parts(dataset.labels, dataset.split, dataset.fold, subjects, len(dataset.classes))
    return Manifest(
        name=dataset.name,
        samples=len(dataset),
        image={"channels": channels, "height": height, "width": width},
        classes=list(dataset.classes),
        splits=splits,
        folds=folds,
        statistics=pixel_statistics(dataset.images, dataset.split, dataset.fold),
        sources=dict(dataset.sources),
        bytes=beton.stat().st_size,
        sha256=sha256(beton),
        samples_sha256=sha256(samples),
        audit=findings.summary,
        created={
            "ferdist": ferdist.__version__,
            "ffcv": version("ffcv"),
            "numpy": np.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
