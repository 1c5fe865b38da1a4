"""FFCV's file format (version 2), as far as images of one size and integers need it.

Written and read here by hand: FFCV's writer hands samples to worker processes and waits forever if one dies,
and FFCV's reader checks neither pointers nor sizes, so with a wrong one it reads outside the file and the
process dies. Where everything lies is a function of the number and size of the images: a file is checked by
comparing it with that. The bytes are those of FFCV's own writer with one worker.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from ffcv.fields import IntField, NDArrayField
from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, TYPE_ID_HANDLER, FieldDescType, HeaderType
from ffcv.writer import MAX_PAGE_SIZE, MIN_PAGE_SIZE

from ferdist.data.record import FaceDataset, Images, slices
from ferdist.errors import DataError

CODES: Final = ("label", "split", "subject", "fold", "index")
"""Names of the integer fields that follow ``image``, in order."""

RECORD: Final = np.dtype([("image", "<u8"), *((name, "<i8") for name in CODES)])
"""What the file holds of each sample besides its pixels; ``image`` is where those begin."""


@dataclass(frozen=True)
class Layout:
    """Where everything lies in a beton of so many images (C, H, W) of one size.

    A header, the fields' descriptors, a record per sample, pages of whole images (the rest of a page is
    zero), and a table of allocations.
    """

    image_shape: tuple[int, ...]
    samples: int

    @property
    def image_bytes(self) -> int:
        return math.prod(self.image_shape)

    @property
    def page_size(self) -> int:
        return max(int(MIN_PAGE_SIZE), 1 << (self.image_bytes - 1).bit_length())

    @property
    def per_page(self) -> int:
        return self.page_size // self.image_bytes

    @property
    def records_at(self) -> int:
        return int(HeaderType.itemsize + (1 + len(CODES)) * FieldDescType.itemsize)

    @property
    def pages_at(self) -> int:
        return -(-(self.records_at + self.samples * RECORD.itemsize) // self.page_size) * self.page_size

    @property
    def table_at(self) -> int:
        return self.pages_at + -(-self.samples // self.per_page) * self.page_size

    @property
    def size(self) -> int:
        return self.table_at + self.samples * int(ALLOC_TABLE_TYPE.itemsize)

    def head(self) -> bytes:
        """The header and the descriptors."""
        header = np.zeros(1, dtype=HeaderType)
        header["version"], header["num_fields"] = CURRENT_VERSION, 1 + len(CODES)
        header["page_size"], header["num_samples"] = self.page_size, self.samples
        header["alloc_table_ptr"] = self.table_at
        type_ids = {handler: type_id for type_id, handler in TYPE_ID_HANDLER.items()}
        fields = {"image": NDArrayField(np.dtype(np.uint8), self.image_shape)}
        fields |= {name: IntField() for name in CODES}
        descriptors = np.zeros(len(fields), dtype=FieldDescType)
        for descriptor, (name, field) in zip(descriptors, fields.items(), strict=True):
            descriptor["type_id"] = type_ids[type(field)]
            descriptor["name"][: len(name)] = np.frombuffer(name.encode("ascii"), dtype=np.uint8)
            descriptor["arguments"] = field.to_binary()[0]
        return header.tobytes() + descriptors.tobytes()

    def pointers(self) -> npt.NDArray[np.uint64]:
        """Where each image begins, (N,)."""
        page, place = np.divmod(np.arange(self.samples, dtype=np.uint64), self.per_page)
        return np.asarray(self.pages_at + page * self.page_size + place * self.image_bytes, dtype=np.uint64)

    def table(self) -> bytes:
        """The table of allocations."""
        allocations = np.zeros(self.samples, dtype=ALLOC_TABLE_TYPE)
        allocations["sample_id"], allocations["ptr"] = np.arange(self.samples), self.pointers()
        allocations["size"] = self.image_bytes
        return allocations.tobytes()


def contents(dataset: FaceDataset, look: Callable[[Images], object]) -> Iterator[bytes]:
    """The bytes of a data set's beton, a page at a time.

    Args:
        look: is shown the images of each page, uint8 (M, C, H, W), in order.

    Raises:
        DataError: if an image is larger than any page, or cannot be decoded.
    """
    layout = Layout(dataset.images.shape[1:], len(dataset))
    if layout.page_size >= MAX_PAGE_SIZE:
        raise DataError(f"{dataset.name}: an image of {layout.image_bytes} bytes is too large for a beton")
    records = np.empty(len(dataset), dtype=RECORD)
    records["image"], records["index"] = layout.pointers(), np.arange(len(dataset))
    records["label"], records["split"] = dataset.labels, dataset.split
    records["subject"], records["fold"] = dataset.subject, dataset.fold
    yield (layout.head() + records.tobytes()).ljust(layout.pages_at, b"\0")
    for images in slices(dataset.images, layout.per_page):
        look(images)
        yield images.tobytes().ljust(layout.page_size, b"\0")
    yield layout.table()


def read_records(
    file: BufferedReader, path: Path, image_shape: tuple[int, int, int], samples: int
) -> npt.NDArray[np.void]:
    """Check everything in a beton but codes and pixels, and read its records, before FFCV maps the file.

    Args:
        file: the beton, open for reading.
        path: what errors call it.
        image_shape: (C, H, W) that each image must have.
        samples: number of samples that it must have, N.

    Returns:
        (N,) of ``RECORD``.

    Raises:
        OSError: if the file cannot be read.
        DataError: if anything in it is not as it must be.
    """
    layout = Layout(image_shape, samples)

    def check(right: bool, fault: str) -> None:
        if not right:
            raise DataError(f"{path}: damaged, or not a beton: {fault}; run `ferdist prepare` again")

    size = os.fstat(file.fileno()).st_size
    check(size == layout.size, f"{size} bytes, not {layout.size}: truncated, or of another set")
    file.seek(0)
    head = file.read(layout.records_at)
    content = file.read(samples * RECORD.itemsize)
    file.seek(layout.table_at)
    table = file.read(samples * int(ALLOC_TABLE_TYPE.itemsize))
    check(head == layout.head(), f"its header does not describe {samples} images {image_shape}")
    check(len(content) == samples * RECORD.itemsize, "it ends in its records")
    records = np.frombuffer(content, dtype=RECORD)
    check(np.array_equal(records["image"], layout.pointers()), "an image is not where it must be")
    check(table == layout.table(), "its table of allocations is wrong")
    check(np.array_equal(records["index"], np.arange(samples)), "its index does not count from 0")
    return records
