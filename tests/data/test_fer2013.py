from __future__ import annotations

import hashlib
import io
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferdist.data.fer2013 import read_ckextended, read_fer2013
from ferdist.data.folds import assign_folds
from ferdist.data.record import CKPLUS8_CLASSES, FER2013_CLASSES, FaceDataset
from ferdist.errors import DataError

ROWS = 40
USAGES = ("Training", "PublicTest", "PrivateTest")

Row = tuple[str, str, str]  # emotion, pixels, Usage


def make_rows(side: int = 48) -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        (str(i % 7), " ".join(map(str, rng.integers(0, 256, side * side))), USAGES[i % 3])
        for i in range(ROWS)
    ]


def write_csv(path: Path, rows: Sequence[Row], end: str = "\n") -> Path:
    lines = ["emotion,pixels,Usage", *(",".join(row) for row in rows)]
    path.write_bytes((end.join(lines) + end).encode())
    return path


def assert_holds(dataset: FaceDataset, rows: Sequence[Row]) -> None:
    assert dataset.labels.tolist() == [int(row[0]) for row in rows]
    assert dataset.split.tolist() == [USAGES.index(row[2]) for row in rows]
    pixels = [[int(text) for text in row[1].split()] for row in rows]
    assert dataset.images.reshape(len(rows), -1).tolist() == pixels


def test_csv(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer2013.csv", make_rows())
    dataset = read_fer2013(path)
    assert_holds(dataset, make_rows())
    assert dataset.name == "fer2013"
    assert dataset.images.shape == (ROWS, 1, 48, 48)
    assert dataset.classes == FER2013_CLASSES
    assert list(dataset.source_id[:2]) == ["line 2", "line 3"]
    assert dataset.sources == {"fer2013.csv": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert set(dataset.subject) == set(dataset.sequence) == set(dataset.fold) == {-1}


def test_side_follows_the_pixel_count(tmp_path: Path) -> None:
    dataset = read_fer2013(write_csv(tmp_path / "x.csv", make_rows(side=10)))
    assert dataset.images.shape == (ROWS, 1, 10, 10)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n\n",
        lambda text: text.replace(",", " , "),
        lambda text: "\n".join(
            ",".join(f'"{field}"' for field in line.split(",")) for line in text.splitlines()
        ),
        lambda text: "\n".join(f"{n},{line}" for n, line in enumerate(text.splitlines())),
        lambda text: "\n".join(
            ", ".join(line.split(",")[k] for k in (0, 2, 1)) for line in text.splitlines()
        ),
    ],
    ids=[
        "crlf",
        "byte order mark",
        "no last line end",
        "blank lines",
        "blanks",
        "quotes",
        "another column",
        "icml",
    ],
)
def test_harmless_variants_read_the_same(tmp_path: Path, change: object) -> None:
    path = write_csv(tmp_path / "fer2013.csv", make_rows())
    assert callable(change)
    path.write_bytes(change(path.read_text()).encode())
    assert_holds(read_fer2013(path), make_rows())


PIXEL = r"fer\.csv: line 17: pixel 3 is '{}', not an integer from 0 to 255"


@pytest.mark.parametrize(
    ("emotion", "pixel", "usage", "message"),
    [
        ("9", None, None, r"fer\.csv: line 17: emotion '9' is not an integer from 0 to 6"),
        ("", None, None, r"fer\.csv: line 17: emotion ''"),
        ("1.0", None, None, r"fer\.csv: line 17: emotion '1\.0'"),
        (None, "256", None, PIXEL.format("256")),
        (None, "-1", None, PIXEL.format("-1")),
        (None, "x", None, PIXEL.format("x")),
        (None, "3.5", None, PIXEL.format(r"3\.5")),
        (None, "99999999999999999999", None, PIXEL.format("99999999999999999999")),
        (None, "1" * 5000, None, PIXEL.format("1" * 20)),
        (None, "", None, r"fer\.csv: line 17: 2303 pixels instead of 2304"),
        (None, "1 2", None, r"fer\.csv: line 17: 2305 pixels instead of 2304"),
        (
            None,
            None,
            "Validation",
            r"fer\.csv: line 17: Usage 'Validation' is not one of Training,",
        ),
        (None, None, "Training,1", r"fer\.csv: line 17: 4 fields instead of 3"),
        (None, "\udcff", None, r"fer\.csv: line 17: not text"),
    ],
)
def test_a_bad_row_is_named(
    tmp_path: Path, emotion: str | None, pixel: str | None, usage: str | None, message: str
) -> None:
    rows = make_rows()
    old_emotion, pixels, old_usage = rows[15]
    if pixel is not None:
        values = pixels.split()
        values[2] = pixel
        pixels = " ".join(values)
    rows[15] = (old_emotion if emotion is None else emotion, pixels, old_usage if usage is None else usage)
    text = "\n".join(["emotion,pixels,Usage", *(",".join(row) for row in rows)])
    path = tmp_path / "fer.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message) as caught:
        read_fer2013(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("last", ["3.5", "x"])
def test_junk_at_the_very_end_of_the_pixels_is_seen(tmp_path: Path, last: str) -> None:
    rows = make_rows()
    rows[0] = (rows[0][0], " ".join([*rows[0][1].split()[:-1], last]), rows[0][2])
    with pytest.raises(DataError, match=r"line 2: pixel 2304 is"):
        read_fer2013(write_csv(tmp_path / "fer.csv", rows))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"emotion,pixels,Usage\n", "a header without rows"),
        (b"emotion,pixels\n0,1 2 3 4\n", "line 1: column Usage missing"),
        (b"a,b\n", "line 1: column emotion and pixels and Usage missing"),
        (np.random.default_rng(0).bytes(100_000), "not a text file"),
        (b"emotion,pixels,Usage\n0,1 2 3 4 5,Training\n", "line 2: 5 pixels are not a square image"),
        (b"emotion,pixels,Usage\n0,,Training\n", "line 2: no pixels"),
        (b"emotion,pixels,Usage\n0, ,Training\n", "line 2: no pixels"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "fer.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"fer\.csv: {message}") as caught:
        read_fer2013(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [5, 3000])
def test_a_file_cut_off_in_its_last_row_is_refused(tmp_path: Path, cut: int) -> None:
    path = write_csv(tmp_path / "fer.csv", make_rows())
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=rf"fer\.csv: line {ROWS + 1}: "):
        read_fer2013(path)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: no such file or folder"):
        read_fer2013(tmp_path / "none.csv")


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


def test_bad_ckextended_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        read_ckextended(tmp_path / "none.csv")
    path = write_csv(tmp_path / "ck.csv", [("8", "0 0 0 0", "Training")])
    with pytest.raises(DataError, match=r"line 2: emotion '8' is not an integer from 0 to 7"):
        read_ckextended(path)


# The image folders


def png(value: int, mode: str = "L", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, "png")
    return buffer.getvalue()


FILES = {
    "train/angry/Training_12.png": png(1),
    "train/neutral/Training_12.png": png(2),  # the published data has one id in two classes
    "test/happy/PublicTest_7.png": png(3),
    "test/sad/PrivateTest_8.png": png(4),
    "readme.txt": b"not an image",
}


def write_folders(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize("prefix", ["", "archive/fer/"])
@pytest.mark.parametrize("packed", [False, True])
def test_folders(tmp_path: Path, prefix: str, packed: bool) -> None:
    source = write_folders(tmp_path / "data", {prefix + name: data for name, data in FILES.items()})
    if packed:
        with zipfile.ZipFile(tmp_path / "data.bin", "w") as target:  # told by its content, not by its name
            for file in sorted(source.rglob("*.*")):
                target.write(file, file.relative_to(source))
        source = tmp_path / "data.bin"
    dataset = read_fer2013(source)
    assert [name.removeprefix(prefix) for name in dataset.source_id] == sorted(FILES)[1:]
    assert dataset.split.tolist() == [1, 2, 0, 0]
    assert dataset.labels.tolist() == [3, 4, 0, 6]
    assert dataset.images[:, 0, 0, 0].tolist() == [3, 4, 1, 2]
    assert list(dataset.sources) == [source.name]


EXTRA = {"train/disgust/Training_12.jpg9.jpg": png(9), "validation/angry/Training_5.png": png(9)}


def test_extra_files_are_refused_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folders(tmp_path / "data", FILES | EXTRA)
    with pytest.raises(DataError, match=r"data: 2 files that are not .*1 in train/disgust.*--allow-extra"):
        read_fer2013(root)
    with caplog.at_level(logging.WARNING):
        dataset = read_fer2013(root, allow_extra=True)
    assert len(dataset) == 4
    assert "2 files" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("test/angry/Training_1.png", png(1), r"test/angry/Training_1\.png lies in test, .* belong in train"),
        ("train/angry/PublicTest_1.png", png(1), r"PublicTest_1\.png lies in train, .* belong in test"),
        ("copy/train/angry/Training_12.png", png(1), r"Training_12\.png: appears already as"),
        ("train/angry/Training_99.png", png(1, "RGB"), r"Training_99\.png: not an 8-bit gray image"),
        ("train/angry/Training_99.png", png(1, size=(9, 8)), r"Training_99\.png: 9x8 pixels, but .* has 8x8"),
        ("train/angry/Training_99.png", b"junk", r"Training_99\.png: not a readable image"),
    ],
)
def test_bad_images_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_fer2013(write_folders(tmp_path / "data", FILES | {name: data}))


def test_a_folder_without_fer2013_is_refused(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "data", {"train/angry/im0.png": png(1)})
    with pytest.raises(DataError, match=r"data: no train/<class>/Training_<id>\.jpg"):
        read_fer2013(root)
