from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ferdist.data import prepare
from ferdist.data.beton import open_beton
from ferdist.data.folds import hold_out
from ferdist.data.rafdb import read_rafdb
from ferdist.data.record import FER2013_CLASSES
from tests.data.field import rafdb_sorted, rafdb_tree, shown
from tests.data.files import pack, refused, write_files

LIST = "basic/EmoLabel/list_patition_label.txt"
TRAIN, TEST = 28, 14
FIRST = "basic/Image/aligned/train_00001_aligned.jpg"


@pytest.mark.parametrize("packed", [False, True])
def test_every_layout_gives_the_same_faces_in_fer2013s_classes(tmp_path: Path, packed: bool) -> None:
    sources = [
        rafdb_tree(tmp_path / "basic", TRAIN, TEST),
        rafdb_tree(tmp_path / "bare", TRAIN, TEST, outer=""),
        rafdb_sorted(tmp_path / "sorted", TRAIN, TEST),
    ]
    write_files(sources[0], {f"compound/EmoLabel/{Path(LIST).name}": b"train_00001.jpg 11\n"})
    if packed:
        sources = [pack(source, source.with_suffix(".zip"), "RAF-DB/") for source in sources]
    first, *others = (read_rafdb(source) for source in sources)
    assert first.images.shape == (TRAIN + TEST, 3, 100, 100)
    assert [FER2013_CLASSES[label] for label in first.labels] == shown(TRAIN + TEST)
    assert first.split.tolist() == [0] * TRAIN + [2] * TEST
    assert Path(first.source_id[-1]).stem == f"test_{TEST:04d}_aligned"
    for other in others:
        assert np.array_equal(other.images, first.images)
        assert np.array_equal(other.labels, first.labels)


def test_a_share_of_each_class_of_train_is_held_out_as_val(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = rafdb_tree(tmp_path / "raw", 70, 14)
    beton = open_beton(prepare.rafdb(source, tmp_path / "out", size=48, val_share=0.2))
    assert beton.manifest.image == {"channels": 3, "height": 48, "width": 48}
    splits = beton.manifest.splits
    whole = np.array(splits["train"]["per_class"]) + splits["val"]["per_class"]
    assert splits["val"]["per_class"] == np.rint(0.2 * whole).tolist()
    assert splits["test"]["samples"] == 14
    dataset = read_rafdb(source)
    assert np.array_equal(hold_out(dataset, 0.2, 0).split, beton.split)
    assert not np.array_equal(hold_out(dataset, 0.2, 1).split, beton.split)
    first, *others = sorted((source / "basic/Image/aligned").glob("train_*"))
    for path in others:
        path.write_bytes(first.read_bytes())
    prepare.rafdb(source, tmp_path / "copies", size=48, val_share=0.2)
    assert "14 of val's images are in train, too: leave out --val-share" in capsys.readouterr().err
    for share, seed, message in (
        (1.0, 0, "from 0 to below 1"),
        (0.2, -1, "0 or more"),
        (0.01, 0, "no sample"),
    ):
        with refused(message):
            hold_out(dataset, share, seed)


def listed(change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda tree: (tree / LIST).write_text(change((tree / LIST).read_text()))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list": (
        lambda tree: (tree / LIST).unlink(),
        r"there is no list_patition_label\.txt, and .*/aligned/test_0001_aligned\.jpg lies in no",
    ),
    "two lists": (lambda tree: write_files(tree, {Path(LIST).name: b""}), "two lists of labels"),
    "empty list": (listed(lambda text: ""), r"42 of 42 images are not in basic/EmoLabel"),
    "image absent": (
        lambda tree: (tree / FIRST).unlink(),
        r"1 of 42 images of .*list_patition_label\.txt are absent, such as train_00001_aligned\.jpg",
    ),
    "image not listed": (
        listed(lambda text: text.partition("\n")[2]),
        r"1 of 42 images are not in .*, such as train_00001_aligned",
    ),
    "label 8": (listed(lambda text: text.replace(" 4", " 8", 1)), r"line \d+: label '8' is not from 1 to 7"),
    "label 0": (listed(lambda text: text.replace(" 4", " 0", 1)), r"line \d+: label '0' is not from 1 to 7"),
    "label in words": (listed(lambda text: text.replace(" 4", " happy", 1)), "label 'happy' is not from 1"),
    "commas": (listed(lambda text: text.replace(" ", ",", 1)), r"line 1: 'train_00001\.jpg,\d' is not like"),
    "RAF-AU's list": (listed(lambda text: "0001.jpg 1+4\n" + text), r"line 1: '0001\.jpg 1\+4' is not like"),
    "listed twice": (
        listed(lambda text: text.partition("\n")[0] + "\n" + text),
        r"line 2: train_00001\.jpg is listed twice",
    ),
    "image twice": (
        lambda tree: write_files(tree, {"copy/train_00001_aligned.jpg": b""}),
        r"copy/train_00001_aligned\.jpg: appears already as|aligned\.jpg: appears already as copy",
    ),
    "truncated image": (
        lambda tree: (tree / FIRST).write_bytes((tree / FIRST).read_bytes()[:900]),
        r"train_00001_aligned\.jpg: not a readable image \(.*truncated",
    ),
    "empty image": (lambda tree: (tree / FIRST).write_bytes(b""), r"not a readable image \(empty file\)"),
    "no images": (lambda tree: [path.unlink() for path in tree.rglob("*.jpg")], "no image of RAF-DB"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_copy_is_one_line_and_leaves_nothing(tmp_path: Path, fault: str) -> None:
    tree, out = rafdb_tree(tmp_path / "raw", TRAIN, TEST), tmp_path / "out"
    change, message = BROKEN[fault]
    change(tree)
    with refused(message):
        prepare.rafdb(tree, out)
    assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train/1", "train/9", "lies in no folder train/1 to test/7"),
        ("test", "train", r"test_\d+_aligned\.jpg lies in train; get an original copy"),
    ],
)
def test_a_wrongly_sorted_copy(tmp_path: Path, old: str, new: str, message: str) -> None:
    tree = rafdb_sorted(tmp_path / "raw", TRAIN, TEST) / "DATASET"
    for file in (tree / old).rglob("*.jpg"):
        moved = tree / new / file.relative_to(tree / old)
        moved.parent.mkdir(parents=True, exist_ok=True)
        file.rename(moved)
    with refused(message):
        read_rafdb(tree)


def test_a_size_that_is_none(tmp_path: Path) -> None:
    with refused("size 1 is not from 2 to 1024 pixels"):
        read_rafdb(rafdb_tree(tmp_path, 7, 7), size=1)
