"""What opening a beton verifies, and the parts of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ffcv.types import ALLOC_TABLE_TYPE, HeaderType

from ferdist.data.beton import open_beton
from ferdist.data.folds import Holdout
from ferdist.errors import DataError
from ferdist.io import sha256
from tests.data.beton import Make, Write
from tests.data.files import refused

DESCRIPTORS = 6 * 1041


def bless(path: Path) -> None:
    """Make the manifest agree with the changed files beside it, as far as sizes and checksums go."""
    manifest = path.with_suffix(".json")
    content = json.loads(manifest.read_text())
    content |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    content["samples_sha256"] = sha256(path.with_suffix(".samples.csv"))
    manifest.write_text(json.dumps(content))


def set_in_manifest(path: Path, key: str, value: object) -> None:
    manifest = path.with_suffix(".json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), key: value}))


def alter(path: Path, position: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position, os.SEEK_SET if position >= 0 else os.SEEK_END)
        file.write(value)


def test_open_gives_codes_and_table(videos: Make, faces: Make, write: Write) -> None:
    dataset = videos()
    beton = open_beton(write(dataset), checksum=True)
    others = {"label": dataset.labels, "copy_group": np.arange(60)}
    same = {name: getattr(dataset, name) for name in ("split", "subject", "fold", "sequence")}
    for name, wanted in (others | same).items():
        values = getattr(beton, name)
        assert values.dtype == np.int64
        assert np.array_equal(values, wanted), name
    assert len(beton.samples) == 60
    other = open_beton(write(faces(60)))
    assert (other.sequence == -1).all()
    assert other.copy_group[59] == 0


def test_indices_by_split(faces: Make, write: Write) -> None:
    beton = open_beton(write(faces(10)))
    assert beton.indices("train").tolist() == [0, 1, 4, 5, 8, 9]
    assert beton.indices("val").tolist() == [2, 6]
    assert beton.indices("test").dtype == np.int64
    with pytest.raises(
        DataError, match=r"no fold 0; it has the splits train \(6\), val \(2\), test \(2\) and no folds"
    ):
        beton.indices("train", Holdout(0))
    with pytest.raises(DataError, match="no split 'dev'; choose one of train, val, test"):
        beton.indices("dev")


def test_indices_by_fold(videos: Make, write: Write) -> None:
    dataset = videos()
    fold = np.where(np.arange(60) == 5, -1, dataset.fold)
    beton = open_beton(write(replace(dataset, fold=fold)))
    train, val = beton.indices("train", Holdout(2)), beton.indices("val", Holdout(2))
    assert np.array_equal(val, np.flatnonzero(fold == 2))
    assert np.array_equal(train, np.flatnonzero((fold != 2) & (fold >= 0)))
    assert not set(beton.subject[train]) & set(beton.subject[val])
    with pytest.raises(DataError, match="fold 2 has no test split; it has train and val"):
        beton.indices("test", Holdout(2))
    with pytest.raises(DataError, match="no fold 4; it has no splits and the folds 0, 1, 2, 3"):
        beton.indices("val", Holdout(4))
    with pytest.raises(DataError, match="no fold -1"):
        beton.indices("val", Holdout(-1))
    with pytest.raises(DataError, match="no train sample; it has no splits and the folds 0, 1, 2, 3"):
        beton.indices("train")


def test_normalisation_is_that_of_the_training_part(faces: Make, videos: Make, write: Write) -> None:
    for dataset, holdout in ((faces(), Holdout()), (videos(), Holdout(1)), (videos(), Holdout(1, 2))):
        beton = open_beton(write(dataset))
        train, val = beton.indices("train", holdout), beton.indices("val", holdout)
        assert not set(beton.subject[train]) & set(beton.subject[val]) - {-1}
        pixels = dataset.images[train] / 255
        mean, std = beton.normalisation(holdout)
        np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-9)
        np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), rtol=1e-9)
    assert set(beton.fold[val]) == {2}, "an inner fold takes the place of the fold"
    assert set(beton.fold[train]) == {0, 3}
    assert len(beton.normalisation()[0]) == 3  # no splits: of all samples
    for unknown in (Holdout(9), Holdout(1, 9)):
        for look in (beton.normalisation, lambda holdout: beton.indices("train", holdout)):
            with pytest.raises(DataError, match="no fold 9"):
                look(unknown)


def test_what_cannot_be_normalised_by_is_refused(faces: Make, videos: Make, write: Write) -> None:
    beton = open_beton(write(videos(folds=1)))
    with pytest.raises(DataError, match="no train sample beside fold 0"):
        beton.indices("train", Holdout(0))
    with pytest.raises(DataError, match="no train sample to normalise by"):
        beton.normalisation(Holdout(0))
    dataset = faces(8)
    beton = open_beton(write(replace(dataset, images=np.full_like(dataset.images, 9))))
    with pytest.raises(DataError, match="all training pixels of a channel are the same"):
        beton.normalisation()


# ------------------------------------------------------------------------------------- what is refused


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 24)
    bless(path)


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))
    bless(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def edit_table(path: Path, change: Callable[[list[str]], list[str]], *, blessed: bool = True) -> None:
    table = path.with_suffix(".samples.csv")
    table.write_text("".join(change(table.read_text().splitlines(keepends=True))))
    if blessed:
        bless(path)


def at(position: int, value: int, size: int = 8) -> Callable[[Path], None]:
    """Overwrite an integer of the file; its manifest is made to agree."""

    def change(path: Path) -> None:
        alter(path, position, value.to_bytes(size, "little", signed=value < 0))
        bless(path)

    return change


RECORDS = HeaderType.itemsize + DESCRIPTORS
LAST_ALLOCATION = -ALLOC_TABLE_TYPE.itemsize
PREAMBLE = "its header does not describe 60 images"
BROKEN = {
    "truncated": (cut, "bytes, not .*: truncated"),
    "empty": (lambda path: path.write_bytes(b""), "0 bytes, not"),
    "random": (random_bytes, PREAMBLE),
    "a folder": (folder, "this is a folder"),
    "missing": (Path.unlink, "no such file"),
    "no manifest": (lambda path: path.with_suffix(".json").unlink(), "faces.json is not beside it"),
    "no table": (
        lambda path: path.with_suffix(".samples.csv").unlink(),
        "faces.samples.csv is not beside it",
    ),
    "edited table": (
        lambda path: edit_table(path, lambda rows: [*rows, "\n"], blessed=False),
        r"sha256 of its \.samples\.csv is not the manifest's: edited",
    ),
    "short table": (
        lambda path: edit_table(path, lambda rows: rows[:-1]),
        "its table has 59 rows for 60 samples",
    ),
    "swapped rows": (
        lambda path: edit_table(path, lambda rows: [*rows[:3], rows[4], rows[3], *rows[5:]]),
        "row 2 of its table has another index",
    ),
    "table pointer": (at(16, 1 << 60), PREAMBLE),
    "field name": (at(HeaderType.itemsize + 1, ord("x"), 1), PREAMBLE),
    "image pointer": (at(RECORDS, 1 << 62), "an image is not where it must be"),
    "label": (at(RECORDS + 8, 3), "a label, split or fold that the manifest does not know"),
    "label of another class": (at(RECORDS + 8, -2), "a label, split or fold that the manifest does not know"),
    "split": (at(RECORDS + 16, 2), "counts per split, fold or class are not the manifest's"),
    "subject": (at(RECORDS + 24, 5), "row 0 of its table has another subject"),
    "fold": (at(RECORDS + 32, 0), "a label, split or fold that the manifest does not know"),
    "index": (at(RECORDS + 40, 1), "its index does not count from 0"),
    "allocated sample": (at(LAST_ALLOCATION, 60), "its table of allocations is wrong"),
    "counts": (
        lambda path: set_in_manifest(path, "splits", {"dev": {"samples": 0, "per_class": [0, 0, 0]}}),
        "counts per split, fold or class are not the manifest's",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_set_is_refused(faces: Make, write: Write, name: str) -> None:
    spoil, fault = BROKEN[name]
    path = write(faces())
    open_beton(path)
    spoil(path)
    with refused(f"^{re.escape(str(path.with_suffix('')))}.*{fault}"):
        open_beton(path)


@pytest.mark.parametrize("part", [".json", ".samples.csv"])
def test_a_part_of_another_set_of_the_same_size_is_refused(faces: Make, write: Write, part: str) -> None:
    other = write(replace(faces(seed=1), name="other"))
    path = write(faces(seed=0))
    assert other.stat().st_size == path.stat().st_size
    other.with_suffix(part).replace(path.with_suffix(part))
    with pytest.raises(DataError, match="not the manifest's"):
        open_beton(path)


def test_flips_are_found_without_the_checksum_or_with_it_in_the_pixels(videos: Make, write: Write) -> None:
    path = write(videos(12, folds=2))
    content = path.read_bytes()
    record = [*range(RECORDS + 48, RECORDS + 96)]
    rest = [*range(RECORDS), *range(len(content) - 12 * 24, len(content))]
    generator = np.random.default_rng(0)
    pixels = generator.integers(RECORDS + 12 * 48, len(content) - 12 * 24, 20).tolist()
    for position in [*record, *generator.choice(rest, 100, replace=False).tolist(), *pixels]:
        alter(path, position, bytes([content[position] ^ 4]))
        with pytest.raises(DataError):
            open_beton(path, checksum=position in pixels)
        alter(path, position, content[position : position + 1])
    open_beton(path, checksum=True)
