from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferdist.data import prepare
from ferdist.data.beton import open_beton
from ferdist.data.folders import read_folders
from ferdist.data.images import to_rgb
from ferdist.errors import DataError
from tests.data.files import encoded, noise, pack, write_files

GRAY = encoded(Image.new("L", (10, 10), 100))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with two classes, a and b, of a file x.png each."""
    return write_files(tmp_path / "data", {"a/x.png": GRAY, "b/x.png": GRAY})


def test_class_folders(tmp_path: Path) -> None:
    jpeg = encoded(Image.new("L", (10, 10), 100), "jpeg")
    files = {"10/p1_a.png": GRAY, "2/p2_b.jpg": jpeg, "2/deep/p1_c.png": GRAY, "readme.txt": b"no image"}
    source = write_files(tmp_path / "data", files)
    dataset = read_folders(source, "mine", size=8, subject_regex=r"/(p\d)_")
    assert dataset.name == "mine"
    assert dataset.classes == ("10", "2")
    assert dataset.labels.tolist() == [0, 1, 1]
    assert list(dataset.source_id) == ["10/p1_a.png", "2/deep/p1_c.png", "2/p2_b.jpg"]
    assert [dataset.subject_names[code] for code in dataset.subject] == ["p1", "p1", "p2"]
    assert dataset.images.shape == (3, 1, 8, 8)
    assert set(dataset.split) == {-1}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Training", "valid", "Testing"), ("train", "Validation", "test")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_split_folders(tmp_path: Path, train: str, val: str, test: str, packed: bool) -> None:
    files = {f"{split}/{name}/x.png": GRAY for split in (train, val, test) for name in ("a", "b")}
    source = write_files(tmp_path / "data", files)
    if packed:
        source = pack(source, tmp_path / "data.zip", prefix="outer/inner/")
    dataset = read_folders(source, "mine")
    splits = [name.split("/")[-3] for name in dataset.source_id]
    assert dict(zip(splits, dataset.split.tolist(), strict=True)) == {train: 0, val: 1, test: 2}
    assert dataset.classes == ("a", "b")
    assert dataset.images.shape == (6, 1, 48, 48)


def test_accents_as_macos_writes_them_are_the_same_class(tmp_path: Path) -> None:
    composed, decomposed = "m\u00fcde", "mu\u0308de"
    files = {f"{split}/x.png": GRAY for split in (f"train/{composed}", f"test/{decomposed}", "train/froh")}
    dataset = read_folders(write_files(tmp_path / "data", files), "mine")
    assert dataset.classes == ("froh", composed)
    assert sorted(dataset.labels.tolist()) == [0, 1, 1]


def test_all_kinds_of_images_are_read_and_other_files_are_told(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(
        data, {"a/y.jfif": encoded(Image.new("L", (10, 10)), "jpeg"), "b/z.heic": b"", "b/z.gif": b""}
    )
    assert len(read_folders(data, "mine").labels) == 3
    said = f"ferdist: {data}: passed over 2 files with another ending than images, such as b/z.gif\n"
    assert capsys.readouterr().err == said


def test_without_splits_and_folds_all_is_train_and_a_part_can_be_held_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beton = open_beton(prepare.folders(data, tmp_path / "out", name="mine"))
    assert len(beton.indices("train")) == 2
    said = "ferdist: mine: no split folders, so all images are train; data.val_share=0.1 holds some out\n"
    assert capsys.readouterr().err == said


def test_one_colour_image_makes_the_data_set_colour(data: Path) -> None:
    write_files(data, {"b/x.png": encoded(Image.new("RGB", (8, 8), (7, 7, 7)))})
    assert read_folders(data, "mine").images.shape[1] == 1
    write_files(data, {"b/x.png": encoded(Image.new("RGB", (8, 8), (1, 2, 3)))})
    dataset = read_folders(data, "mine", size=8)
    assert np.asarray(dataset.images)[:, :, 0, 0].tolist() == [[100, 100, 100], [1, 2, 3]]


def test_images_of_the_wanted_size_stay_as_they_are_and_others_are_averaged(data: Path) -> None:
    board = np.indices((64, 96)).sum(axis=0) % 2 * 255
    write_files(data, {"a/x.png": encoded(noise(8, 8)), "b/x.png": encoded(board.astype(np.uint8))})
    dataset = read_folders(data, "mine", size=8)
    assert (np.asarray(dataset.images)[0, 0] == noise(8, 8)).all()
    assert np.abs(np.asarray(dataset.images)[1].astype(int) - 127).max() <= 4


def test_exif_orientation(data: Path) -> None:
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[:4] = 200
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    write_files(data, {"a/x.png": encoded(pixels, exif=exif)})
    image = np.asarray(read_folders(data, "mine", size=8).images)[0, 0]
    assert image[:, 0].tolist() == [0] * 4 + [200] * 4


def test_modes() -> None:
    def pixel(image: Image.Image) -> object:
        return to_rgb(image, "x").getpixel((0, 0))

    assert pixel(Image.fromarray(np.full((2, 2), 257 * 9, dtype=np.uint16))) == (9, 9, 9)
    assert pixel(Image.fromarray(np.full((2, 2), 257 * 9, dtype=np.int32))) == (9, 9, 9)
    assert pixel(Image.new("CMYK", (2, 2), (0, 255, 255, 0))) == (255, 0, 0)
    assert pixel(Image.new("RGBA", (2, 2), (200, 200, 200, 0))) == (0, 0, 0)
    assert pixel(Image.new("LA", (2, 2), (200, 255))) == (200, 200, 200)
    assert pixel(Image.new("1", (2, 2), 1)) == (255, 255, 255)
    palette = Image.new("RGB", (2, 2), (3, 4, 5)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert pixel(palette) == (3, 4, 5)
    with pytest.raises(DataError, match="x: its values are floats"):
        to_rgb(Image.new("F", (2, 2)), "x")
    with pytest.raises(DataError, match="x: its values are not from 0 to 65535"):
        to_rgb(Image.new("I", (2, 2), 70000), "x")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"data: no images in it"),
        (["x.png"], r"x\.png: not in a class folder"),
        (["a/x.png", "b/x.png", "x.png"], r"x\.png: not in a class folder"),
        (["a/x.png"], r"data: only one class, a;"),
        (["a/x.png", "b/x.png", "c/"], r"class folder c holds no image"),
        (["train/a/x.png", "train/b/x.png", "val/a/x.png", "val/b/"], r"class folder val/b holds no image"),
        (["train/a/x.png", "train/b/x.png", "a/x.png"], r"'a' lies beside the split folder 'train'"),
        (
            ["train/Sad/x.png", "train/b/x.png", "val/sad/x.png"],
            r"class folders Sad and sad differ only in case",
        ),
        (
            ["train/a/x.png", "train/surprise/x.png", "val/a/x.png", "val/surprised/x.png"],
            r"class surprised has no image in train; give a class the same name in every split",
        ),
        (["train/a/x.png", "train/x.png"], r"train/x\.png: not in a class folder"),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    source = tmp_path / "data"
    source.mkdir()
    for name in files:
        if name.endswith("/"):
            (source / name).mkdir(parents=True)
        else:
            write_files(source, {name: GRAY})
    with pytest.raises(DataError, match=message):
        read_folders(source, "mine")


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        (r"(q\d)_", r"a/x\.png: subject regex .* finds no subject"),
        (r"p\d_", r"no group in it"),
        (r"(x\d", r"subject regex .*correct it"),
    ],
)
def test_bad_subject_regex(data: Path, regex: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_folders(data, "mine", subject_regex=regex)


def test_bad_name_size_and_image(data: Path) -> None:
    with pytest.raises(DataError, match=r"name '\.\./x'"):
        read_folders(data, "../x")
    with pytest.raises(DataError, match="size 0"):
        read_folders(data, "mine", size=0)
    write_files(data, {"b/x.png": b"junk"})
    with pytest.raises(DataError, match=r"b/x\.png: not a readable image"):
        read_folders(data, "mine")
