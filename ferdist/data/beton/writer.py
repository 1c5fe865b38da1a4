"""Write a beton with its manifest and table of samples, all three or none."""

from __future__ import annotations

import hashlib
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

import ferdist
from ferdist.data.audit import Pixels, audit
from ferdist.data.beton.files import replacement
from ferdist.data.beton.layout import Layout, contents
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
from ferdist.io import MIB, sha256


def write_beton(dataset: FaceDataset, out_dir: Path, *, extra_columns: pd.DataFrame | None = None) -> Path:
    """Audit a data set and write ``NAME.beton``, ``NAME.json`` and ``NAME.samples.csv`` into a folder.

    The images are read once, a page at a time. The files are written in a temporary folder beside their
    places, read back, compared with what was to be written, and only then take the place of an older set of
    the same name, all at once (see ``files.replacement``). The same data set gives the same bytes of beton
    and table each time.

    Args:
        dataset: the samples; its name is the stem of the files.
        out_dir: an existing folder.
        extra_columns: further columns for the table of samples, one row per sample in the same order.

    Returns:
        Path of the beton.

    Raises:
        DataError: if the folder is missing or cannot be written, the disk is full, an image cannot be
            decoded, the name cannot name a file, or the extra columns do not fit the data set. Nothing new
            is left then.
    """
    if not NAME.fullmatch(dataset.name):
        raise DataError(f"{dataset.name!r} cannot name a file: {NAME_RULE}")
    if not out_dir.is_dir():
        raise DataError(f"{out_dir}: no such folder; create it first")
    table = samples_table(dataset, extra_columns)
    beton = out_dir / f"{dataset.name}.beton"
    try:
        with replacement(beton) as folder:
            written = folder / beton.name
            pixels, digest = _write(written, dataset)
            table["copy_group"] = pixels.copy_group
            samples = written.with_suffix(".samples.csv")
            with samples.open("x", encoding="utf-8", newline="") as text:
                table.to_csv(text, index=False, lineterminator="\n")
            _verify_table(samples, table)
            description = _describe(dataset, pixels, digest, samples)
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


def _write(path: Path, dataset: FaceDataset) -> tuple[Pixels, str]:
    """Write a beton and read it back; what is to be known of its pixels, and its sha256."""
    size, free = Layout(dataset.images.shape[1:], len(dataset)).size, shutil.disk_usage(path.parent).free
    if size > free:
        raise DataError(
            f"{path.name}: takes {size / MIB:,.0f} MiB, and {free / MIB:,.0f} MiB are free; make room"
        )
    pixels, digest = Pixels(dataset.images.shape), hashlib.sha256()
    with path.open("xb") as file:
        for part in contents(dataset, pixels.add):
            digest.update(part)
            file.write(part)
    if sha256(path) != digest.hexdigest():
        raise DataError(f"{path}: reads back different from what was written; check the disk")
    return pixels, digest.hexdigest()


def _verify_table(path: Path, table: pd.DataFrame) -> None:
    columns = list(SAMPLE_COLUMNS)
    found = read_samples(path.read_bytes(), path)[columns].astype(str)
    if not found.equals(table[columns].astype(str)):
        raise DataError(
            f"{path}: the table of samples reads back different; look for odd characters in file names"
        )


def _describe(dataset: FaceDataset, pixels: Pixels, digest: str, samples: Path) -> Manifest:
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
        statistics=pixel_statistics(pixels, dataset.split, dataset.fold),
        sources={name: of if isinstance(of, str) else of() for name, of in dataset.sources.items()},
        bytes=Layout((channels, height, width), len(dataset)).size,
        sha256=digest,
        samples_sha256=sha256(samples),
        audit=audit(dataset, pixels),
        created={
            "ferdist": ferdist.__version__,
            "ffcv": version("ffcv"),
            "numpy": np.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
