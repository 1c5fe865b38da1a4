from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ffcv.fields import IntField, NDArrayField
from ffcv.writer import DatasetWriter

from ferdist.data.audit import Pixels, audit
from ferdist.data.beton import Manifest, open_beton, stage_beton, write_beton, writer
from ferdist.data.beton import files as beton_files
from ferdist.data.record import Decoded
from ferdist.errors import DataError
from ferdist.io import sha256
from tests.data.beton import Make, Write
from tests.data.files import largest_file, refused

SET = ["faces.beton", "faces.json", "faces.samples.csv"]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("samples", "shape"),
    [(60, (1, 12, 10)), (60, (3, 6, 8)), (1, (1, 5, 5)), (2000, (1, 48, 48)), (3, (3, 1024, 1024))],
)
def test_bytes_equal_those_of_ffcv_writer(
    faces: Make, write: Write, tmp_path: Path, samples: int, shape: tuple[int, int, int]
) -> None:
    dataset = faces(samples, shape=shape)
    dataset = replace(dataset, images=dataset.images[:, :, :, ::-1])  # they need not be contiguous
    path = write(dataset)
    fields = {"image": NDArrayField(np.dtype(np.uint8), dataset.images.shape[1:])}
    fields |= {name: IntField() for name in ("label", "split", "subject", "fold", "index")}
    theirs = tmp_path / "theirs.beton"
    page_size = max(1 << 21, 1 << (dataset.images[0].size - 1).bit_length())
    codes = (dataset.labels, dataset.split, dataset.subject, dataset.fold, np.arange(samples))
    rows = list(zip(dataset.images, *(code.tolist() for code in codes), strict=True))
    DatasetWriter(str(theirs), fields, page_size=page_size, num_workers=1).from_indexed_dataset(rows)
    assert path.read_bytes() == theirs.read_bytes()


def test_three_files_of_ordinary_permissions_and_always_the_same_bytes(
    faces: Make, write: Write, tmp_path: Path
) -> None:
    write(faces())
    assert files(tmp_path) == SET
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}
    first = [(tmp_path / name).read_bytes() for name in SET[::2]]
    write(faces())
    assert [(tmp_path / name).read_bytes() for name in SET[::2]] == first


def test_images_that_are_decoded_when_they_are_read(faces: Make, write: Write, tmp_path: Path) -> None:
    """Each of them once, to the bytes that an array gives; a broken one late in the set leaves nothing."""
    dataset, asked = faces(2000, shape=(1, 48, 48)), []

    def decode(number: int) -> np.ndarray:
        asked.append(number)
        return dataset.images[number]

    lazy = replace(dataset, images=Decoded((2000, 1, 48, 48), decode, ""))
    first = [path.read_bytes() for path in (write(dataset), tmp_path / "faces.samples.csv")]
    audited = Manifest.load(tmp_path / "faces.json")
    assert [path.read_bytes() for path in (write(lazy), tmp_path / "faces.samples.csv")] == first
    assert sorted(asked) == list(range(2000))
    assert replace(Manifest.load(tmp_path / "faces.json"), created={}) == replace(audited, created={})

    def broken(number: int) -> np.ndarray:
        if number == 1990:
            raise DataError("faces.zip: 1990.png: not a readable image")
        return decode(number)

    with pytest.raises(DataError, match=r"^faces\.zip: 1990\.png"):
        write(replace(lazy, images=replace(lazy.images, decode=broken)))
    assert files(tmp_path) == SET
    assert (tmp_path / "faces.beton").read_bytes() == first[0]


def test_a_disk_that_is_too_small_is_known_before_an_image_is_decoded(
    faces: Make, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    images = Decoded((2000, 1, 48, 48), lambda number: pytest.fail("decoded"), "")
    with refused(r"faces\.beton: takes 8 MiB, and 1 MiB are free; make room"):
        write(replace(faces(2000, shape=(1, 48, 48)), images=images))
    assert files(tmp_path) == []


def test_manifest_describes_the_beton(videos: Make, write: Write) -> None:
    dataset = videos()
    path = write(dataset)
    manifest = Manifest.load(path.with_suffix(".json"))
    assert manifest.bytes == path.stat().st_size
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest.image == {"channels": 3, "height": 6, "width": 8}
    assert manifest.splits == {}
    assert manifest.folds["1"]["subjects"] == ["S001", "S005", "S009"]
    assert manifest.folds["1"]["samples"] == (dataset.fold == 1).sum()
    assert manifest.audit == audit(dataset, Pixels.of(dataset.images))
    assert set(manifest.created) == {"ferdist", "ffcv", "numpy", "date"}


def test_table_of_samples_with_extra_columns(videos: Make, write: Write) -> None:
    dataset = videos(9)
    extra = pd.DataFrame({"votes": range(9), "image": ["a", ""] * 4 + ["b"]}, index=range(100, 109))
    samples = open_beton(write(dataset, extra_columns=extra)).samples
    assert list(samples.columns) == [
        *("index", "source_id", "label", "class", "split", "subject", "sequence", "fold", "copy_group"),
        *("votes", "image"),
    ]
    assert samples["votes"].tolist() == list(range(9))
    assert samples["subject"].tolist() == ["NA"] * 3 + ["S001"] * 3 + ["S002"] * 3
    assert samples["sequence"].tolist() == ["Q00"] * 3 + ["Q01"] * 3 + ["Q02"] * 3
    assert samples["source_id"].tolist() == list(dataset.source_id), "with blanks, quotes and line ends"
    assert samples["split"].tolist() == [""] * 9


@pytest.mark.parametrize("length", [3, 5])
def test_extra_columns_of_another_length(faces: Make, write: Write, tmp_path: Path, length: int) -> None:
    with pytest.raises(DataError, match=f"{length} rows of extra columns for 4 samples"):
        write(faces(4), extra_columns=pd.DataFrame({"votes": range(length)}))
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"subject_names": ("a", "a")}, "each subject must have a name of its own"),
        ({"subject_names": ("a", "")}, "each subject must have a name of its own"),
        *(({"name": name}, "cannot name a file") for name in ("", "a/b", "../a", ".hidden", "a\0b")),
        ({"source_id": ["a.png", os.fsdecode(b"\xff.png"), "", ""]}, "a name is not UTF-8"),
    ],
)
def test_names_that_cannot_be_written(
    faces: Make, write: Write, tmp_path: Path, change: dict[str, Any], fault: str
) -> None:
    with pytest.raises(DataError, match=fault):
        write(replace(faces(4), **change))
    assert files(tmp_path) == []


def test_folders_that_are_in_the_way_or_missing(faces: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such folder"):
        write_beton(faces(4), tmp_path / "absent")
    (tmp_path / "faces.samples.csv").mkdir()
    with pytest.raises(DataError, match="a folder has this name"):
        write_beton(faces(4), tmp_path)
    assert files(tmp_path) == ["faces.samples.csv"]


@pytest.mark.parametrize(("size", "text"), [(10, 1), (3 << 20, 1), (8 << 20, 400_000)])
def test_no_space_leaves_the_old_set_alone(
    faces: Make, write: Write, tmp_path: Path, size: int, text: int
) -> None:
    old = open_beton(write(faces(50)))
    extra = pd.DataFrame({"text": ["x" * (text // 100)] * 2000})
    with largest_file(size), pytest.raises(DataError, match=r"faces.beton: cannot write it: File too large$"):
        write(faces(2000, shape=(1, 48, 48)), extra_columns=extra)
    assert files(tmp_path) == SET
    assert open_beton(old.path, checksum=True).manifest == old.manifest


def forked(function: Callable[[], None]) -> int | None:
    """Run a function in a process of its own and return its exit code."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join(60)
    return process.exitcode


def test_folder_that_may_not_be_written(faces: Make, tmp_path: Path) -> None:
    (tmp_path / "sealed").mkdir(mode=0o555)

    def write_without_the_right() -> None:
        home, user = Path.cwd(), os.geteuid()
        os.chdir(tmp_path / "sealed")
        if user == 0:  # root may write everywhere
            os.seteuid(65534)
        with pytest.raises(DataError, match=r"^faces.beton: cannot write it: Permission denied$"):
            write_beton(faces(4), Path())
        os.seteuid(user)  # coverage writes its data at the end of the process
        os.chdir(home)

    assert forked(write_without_the_right) == 0
    assert files(tmp_path) == ["sealed"]


STEPS = (
    *("mkdir", *["fsync"] * 4, "rename", "fsync"),
    *(*["replace"] * 3, "fsync", "fsync", "rmdir", "fsync", "unlink"),
)
"""All that a replacement does to names and to what lies on the disk; its rename makes the new set valid."""


def before_step(step: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Act before a step; gives the list that the steps are noted in."""
    done: list[str] = []

    def stepped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            done.append(function.__name__)
            if len(done) == step + 1:
                act()
            return function(*arguments, **options)

        return call

    for name in set(STEPS):
        monkeypatch.setattr(os, name, stepped(getattr(os, name)))
    return done


@pytest.mark.parametrize("step", range(len(STEPS) + 1))
def test_a_crash_leaves_the_old_set_or_the_new_one(
    faces: Make, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The process vanishes before each step that replaces an old set by a new one of the same size."""
    old, new = faces(50, seed=1), faces(50, seed=2)
    path = write(old)

    def write_until_then() -> None:
        done = before_step(step, lambda: os._exit(9), monkeypatch)
        write(new)
        assert tuple(done) == STEPS

    assert forked(write_until_then) == (9 if step < len(STEPS) else 0)
    found = files(tmp_path)
    survivor = new if step > STEPS.index("rename") else old
    assert np.array_equal(open_beton(path, checksum=True).label, survivor.labels)
    assert files(tmp_path) == found, "a reader may not be able to write there"
    stage = tmp_path / "stage"
    stage.mkdir()
    assert np.array_equal(open_beton(stage_beton(path, str(stage)), checksum=True).label, survivor.labels)
    shutil.rmtree(stage)
    write(faces(50, seed=3))
    assert files(tmp_path) == SET
    open_beton(path, checksum=True)


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_ctrl_c_leaves_the_old_set_or_the_new_one(
    faces: Make, write: Write, tmp_path: Path, request: pytest.FixtureRequest, step: int
) -> None:
    # A shell that starts a command in the background has it ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    old, new = faces(50, seed=1), faces(50, seed=2)
    path = write(old)
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(KeyboardInterrupt):
        before_step(step, lambda: signal.raise_signal(signal.SIGINT), monkeypatch)
        write(new)
    survivor = new if step > STEPS.index("rename") else old
    assert np.array_equal(open_beton(path, checksum=True).label, survivor.labels)
    if survivor is old:
        assert files(tmp_path) == SET
    write(faces(50, seed=3))
    assert files(tmp_path) == SET


def test_kills_and_readers_while_a_set_is_replaced_all_the_time(
    faces: Make, write: Write, tmp_path: Path
) -> None:
    sets = [faces(50, seed=seed) for seed in range(2)]
    path = write(sets[0])
    labels = [dataset.labels.tolist() for dataset in sets]

    def replace_forever() -> None:
        for number in itertools.count():
            write(sets[number % 2])

    for number in range(20):
        process = multiprocessing.get_context("fork").Process(target=replace_forever)
        process.start()
        end = time.monotonic() + 0.05 + 0.013 * number
        while time.monotonic() < end:
            assert open_beton(path, checksum=True).label.tolist() in labels
        process.kill()
        process.join()
        assert open_beton(path, checksum=True).label.tolist() in labels
    write(sets[0])
    assert files(tmp_path) == SET


@pytest.mark.parametrize(
    "reader",
    [
        lambda path: len(open_beton(path).label),
        lambda path: Manifest.load(path.with_suffix(".json")).samples,
    ],
    ids=["open", "manifest"],
)
def test_a_set_that_moves_while_a_reader_looks_for_it(
    reader: Callable[[Path], int],
    faces: Make,
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    move, exists = beton_files._move, Path.exists
    with monkeypatch.context() as patch:
        patch.setattr(beton_files, "_move", lambda path: None)
        path = write(faces(50))
    assert files(tmp_path / ".faces.new") == SET

    def exists_and_then_not(self: Path) -> bool:
        there = exists(self)
        if there and self.name == "faces.json":
            patch.undo()
            move(path)
        return there

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", exists_and_then_not)
        assert reader(path) == 50
    assert files(tmp_path) == SET


def test_two_that_write_one_set(
    faces: Make, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("fork")
    begun, go = context.Event(), context.Event()
    new = faces(50, seed=2)

    def write_slowly() -> None:
        describe = writer._describe

        def wait(*arguments: Any) -> Manifest:
            begun.set()
            assert go.wait(60)
            return describe(*arguments)

        monkeypatch.setattr(writer, "_describe", wait)
        write(new)

    process = context.Process(target=write_slowly)
    process.start()
    assert begun.wait(60)
    with refused(r"faces\.beton: another `ferdist prepare` is writing this set; wait for it"):
        write(faces(50))
    write(replace(faces(50), name="faces.other"))
    go.set()
    process.join(60)
    assert process.exitcode == 0
    assert np.array_equal(open_beton(tmp_path / "faces.beton", checksum=True).label, new.labels)
    assert not [name for name in files(tmp_path) if name.startswith(".")]


def test_links_in_the_place_of_hidden_names_lead_nowhere(faces: Make, write: Write, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "faces.beton").write_text("mine")
    hidden = (".faces.new", ".faces.lock", f".faces.{'0' * 16}.tmp")
    for name in hidden[:2]:
        (tmp_path / name).symlink_to(victim)
        with refused(r"faces\.beton: cannot write it: (Not a directory|Is a directory|Too many levels)"):
            write(faces(4))
        (tmp_path / name).unlink()
    (tmp_path / hidden[2]).symlink_to(victim)
    write(faces(4))
    assert (victim / "faces.beton").read_text() == "mine"


def test_written_data_that_reads_back_different_is_an_error(
    faces: Make, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that changes a pixel of the last image between its write and its verification."""

    def read_back(path: Path) -> str:
        content = bytearray(path.read_bytes())
        content[content.index(faces(50).images[49].tobytes())] ^= 1
        path.write_bytes(content)
        return sha256(path)

    monkeypatch.setattr(writer, "sha256", read_back)
    with pytest.raises(DataError, match="reads back different from what was written"):
        write(faces(50))
    assert files(tmp_path) == []
