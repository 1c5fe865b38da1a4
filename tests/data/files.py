"""Raw files for the tests of the readers."""

from __future__ import annotations

import io
import resource
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ferdist.errors import DataError

HARMLESS: dict[str, Callable[[str], str]] = {
    "crlf": lambda text: text.replace("\n", "\r\n"),
    "byte order mark": lambda text: "\ufeff" + text,
    "no last line end": lambda text: text.rstrip("\n"),
    "blank lines": lambda text: text + "\n\n",
    "blanks": lambda text: text.replace(",", ", "),
}
"""Ways to write the same csv."""


VOTED = [
    *("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    *("unknown", "NF"),
]
"""FER+'s columns of votes in fer2013new.csv."""
VOTE_COLUMNS = [
    *("votes_neutral", "votes_happy", "votes_surprise", "votes_sad", "votes_angry"),
    *("votes_disgust", "votes_fear", "votes_contempt", "votes_unknown", "votes_nf"),
]
"""The same in samples.csv."""


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pack(folder: Path, path: Path, prefix: str = "") -> Path:
    """A zip of a folder."""
    with zipfile.ZipFile(path, "w") as target:
        for file in sorted(folder.rglob("*")):
            target.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def encoded(image: Image.Image | npt.NDArray[np.uint8], kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to make any file larger, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Expect a DataError of one line."""
    with pytest.raises(DataError, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)
