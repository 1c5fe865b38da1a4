"""Write a beton with its manifest and table of samples, all three or none."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from ffcv.fields import IntField, NDArrayField
from ffcv.reader import Reader
from ffcv.types import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    TYPE_ID_HANDLER,
    FieldDescType,
    HeaderType,
    get_metadata_type,
)
from ffcv.writer import MAX_PAGE_SIZE, MIN_PAGE_SIZE

import ferdist
from ferdist.data.beton.manifest import (
    SAMPLE_COLUMNS,
    Manifest,
    count_folds,
    count_splits,
    pixel_statistics,
    read_samples,
    samples_table,
)
from ferdist.data.record import FaceDataset, Integers
from ferdist.errors import DataError
from ferdist.io import sha256, sync

if TYPE_CHECKING:
    from ferdist.data.audit import Audit

CODES: Final = ("label", "split", "subject", "fold", "index")
"""Names of the integer fields that follow ``image``, in order."""


def write_beton(
    dataset: FaceDataset,
    out_dir: Path,
    audit: Audit,
    *,
    extra_columns: pd.DataFrame | None = None,
) -> Path:
    """Write ``NAME.beton``, ``NAME.json`` and ``NAME.samples.csv`` into a folder.

    The files are written in a temporary folder beside their places, read back, compared with the data set in
    every code and pixel, and only then renamed. An older set of the same name is replaced. The manifest goes
    first and comes last, so a crash at any moment leaves a whole set or one without a manifest, which
    ``open_beton`` refuses. The same data set gives the same bytes of beton and table each time.

    Args:
        dataset: the samples; its name is the stem of the files.
        out_dir: an existing folder.
        audit: the audit of the same data set.
        extra_columns: further columns for the table of samples, one row per sample in the same order.

    Returns:
        Path of the beton.

    Raises:
        DataError: if the folder is missing or cannot be written, the disk is full, the name is no file name,
            or the audit or the extra columns do not fit the data set. Nothing new is left then.
    """
    out_dir = Path(out_dir)
    if not dataset.name or dataset.name.startswith(".") or set(dataset.name) & set("/\\\0"):
        raise DataError(f"{dataset.name!r} cannot be the name of a file; choose letters, digits, - and _")
    if not out_dir.is_dir():
        raise DataError(f"{out_dir}: there is no such folder; create it first")
    if audit.copy_group.shape != (len(dataset),):
        raise DataError(f"{dataset.name}: the audit covers {len(audit.copy_group)} of {len(dataset)} samples")
    table = samples_table(dataset, audit.copy_group, extra_columns)
    beton = f"{dataset.name}.beton"
    try:
        with TemporaryDirectory(dir=out_dir, prefix=f".{dataset.name}.") as folder:
            temporary = Path(folder)
            with (temporary / beton).open("xb") as file:
                _write_records(file, dataset)
            sync(temporary / beton)
            _verify(temporary / beton, dataset)
            samples = temporary / f"{dataset.name}.samples.csv"
            with samples.open("x", encoding="utf-8", newline="") as text:
                table.to_csv(text, index=False, lineterminator="\n")
            sync(samples)
            _verify_table(samples, table)
            manifest = temporary / f"{dataset.name}.json"
            description = _describe(dataset, audit, temporary / beton, samples)
            manifest.write_text(description.to_json(), encoding="utf-8")
            sync(manifest)
            _replace(out_dir, [samples, temporary / beton, manifest])
    except OSError as error:
        raise DataError(f"{out_dir / beton}: cannot write it: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{dataset.name}: a name is not UTF-8: {error.object!r:.80}; rename it") from error
    return out_dir / beton


def read_records(path: Path, image_shape: tuple[int, int, int], samples: int) -> npt.NDArray[np.void]:
    """Check the whole structure of a beton and read its records, before FFCV maps the file.

    FFCV checks neither pointers nor sizes: with a wrong one it reads outside the file and the process dies.

    Args:
        path: the beton.
        image_shape: (C, H, W) that each image must have.
        samples: number of samples that it must have, N.

    Returns:
        (N,) with the fields ``image`` (uint64, position of the pixels in the file) and ``CODES`` (int64).

    Raises:
        DataError: if the file cannot be read or anything in it is not as it must be.
    """

    def check(right: bool, fault: str) -> None:
        if not right:
            raise DataError(f"{path}: damaged or no beton: {fault}; run `ferdist prepare` again")

    fields = _fields(image_shape)
    descriptors = _descriptors(fields).tobytes()
    metadata_type = get_metadata_type(list(fields.values()))
    start = HeaderType.itemsize + len(descriptors) + samples * metadata_type.itemsize
    try:
        size = path.stat().st_size
        check(size >= start, f"it ends after {size} bytes")
        with path.open("rb") as file:
            header = np.frombuffer(file.read(HeaderType.itemsize), dtype=HeaderType)[0]
            found = file.read(len(descriptors))
    except OSError as error:
        raise DataError(f"{path}: cannot read it: {error.strerror}") from error
    end = int(header["alloc_table_ptr"])
    page_size = int(header["page_size"])
    check(header["version"] == CURRENT_VERSION, f"its format version is {header['version']}")
    check(header["num_samples"] == samples, f"it has {header['num_samples']} samples instead of {samples}")
    check(header["num_fields"] == len(fields), f"it has {header['num_fields']} fields")
    check(page_size > 0 and page_size & (page_size - 1) == 0, f"its page size is {page_size}")
    check(found == descriptors, f"its fields are not image {image_shape}, {', '.join(CODES)}")
    check(
        start <= end and end + samples * ALLOC_TABLE_TYPE.itemsize == size,
        f"its table of allocations is at {end} of {size} bytes",
    )

    reader = Reader(str(path))
    records: npt.NDArray[np.void] = reader.metadata.view(
        np.dtype({"names": ["image", *CODES], "formats": ["<u8"] + ["<i8"] * len(CODES)})
    )
    table = reader.alloc_table[np.argsort(reader.alloc_table["sample_id"])]
    image_bytes = int(np.prod(image_shape))
    check(
        bool(
            np.array_equal(table["sample_id"], np.arange(samples))
            and np.array_equal(table["ptr"], records["image"])
            and (table["size"] == image_bytes).all()
        ),
        "its table of allocations does not agree with its records",
    )
    pointers = np.sort(records["image"])
    check(
        end - image_bytes >= int(pointers[-1])
        and start <= int(pointers[0])
        and bool((np.diff(pointers) >= image_bytes).all()),
        "images overlap or lie outside the file",
    )
    check(np.array_equal(records["index"], np.arange(samples)), "its index does not count from 0")
    return records


def _fields(image_shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "image": NDArrayField(np.dtype(np.uint8), image_shape),
        **{name: IntField() for name in CODES},
    }


def _descriptors(fields: dict[str, Any]) -> npt.NDArray[np.void]:
    """FFCV's description of the fields, as it stands in the file after the header."""
    type_ids = {handler: type_id for type_id, handler in TYPE_ID_HANDLER.items()}
    descriptors = np.zeros(len(fields), dtype=FieldDescType)
    for position, (name, field) in enumerate(fields.items()):
        descriptors[position]["type_id"] = type_ids[type(field)]
        descriptors[position]["name"][: len(name)] = np.frombuffer(name.encode("ascii"), dtype=np.uint8)
        descriptors[position]["arguments"] = field.to_binary()[0]
    return descriptors


def _write_records(file: IO[bytes], dataset: FaceDataset) -> None:
    """Write the data set in FFCV's format (version 2).

    The layout is what ``ffcv.writer.DatasetWriter`` gives with one worker, byte for byte. That class hands
    each sample to worker processes through a queue, and waits for ever when one of them dies; images of one
    size need neither. A file is a header, the fields' descriptors, a record per sample, whole pages of images
    (none crosses a page; the rest of a page is zero), and the table of allocations.
    """
    samples = len(dataset)
    image_bytes = dataset.images[0].size
    page_size = max(MIN_PAGE_SIZE, 1 << (image_bytes - 1).bit_length())
    if page_size >= MAX_PAGE_SIZE:
        raise DataError(f"{dataset.name}: an image of {image_bytes} bytes is too large for a beton")
    per_page = page_size // image_bytes
    pages = -(-samples // per_page)

    fields = _fields(dataset.images.shape[1:])
    descriptors = _descriptors(fields)
    records = np.zeros(samples, dtype=get_metadata_type(list(fields.values())))
    preamble = HeaderType.itemsize + descriptors.nbytes + records.nbytes
    first_page = -(-preamble // page_size) * page_size
    number = np.arange(samples)
    records["f0"] = first_page + number // per_page * page_size + number % per_page * image_bytes
    for position, codes in enumerate(_codes(dataset).values(), start=1):
        records[f"f{position}"] = codes

    header = np.zeros(1, dtype=HeaderType)
    header["version"] = CURRENT_VERSION
    header["num_fields"] = len(fields)
    header["page_size"] = page_size
    header["num_samples"] = samples
    header["alloc_table_ptr"] = first_page + pages * page_size
    allocations = np.zeros(samples, dtype=ALLOC_TABLE_TYPE)
    allocations["sample_id"] = number
    allocations["ptr"] = records["f0"]
    allocations["size"] = image_bytes

    file.write(header.tobytes() + descriptors.tobytes() + records.tobytes())
    file.write(bytes(first_page - preamble))
    for start in range(0, samples, per_page):
        page = dataset.images[start : start + per_page].tobytes()
        file.write(page)
        file.write(bytes(page_size - len(page)))
    file.write(allocations.tobytes())


def _codes(dataset: FaceDataset) -> dict[str, Integers]:
    """The integer fields of the beton, in order, int64 (N,) each."""
    return {
        "label": dataset.labels,
        "split": dataset.split,
        "subject": dataset.subject,
        "fold": dataset.fold,
        "index": np.arange(len(dataset), dtype=np.int64),
    }


def _verify(path: Path, dataset: FaceDataset) -> None:
    """Read a beton back through FFCV's reader and compare everything in it with the data set."""
    channels, height, width = dataset.images.shape[1:]
    records = read_records(path, (channels, height, width), len(dataset))
    for name, codes in _codes(dataset).items():
        if not np.array_equal(records[name], codes):
            raise DataError(f"{path}: {name} reads back different from what was written; check the disk")
    image_bytes = dataset.images[0].size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for index, (start, image) in enumerate(zip(records["image"].tolist(), dataset.images, strict=True)):
            if content[start : start + image_bytes] != image.tobytes():
                raise DataError(
                    f"{path}: image {index} reads back different from what was written; check the disk"
                )


def _verify_table(path: Path, table: pd.DataFrame) -> None:
    columns = list(SAMPLE_COLUMNS)
    found = read_samples(path)[columns].astype(str)
    if not found.equals(table[columns].astype(str)):
        raise DataError(
            f"{path}: the table of samples reads back different; look for odd signs in file names"
        )


def _describe(dataset: FaceDataset, audit: Audit, beton: Path, samples: Path) -> Manifest:
    channels, height, width = dataset.images.shape[1:]
    subjects = np.array([*dataset.subject_names, ""], dtype=object)[dataset.subject]
    return Manifest(
        name=dataset.name,
        samples=len(dataset),
        image={"channels": channels, "height": height, "width": width},
        classes=list(dataset.classes),
        splits=count_splits(dataset.labels, dataset.split, len(dataset.classes)),
        folds=count_folds(dataset.labels, dataset.fold, subjects, len(dataset.classes)),
        statistics=pixel_statistics(dataset.images, dataset.split, dataset.fold),
        sources=dict(dataset.sources),
        bytes=beton.stat().st_size,
        sha256=sha256(beton),
        samples_sha256=sha256(samples),
        audit=audit.summary,
        created={
            "ferdist": ferdist.__version__,
            "ffcv": version("ffcv"),
            "numpy": np.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _replace(folder: Path, files: Sequence[Path]) -> None:
    """Move finished files to their places; the manifest, which makes a set valid, is the last of them."""
    *others, manifest = files
    targets = [folder / file.name for file in files]
    for target in targets:
        if target.is_dir():
            raise DataError(f"{target}: there is a folder of this name; move it away")
    try:
        targets[-1].unlink(missing_ok=True)
        sync(folder)
        for file in others:
            file.replace(folder / file.name)
        sync(folder)
        manifest.replace(targets[-1])
        sync(folder)
    except BaseException:
        for target in targets:
            target.unlink(missing_ok=True)
        raise
