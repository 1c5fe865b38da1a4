from __future__ import annotations

import hashlib
import logging
import os
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferdist.data.fer2013 import read_ckextended, read_fer2013
from ferdist.data.folds import assign_folds
from ferdist.data.record import CKPLUS8_CLASSES, FER2013_CLASSES, FaceDataset
from ferdist.errors import DataError
from ferdist.io import MIB
from tests.data.files import HARMLESS, encoded, pack, refused, write_files

ROWS = 40
USAGES = ("Training", "PublicTest", "PrivateTest")

Row = tuple[str, str, str]  # emotion, pixels, Usage


def make_rows(side: int = 48) -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        (str(i % 7), " ".join(map(str, rng.integers(0, 256, side * side))), USAGES[i % 3])
        for i in range(ROWS)
    ]


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    text = "".join(",".join(row) + "\n" for row in [("emotion", "pixels", "Usage"), *rows])
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def assert_holds(dataset: FaceDataset, rows: Sequence[Row]) -> None:
    assert dataset.labels.tolist() == [int(row[0]) for row in rows]
    assert dataset.split.tolist() == [USAGES.index(row[2]) for row in rows]
    pixels = [[int(text) for text in row[1].split()] for row in rows]
    assert dataset.images.reshape(len(rows), -1).tolist() == pixels


@pytest.mark.parametrize("side", [48, 10])
def test_csv(tmp_path: Path, side: int) -> None:
    rows = make_rows(side)
    path = write_csv(tmp_path / "fer2013.csv", rows)
    dataset = read_fer2013(path)
    assert_holds(dataset, rows)
    assert dataset.name == "fer2013"
    assert dataset.images.shape == (ROWS, 1, side, side)
    assert dataset.classes == FER2013_CLASSES
    assert list(dataset.source_id[:2]) == ["line 2", "line 3"]
    assert dataset.sources == {"fer2013.csv": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert set(dataset.subject) == set(dataset.sequence) == set(dataset.fold) == {-1}


def by_line(change: Callable[[list[str]], Sequence[str]]) -> Callable[[str], str]:
    """Change the fields of each line."""
    return lambda text: "".join(",".join(change(line.split(","))) + "\n" for line in text.splitlines())


VARIANTS = HARMLESS | {
    "blanks on both sides": lambda text: text.replace(",", " , "),
    "quotes": by_line(lambda fields: [f'"{field}"' for field in fields]),
    "another column": by_line(lambda fields: ["x", *fields]),
    "icml": by_line(lambda fields: [fields[0], " " + fields[2], " " + fields[1]]),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_harmless_variants_read_the_same(tmp_path: Path, name: str) -> None:
    path = write_csv(tmp_path / "fer2013.csv", make_rows())
    path.write_bytes(VARIANTS[name](path.read_text()).encode())
    assert_holds(read_fer2013(path), make_rows())


EMOTION, USAGE = 0, 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (EMOTION, "9", r"emotion '9' is not an integer from 0 to 6"),
        (EMOTION, "", "emotion ''"),
        (EMOTION, "1.0", r"emotion '1\.0'"),
        (USAGE, "Validation", "Usage 'Validation' is not one of Training,"),
        (USAGE, "Training,1", "4 fields instead of 3"),
        (USAGE, "\udcff", "not text"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, field: int, value: str, message: str) -> None:
    rows = [list(row) for row in make_rows(side=10)]
    rows[15][field] = value
    with refused(rf"fer\.csv: line 17: {message}"):
        read_fer2013(write_csv(tmp_path / "fer.csv", rows))


@pytest.mark.parametrize("position", [3, 100])
@pytest.mark.parametrize("value", ["256", "-1", "x", "3.5", "99999999999999999999", "1" * 5000, "", "1 2"])
def test_a_bad_pixel_is_named(tmp_path: Path, value: str, position: int) -> None:
    rows = [list(row) for row in make_rows(side=10)]
    pixels = rows[15][1].split()
    pixels[position - 1] = value
    rows[15][1] = " ".join(pixels)
    message = f"pixel {position} is '{value[:20]}', not an integer from 0 to 255"
    if value in ("", "1 2"):
        message = f"{99 + len(value.split())} pixels instead of 100"
    with refused(rf"fer\.csv: line 17: {message}"):
        read_fer2013(write_csv(tmp_path / "fer.csv", rows))


def test_a_line_without_end_is_not_read(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer.csv", [])
    os.truncate(path, 64 * MIB)
    tracemalloc.start()
    with refused(r"fer\.csv: line 2: longer than 4 MiB"):
        read_fer2013(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * MIB


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"emotion,pixels,Usage\n", "a header without rows"),
        (b"emotion,pixels\n0,1 2 3 4\n", "line 1: column Usage missing"),
        (b"a,b\n", "line 1: column emotion and pixels and Usage missing"),
        (np.random.default_rng(0).bytes(100_000), "not a text file"),
        (b"emotion,pixels,Usage\n0,1 2 3 4 5,Training\n", "line 2: 5 pixels are not a square image"),
        (b"emotion,pixels,Usage\n0, ,Training\n", "line 2: no pixels"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "fer.csv"
    path.write_bytes(data)
    with refused(rf"fer\.csv: {message}"):
        read_fer2013(path)


@pytest.mark.parametrize("cut", [5, 3000])
def test_a_file_cut_off_in_its_last_row_is_refused(tmp_path: Path, cut: int) -> None:
    path = write_csv(tmp_path / "fer.csv", make_rows())
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=rf"fer\.csv: line {ROWS + 1}: "):
        read_fer2013(path)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    for read in (read_fer2013, read_ckextended):
        with pytest.raises(DataError, match=r"none\.csv: no such file"):
            read(tmp_path / "none.csv")


# ckextended.csv


def ckextended_rows() -> list[Row]:
    """As many rows of each class and Usage as the published file has."""
    labels = np.repeat(np.arange(8), [45, 59, 25, 69, 28, 83, 593, 18])
    order = np.random.default_rng(0).permutation(len(labels))
    usages = np.repeat(USAGES, [736, 92, 92])
    return [(str(labels[k]), f"{k % 256} 0 0 0", usage) for k, usage in zip(order, usages, strict=True)]


def test_ckextended_is_refused_with_the_reason(tmp_path: Path) -> None:
    rows = ckextended_rows()
    first = next(number for number, row in enumerate(rows, start=2) if row[0] == "7")
    reason = r".*cannot give subject-independent folds.*`ferdist prepare ckplus`.*--ckextended"
    with pytest.raises(DataError, match=rf"ck\.csv: line {first}: emotion 7, which FER2013 .*{reason}"):
        read_fer2013(write_csv(tmp_path / "ck.csv", rows))
    renamed = [("6" if row[0] == "7" else row[0], *row[1:]) for row in rows]
    with pytest.raises(DataError, match=rf"ck\.csv: 920 rows, not FER2013's: {reason}"):
        read_fer2013(write_csv(tmp_path / "ck.csv", renamed))
    assert len(read_fer2013(write_csv(tmp_path / "ck.csv", renamed[1:]))) == 919


def test_ckextended_is_read_when_asked_for_by_name(tmp_path: Path) -> None:
    rows = ckextended_rows()
    path = write_csv(tmp_path / "ckextended.csv", rows)
    dataset = read_ckextended(path)
    assert_holds(dataset, rows)
    assert dataset.name == "ckextended"
    assert dataset.classes == CKPLUS8_CLASSES
    assert dataset.sources == {"ckextended.csv": hashlib.sha256(path.read_bytes()).hexdigest()}
    with pytest.raises(DataError, match="920 of 920 samples have no subject"):
        assign_folds(dataset, 10, seed=0)


def test_ckextended_has_eight_emotions(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "ck.csv", [("8", "0 0 0 0", "Training")])
    with pytest.raises(DataError, match=r"line 2: emotion '8' is not an integer from 0 to 7"):
        read_ckextended(path)


# The image folders


def face(value: int, mode: str = "L", size: tuple[int, int] = (8, 8)) -> bytes:
    return encoded(Image.new(mode, size, value))


FILES = {
    "train/angry/Training_12.png": face(1),
    "train/neutral/Training_12.png": face(2),  # the published data has one id in two classes
    "test/happy/PublicTest_7.png": face(3),
    "test/sad/PrivateTest_8.png": face(4),
    "readme.txt": b"not an image",
}


@pytest.mark.parametrize("prefix", ["", "archive/fer/"])
@pytest.mark.parametrize("packed", [False, True])
def test_folders(tmp_path: Path, prefix: str, packed: bool) -> None:
    source = write_files(tmp_path / "data", {prefix + name: data for name, data in FILES.items()})
    if packed:
        source = pack(source, tmp_path / "data.bin")  # told by its content, not by its name
    dataset = read_fer2013(source)
    assert [name.removeprefix(prefix) for name in dataset.source_id] == sorted(FILES)[1:]
    assert dataset.split.tolist() == [1, 2, 0, 0]
    assert dataset.labels.tolist() == [3, 4, 0, 6]
    assert dataset.images[:, 0, 0, 0].tolist() == [3, 4, 1, 2]
    assert list(dataset.sources) == [source.name]


EXTRA = {"train/disgust/Training_12.jpg9.jpg": face(9), "validation/angry/Training_5.png": face(9)}


def test_extra_files_are_refused_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_files(tmp_path / "data", FILES | EXTRA)
    with pytest.raises(DataError, match=r"2 files not of FER2013 itself .*1 in train/disgust.*--allow-extra"):
        read_fer2013(root)
    with caplog.at_level(logging.WARNING):
        dataset = read_fer2013(root, allow_extra=True)
    assert len(dataset) == 4
    assert "2 files" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("test/angry/Training_1.png", face(1), r"Training_1\.png lies in test, .* belong in train"),
        ("train/angry/PublicTest_1.png", face(1), r"PublicTest_1\.png lies in train, .* belong in test"),
        ("copy/train/angry/Training_12.png", face(1), r"Training_12\.png: appears already as"),
        ("train/angry/Training_99.png", face(1, "RGB"), r"Training_99\.png: not an 8-bit gray image"),
        ("train/angry/Training_99.png", face(1, size=(9, 8)), r"Training_99\.png: 9x8 pixels, .* has 8x8"),
        ("train/angry/Training_99.png", b"junk", r"Training_99\.png: not a readable image"),
    ],
)
def test_bad_images_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_fer2013(write_files(tmp_path / "data", FILES | {name: data}))


def test_a_folder_without_fer2013_is_refused(tmp_path: Path) -> None:
    root = write_files(tmp_path / "data", {"train/angry/im0.png": face(1)})
    with pytest.raises(DataError, match=r"data: no train/<class>/Training_<id>\.jpg"):
        read_fer2013(root)
