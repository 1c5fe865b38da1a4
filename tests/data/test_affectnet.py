from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferdist.data import prepare
from ferdist.data.affectnet import read_affectnet
from ferdist.data.beton import open_beton
from ferdist.data.record import CKPLUS8_CLASSES, FER2013_CLASSES
from tests.data.field import (
    AFFECTNET_COLUMNS,
    FACE_BOX,
    affectnet_hash,
    affectnet_numbers_tree,
    affectnet_tree,
    npy,
    shown,
)
from tests.data.files import pack, refused, write_files

TRAIN, VALIDATION = 32, 16
LISTS, IMAGES = "Manually_Annotated_file_lists", "Manually_Annotated_Images"
FIRST = f"1/{affectnet_hash('train', 0)}.jpg"


def classes() -> list[str]:
    return [
        "contempt" if number % 8 == 7 else name
        for seed, count in ((0, TRAIN + 3), (1, VALIDATION + 3))
        for number, name in enumerate(shown(count, seed)[: count - 3])
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_faces_by_their_boxes_in_either_number_of_classes(tmp_path: Path, packed: bool) -> None:
    tree = affectnet_tree(tmp_path / "raw", TRAIN, VALIDATION)
    rows(tree, "training.csv", lambda text: text + "\n")  # as editors leave it
    source = pack(tree, tmp_path / "raw.zip", "AffectNet/") if packed else tree
    dataset = read_affectnet(source, size=64)
    assert dataset.images.shape == (TRAIN + VALIDATION, 3, 64, 64), "what is no expression is left out"
    assert dataset.classes == CKPLUS8_CLASSES
    assert [CKPLUS8_CLASSES[label] for label in dataset.labels] == classes()
    assert dataset.split.tolist() == [0] * TRAIN + [2] * VALIDATION
    assert Path(dataset.source_id[0]).stem == affectnet_hash("train", 0)
    left, top, width, height = FACE_BOX
    with Image.open(tree / IMAGES / FIRST) as picture:
        face = picture.resize((64, 64), Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    assert np.array_equal(np.asarray(dataset.images)[0], np.asarray(face).transpose(2, 0, 1))
    seven = read_affectnet(source, classes=7)
    assert seven.classes == FER2013_CLASSES
    assert [FER2013_CLASSES[label] for label in seven.labels] == [
        name for name in classes() if name != "contempt"
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_the_release_with_numbers(tmp_path: Path, packed: bool) -> None:
    source = affectnet_numbers_tree(tmp_path / "raw", TRAIN, VALIDATION)
    if packed:
        source = pack(source, tmp_path / "raw.zip")
    beton = open_beton(prepare.affectnet(source, tmp_path / "out", size=32, val_share=0.25))
    assert beton.manifest.image == {"channels": 3, "height": 32, "width": 32}
    counts = {name: part["samples"] for name, part in beton.manifest.splits.items()}
    assert counts["train"] + counts["val"] == TRAIN
    assert counts["test"] == VALIDATION
    assert counts["val"] in range(6, 11)
    assert beton.samples["source_id"][10].endswith("train_set/images/10.jpg"), "in the order of the numbers"


def test_rows_without_a_box_and_csv_files_without_one_keep_the_whole_image(tmp_path: Path) -> None:
    tree = affectnet_tree(tmp_path / "raw", TRAIN, VALIDATION)
    boxed = np.asarray(read_affectnet(tree, size=32).images)
    rows(tree, "training.csv", lambda text: text.replace(",30,20,80,80,", ",,,,,", 1))
    part = np.asarray(read_affectnet(tree, size=32).images)
    assert [
        number for number, pair in enumerate(zip(part, boxed, strict=True)) if (pair[0] != pair[1]).any()
    ] == [0]
    for file in ("training.csv", "validation.csv"):
        rows(tree, file, lambda text: text.replace("face_x", "left"))
    whole = np.asarray(read_affectnet(tree, size=32).images)
    assert (whole != boxed).any(axis=(1, 2, 3)).all()
    assert np.array_equal(whole[0], part[0])


def test_what_is_said_of_the_release_a_csv_without_header_and_faces_that_were_not_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = affectnet_tree(tmp_path / "raw", TRAIN, VALIDATION)
    usual = read_affectnet(tree, size=32)
    rows(tree, "validation.csv", lambda text: text.removeprefix(AFFECTNET_COLUMNS + "\n"))
    rows(tree, "training.csv", lambda text: text.replace(",30,20,80,80,", ",NULL,NULL,NULL,NULL,", 1))
    rows(tree, "training.csv", lambda text: text.replace(",30,20,80,80,", ",-1,-1,-1,-1,", 1))
    # the last rows show no expression: whatever is in them does not matter
    rows(tree, "training.csv", lambda text: "x,20,80,80".join(text.rsplit("30,20,80,80", 1)))
    capsys.readouterr()
    read = read_affectnet(tree, size=32)
    lists = f"{tree}: {LISTS}/training.csv"
    assert capsys.readouterr().err == f"ferdist: {lists}: 2 of {TRAIN} faces have no box: images whole\n"
    assert read.labels.tolist() == usual.labels.tolist()
    assert read.split.tolist() == usual.split.tolist()
    changed = (np.asarray(read.images) != np.asarray(usual.images)).any(axis=(1, 2, 3))
    assert changed.nonzero()[0].tolist() == [0, 1]


def rows(tree: Path, file: str, change: Callable[[str], str]) -> None:
    path = tree / LISTS / file
    path.write_text(change(path.read_text()))


def training(old: str, new: str) -> Callable[[Path], object]:
    return lambda tree: rows(tree, "training.csv", lambda text: text.replace(old, new, 1))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "one csv": (lambda tree: (tree / LISTS / "validation.csv").unlink(), r"there is no validation\.csv"),
    "two csv": (lambda tree: write_files(tree, {"training.csv": b""}), r"training\.csv: appears already as"),
    "empty csv": (
        lambda tree: rows(tree, "training.csv", lambda text: ""),
        "column subDirectory_filePath is",
    ),
    "header alone": (
        lambda tree: rows(tree, "training.csv", lambda text: AFFECTNET_COLUMNS + "\n"),
        "no image with an expression in its train part",
    ),
    "csv of another release": (
        lambda tree: rows(tree, "training.csv", lambda text: "number,subDirectory_filePath,valence\n"),
        "column expression is missing from the header 'number,subDirectory_filePath,valence'",
    ),
    "no image": (
        lambda tree: (tree / IMAGES / FIRST).unlink(),
        "1 of 32 images of .*training.csv are absent",
    ),
    "image twice": (
        lambda tree: write_files(tree, {f"copy/{FIRST}": b""}),
        r"\.jpg: appears already as .*; give one copy of the data",
    ),
    "expression 1x": (training(";87.25,", ";87.25,1"), r"line 2: expression '1\d' is not from 0 to 10"),
    "short row": (training(",-0.2", ""), r"line 2: 8 fields instead of 9"),
    "a quote that never ends": (training(",30,20", ',"30,20'), r"line \d+: "),
    "box of words": (training(",30,20,80,80,", ",a,20,80,80,"), r"line 2: 'a,20,80,80' is not a face's x"),
    "box without an end": (training(",30,20,80,80,", ",inf,20,80,80,"), "line 2: 'inf,20,80,80' is not"),
    "box in part": (training(",30,20,80,80,", ",30,20,80,,"), "line 2: '30,20,80,' is not a face's x"),
    "box elsewhere": (
        training(",30,20,80,80,", ",300,20,80,80,"),
        r"\.jpg: the face lies outside of 150x130",
    ),
    "truncated image": (
        lambda tree: (tree / IMAGES / FIRST).write_bytes((tree / IMAGES / FIRST).read_bytes()[:900]),
        r"\.jpg: not a readable image \(.*truncated",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_copy_is_one_line_and_leaves_nothing(tmp_path: Path, fault: str) -> None:
    tree, out = affectnet_tree(tmp_path / "raw", TRAIN, VALIDATION), tmp_path / "out"
    change, message = BROKEN[fault]
    change(tree)
    with refused(message):
        prepare.affectnet(tree, out)
    assert not out.exists() or list(out.iterdir()) == []


ANNOTATION = "train_set/annotations/3_exp.npy"
BROKEN_NUMBERS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "no annotation": ({ANNOTATION: None}, "1 of 48 have no annotation, such as train_set/images/3.jpg"),
    "no image": ({"val_set/images/4.jpg": None}, r"1 of 48 have no image, such as val_set/annotations/4_exp"),
    "out of range": ({ANNOTATION: npy(np.array("11"))}, r"3_exp\.npy: not an expression from 0 to 10 \(11\)"),
    "not a number": (
        {ANNOTATION: npy(np.array("happy"))},
        r"3_exp\.npy: not an expression .*could not convert",
    ),
    "a half": ({ANNOTATION: npy(np.array(0.5))}, r"not an expression from 0 to 10 \(0\.5\)"),
    "two values": ({ANNOTATION: npy(np.array([1, 2]))}, r"not an expression .*\(int64 \(2,\)\)"),
    "a pickle": ({ANNOTATION: npy(np.array({"a": 1}))}, r"not an expression from 0 to 10 \(object \(\)\)"),
    "no npy": ({ANNOTATION: b"3"}, r"3_exp\.npy: not an expression"),
    "cut off": ({ANNOTATION: npy(np.array("3"))[:-2]}, r"3_exp\.npy: not an expression"),
    "large": ({ANNOTATION: npy(np.zeros(1000))}, r"not an expression .*\(more than one value\)"),
    "nothing": (dict.fromkeys(()), "neither training.csv and validation.csv nor train_set"),
}


@pytest.mark.parametrize("fault", BROKEN_NUMBERS)
def test_a_broken_copy_of_the_release_with_numbers(tmp_path: Path, fault: str) -> None:
    files, message = BROKEN_NUMBERS[fault]
    tree = affectnet_numbers_tree(tmp_path / "raw", TRAIN, VALIDATION) if files else tmp_path
    for name, content in files.items():
        if content is None:
            (tree / name).unlink()
        else:
            (tree / name).write_bytes(content)
    with refused(message):
        read_affectnet(tree)


def test_a_number_of_classes_that_there_is_not(tmp_path: Path) -> None:
    with refused("8 classes, or 7 without contempt, not 6"):
        read_affectnet(tmp_path, classes=6)
