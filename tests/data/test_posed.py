from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferdist.data import prepare
from ferdist.data.beton import open_beton
from ferdist.data.posed import KDEF_ANGLES, read_jaffe, read_kdef
from ferdist.data.record import FER2013_CLASSES
from ferdist.errors import DataError
from tests.data.files import encoded, pack, refused, write_files

JAFFE = dict(zip(FER2013_CLASSES, ("AN", "DI", "FE", "HA", "SA", "SU", "NE"), strict=True))
KDEF = {**JAFFE, "fear": "AF"}


def face(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)


def jaffe_tree(folder: Path, people: int = 3) -> Path:
    """Every expression of so many people."""
    codes = [(f"K{chr(65 + person)}", code) for person in range(people) for code in JAFFE.values()]
    return write_files(
        folder,
        {
            f"jaffe/{person}.{code}1.{number}.tiff": encoded(face(number), "tiff")
            for number, (person, code) in enumerate(codes)
        },
    )


def kdef_tree(folder: Path, angles: tuple[str, ...] = KDEF_ANGLES) -> Path:
    """Every expression of two women and a man, in both series."""
    files = {}
    for series in "AB":
        for person in ("F01", "F02", "M01"):
            for code in KDEF.values():
                for angle in angles:
                    picture = Image.new("RGB", (12, 16), (200, 100, len(files) % 256))
                    picture.paste((0, 0, 0), (0, 0, 12, 2))
                    files[f"KDEF/{series}{person}/{series}{person}{code}{angle}.JPG"] = encoded(picture)
    return write_files(folder, files)


@pytest.mark.parametrize("packed", [False, True])
def test_jaffes_names_give_expressions_and_people(tmp_path: Path, packed: bool) -> None:
    source = jaffe_tree(tmp_path / "raw")
    source = pack(source, tmp_path / "raw.zip") if packed else source
    dataset = read_jaffe(source, size=16)
    assert dataset.images.shape == (21, 1, 16, 16)
    assert np.array_equal(np.asarray(dataset.images)[0, 0], face(0))
    assert dataset.subject_names == ("KA", "KB", "KC")
    assert dataset.labels[:7].tolist() == [
        FER2013_CLASSES.index(name) for name in sorted(JAFFE, key=JAFFE.get)
    ]
    beton = open_beton(prepare.jaffe(source, tmp_path / "out", size=8, folds=3))
    assert [fold["subjects"] for fold in beton.manifest.folds.values()] != []
    assert all(len(fold["subjects"]) == 1 for fold in beton.manifest.folds.values())
    assert beton.manifest.image == {"channels": 1, "height": 8, "width": 8}


@pytest.mark.parametrize("packed", [False, True])
def test_a_person_of_kdef_is_one_subject_in_both_series(tmp_path: Path, packed: bool) -> None:
    source = kdef_tree(tmp_path / "raw")
    source = pack(source, tmp_path / "raw.zip") if packed else source
    dataset = read_kdef(source, size=12)
    assert dataset.images.shape == (2 * 3 * 7, 3, 12, 12), "straight ones alone"
    assert dataset.subject_names == ("F01", "F02", "M01")
    assert np.asarray(dataset.images)[:, 0].min() > 150, "the upper rows lie outside of the middle"
    assert np.bincount(dataset.labels).tolist() == [6] * 7
    first = dict(zip(dataset.source_id, dataset.labels, strict=True))
    assert FER2013_CLASSES[first["KDEF/AF01/AF01AFS.JPG"]] == "fear"
    beton = open_beton(prepare.kdef(source, tmp_path / "out", angles="s, hl,FR", size=8, folds=3))
    assert beton.manifest.samples == 3 * 42
    subjects = [fold["subjects"] for fold in beton.manifest.folds.values()]
    assert sorted(subjects) == [["F01"], ["F02"], ["M01"]]


def test_the_two_misnamed_files_of_kdef_are_known(tmp_path: Path) -> None:
    for name in ("AF31V.JPG", "AM31H.JPG"):
        write_files(tmp_path, {name: encoded(Image.new("RGB", (12, 16)))})
    dataset = read_kdef(tmp_path, KDEF_ANGLES)
    assert [FER2013_CLASSES[label] for label in dataset.labels] == ["sad", "surprise"]
    with refused("no images like AF01ANS.JPG at the angles S in it"):
        read_kdef(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("readme.png", "not named like KA.AN1.39.tiff; rename or remove it"),
        ("KA.XX1.39.tiff", "not named like"),
        ("copy/KA.AN1.0.tiff", "appears already as"),
        ("jaffe/KD.AN1.99.tiff", r"KD\.AN1\.99\.tiff: not a readable image"),
    ],
)
def test_broken_copies_of_jaffe(tmp_path: Path, name: str, message: str) -> None:
    with refused(message):
        prepare.jaffe(write_files(jaffe_tree(tmp_path / "raw"), {name: b"x"}), tmp_path / "out", folds=3)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["AF01ANX.JPG", "CF01ANS.JPG", "AF1ANS.JPG"])
def test_broken_copies_of_kdef(tmp_path: Path, name: str) -> None:
    with refused(rf"{name}: not named like AF01ANS\.JPG"):
        read_kdef(write_files(kdef_tree(tmp_path / "raw", ("S",)), {name: b"x"}))


def test_odd_requests(tmp_path: Path) -> None:
    with refused("angle 'X': choose among S, HL, HR, FL, FR"):
        prepare.kdef(tmp_path, tmp_path / "out", angles="S,X")
    for read in (read_jaffe, read_kdef):
        with refused("no images like"):
            read(tmp_path)
    with pytest.raises(DataError, match="cannot make 10 folds of 3 subjects"):
        prepare.jaffe(jaffe_tree(tmp_path / "raw"), tmp_path / "out")
