from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferdist.data.folders import read_folders, to_rgb
from ferdist.errors import DataError


def save(path: Path, image: Image.Image | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("L", (10, 10), 100)).save(path)


def pack(folder: Path, prefix: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as target:
        for file in sorted(folder.rglob("*")):
            target.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def test_class_folders(tmp_path: Path) -> None:
    for name in ("10/p1_a.png", "2/p2_b.jpg", "2/deep/p1_c.png"):
        save(tmp_path / "data" / name)
    (tmp_path / "data" / "readme.txt").write_text("no image")
    dataset = read_folders(tmp_path / "data", "mine", size=8, subject_regex=r"/(p\d)_")
    assert dataset.name == "mine"
    assert dataset.classes == ("10", "2")
    assert dataset.labels.tolist() == [0, 1, 1]
    assert list(dataset.source_id) == ["10/p1_a.png", "2/deep/p1_c.png", "2/p2_b.jpg"]
    assert [dataset.subject_names[code] for code in dataset.subject] == ["p1", "p1", "p2"]
    assert dataset.images.shape == (3, 1, 8, 8)
    assert set(dataset.split) == {-1}


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
@pytest.mark.parametrize("packed", [False, True])
def test_split_folders(tmp_path: Path, val: str, packed: bool) -> None:
    for split in ("train", val, "test"):
        for class_name in ("a", "b"):
            save(tmp_path / "data" / split / class_name / "x.png")
    source = pack(tmp_path / "data", prefix="outer/inner/") if packed else tmp_path / "data"
    dataset = read_folders(source, "mine")
    codes = {
        name.split("/")[-3]: int(code) for name, code in zip(dataset.source_id, dataset.split, strict=True)
    }
    assert codes == {"train": 0, val: 1, "test": 2}
    assert dataset.classes == ("a", "b")
    assert dataset.images.shape == (6, 1, 48, 48)


def test_one_colour_image_makes_the_data_set_colour(tmp_path: Path) -> None:
    save(tmp_path / "data/a/gray.png", Image.new("L", (8, 8), 7))
    save(tmp_path / "data/b/rgb.png", Image.new("RGB", (8, 8), (7, 7, 7)))
    assert read_folders(tmp_path / "data", "mine").images.shape[1] == 1
    save(tmp_path / "data/b/rgb.png", Image.new("RGB", (8, 8), (1, 2, 3)))
    dataset = read_folders(tmp_path / "data", "mine", size=8)
    assert dataset.images[:, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


def test_images_of_the_wanted_size_stay_as_they_are_and_others_are_averaged(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    save(tmp_path / "data/a/x.png", Image.fromarray(noise))
    board = np.indices((64, 96)).sum(axis=0) % 2 * 255
    save(tmp_path / "data/b/x.png", Image.fromarray(board.astype(np.uint8)))
    dataset = read_folders(tmp_path / "data", "mine", size=8)
    assert (dataset.images[0, 0] == noise).all()
    assert np.abs(dataset.images[1].astype(int) - 127).max() <= 4


def test_exif_orientation(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[:4] = 200
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (tmp_path / "data/a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "data/a/x.png", exif=exif)
    save(tmp_path / "data/b/x.png")
    image = read_folders(tmp_path / "data", "mine", size=8).images[0, 0]
    assert image[0, 0] == 0
    assert image[-1, 0] == 200


def test_modes() -> None:
    def pixel(image: Image.Image) -> object:
        return to_rgb(image, "x").getpixel((0, 0))

    assert pixel(Image.fromarray(np.full((2, 2), 257 * 9, dtype=np.uint16))) == (9, 9, 9)
    assert pixel(Image.fromarray(np.full((2, 2), 257 * 9, dtype=np.int32))) == (9, 9, 9)
    assert pixel(Image.new("CMYK", (2, 2), (0, 255, 255, 0))) == (255, 0, 0)
    assert pixel(Image.new("RGBA", (2, 2), (200, 200, 200, 0))) == (0, 0, 0)
    assert pixel(Image.new("LA", (2, 2), (200, 255))) == (200, 200, 200)
    assert pixel(Image.new("1", (2, 2), 1)) == (255, 255, 255)
    assert pixel(Image.new("RGB", (2, 2), (3, 4, 5)).convert("P", palette=Image.Palette.ADAPTIVE)) == (
        3,
        4,
        5,
    )
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
        (["train/a/x.png", "train/x.png"], r"train/x\.png: not in a class folder"),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    (tmp_path / "data").mkdir()
    for name in files:
        if name.endswith("/"):
            (tmp_path / "data" / name).mkdir(parents=True)
        else:
            save(tmp_path / "data" / name)
    with pytest.raises(DataError, match=message):
        read_folders(tmp_path / "data", "mine")


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        (r"(q\d)_", r"a/p1_x\.png: subject regex .* finds no subject"),
        (r"p\d_", r"no group in it"),
        (r"(p\d", r"subject regex .*correct it"),
    ],
)
def test_bad_subject_regex(tmp_path: Path, regex: str, message: str) -> None:
    for class_name in ("a", "b"):
        save(tmp_path / "data" / class_name / "p1_x.png")
    with pytest.raises(DataError, match=message):
        read_folders(tmp_path / "data", "mine", subject_regex=regex)


def test_bad_name_size_and_image(tmp_path: Path) -> None:
    for class_name in ("a", "b"):
        save(tmp_path / "data" / class_name / "x.png")
    with pytest.raises(DataError, match=r"name '\.\./x'"):
        read_folders(tmp_path / "data", "../x")
    with pytest.raises(DataError, match="size 0"):
        read_folders(tmp_path / "data", "mine", size=0)
    (tmp_path / "data/b/x.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"b/x\.png: not a readable image"):
        read_folders(tmp_path / "data", "mine")
