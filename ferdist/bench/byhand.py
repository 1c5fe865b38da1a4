"""The peer and the floor of ``convert``: nothing is imported but what they themselves need."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

NAME = "csv module, int() of each pixel, npz"
"""Of the peer."""


def rows_by_hand(source: Path, folder: Path) -> Path:
    """What public scripts do: split each row's pixels in Python, and save an array of each split.

    Neither checks, nor checksums, nor an audit.
    """
    parts: dict[str, tuple[list[npt.NDArray[np.uint8]], list[int]]] = {}
    with source.open(newline="") as file:
        for row in csv.DictReader(file, skipinitialspace=True):
            images, labels = parts.setdefault(row["Usage"], ([], []))
            images.append(np.array([int(pixel) for pixel in row["pixels"].split()], dtype=np.uint8))
            labels.append(int(row["emotion"]))
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for usage, (images, labels) in parts.items():
        arrays |= {f"{usage}_pixels": np.stack(images), f"{usage}_labels": np.array(labels)}
    path = folder / "fer2013.npz"
    with path.open("wb") as out:
        np.savez(out, allow_pickle=False, **arrays)
    return path


def parse_only(source: Path) -> int:
    """Read the file and turn all its numbers into bytes, and nothing else; how many there are."""
    import pandas as pd

    table = pd.read_csv(source, skipinitialspace=True)
    return int(np.fromstring(" ".join(table["pixels"]), dtype=np.uint8, sep=" ").size)
