from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.types import ALLOC_TABLE_TYPE, HeaderType

from ferdist.data.audit import audit
from ferdist.data.beton import Batch, Beton, BetonLoader, open_beton, write_beton
from ferdist.data.beton.loader import _Epoch
from ferdist.data.folds import Holdout
from ferdist.data.record import FaceDataset, no_values
from ferdist.errors import DataError, RunError
from ferdist.io import sha256
from tests.conftest import PATIENCE

Make = Callable[..., FaceDataset]
Write = Callable[[FaceDataset], Path]
CPU = torch.device("cpu")
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


def joined(batches: Iterator[Batch]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kept = list(batches)
    return tuple(  # type: ignore[return-value]
        torch.cat([getattr(batch, name) for batch in kept]).numpy() for name in ("image", "label", "index")
    )


# ---------------------------------------------------------------------------------------------- opening


def test_open_gives_codes_and_table(videos: Make, write: Write) -> None:
    dataset = videos()
    beton = open_beton(write(dataset), checksum=True)
    for name, wanted in {
        "label": dataset.labels,
        "split": dataset.split,
        "subject": dataset.subject,
        "fold": dataset.fold,
        "sequence": dataset.sequence,
        "copy_group": np.arange(60),
    }.items():
        values = getattr(beton, name)
        assert values.dtype == np.int64
        assert np.array_equal(values, wanted), name
    assert len(beton.samples) == 60


def test_no_sequence_and_copies(faces: Make, write: Write) -> None:
    beton = open_beton(write(faces(60)))
    assert (beton.sequence == -1).all()
    assert beton.copy_group[59] == 0


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


def test_the_only_fold_has_no_training_part(videos: Make, write: Write) -> None:
    beton = open_beton(write(videos(folds=1)))
    with pytest.raises(DataError, match="no train sample beside fold 0"):
        beton.indices("train", Holdout(0))
    with pytest.raises(DataError, match="no train sample to normalise by"):
        beton.normalisation(Holdout(0))


def test_normalisation_is_that_of_the_training_part(faces: Make, videos: Make, write: Write) -> None:
    for dataset, fold in ((faces(), None), (videos(), 1)):
        beton = open_beton(write(dataset))
        pixels = dataset.images[beton.indices("train", Holdout(fold))] / 255
        mean, std = beton.normalisation(Holdout(fold))
        np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)
    assert len(beton.normalisation()[0]) == 3  # no splits: of all samples
    with pytest.raises(DataError, match="no fold 9"):
        beton.normalisation(Holdout(9))


def test_an_inner_fold_takes_the_place_of_the_fold(videos: Make, write: Write) -> None:
    dataset = videos()
    beton = open_beton(write(dataset))
    train, val = beton.indices("train", Holdout(1, 2)), beton.indices("val", Holdout(1, 2))
    assert set(beton.fold[val].tolist()) == {2}
    assert set(beton.fold[train].tolist()) == set(np.unique(beton.fold).tolist()) - {-1, 1, 2}
    assert not set(beton.subject[train].tolist()) & set(beton.subject[val].tolist())
    pixels = dataset.images[train] / 255
    mean, std = beton.normalisation(Holdout(1, 2))
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), rtol=1e-9)
    with pytest.raises(DataError, match="no fold 9"):
        beton.indices("train", Holdout(1, 9))
    with pytest.raises(DataError, match="no fold 9"):
        beton.normalisation(Holdout(1, 9))


def test_normalisation_of_constant_images(faces: Make, write: Write) -> None:
    dataset = faces(8)
    beton = open_beton(write(replace(dataset, images=np.full_like(dataset.images, 9))))
    with pytest.raises(DataError, match="all training pixels of a channel are the same"):
        beton.normalisation()


# ------------------------------------------------------------------------------------- what is refused


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_with_new_size(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 24)
    bless(path)


def cut_to_its_header(path: Path) -> None:
    os.truncate(path, 100)
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
    "truncated, with the size in its manifest": (cut_with_new_size, "bytes, not .*: truncated"),
    "header only": (cut_to_its_header, "100 bytes, not"),
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
    "version": (at(0, 3, 2), PREAMBLE),
    "page size": (at(4, 0, 4), PREAMBLE),
    "samples": (at(8, 61), PREAMBLE),
    "table pointer": (at(16, 1 << 60), PREAMBLE),
    "field name": (at(HeaderType.itemsize + 1, ord("x"), 1), PREAMBLE),
    "image pointer": (at(RECORDS, 1 << 62), "an image is not where it must be"),
    "label": (at(RECORDS + 8, 3), "a label or split that the manifest does not know"),
    "label of another class": (at(RECORDS + 8, -2), "a label or split that the manifest does not know"),
    "split": (at(RECORDS + 16, 2), "counts per split, fold or class are not the manifest's"),
    "subject": (at(RECORDS + 24, 5), "row 0 of its table has another subject"),
    "fold": (at(RECORDS + 32, 0), "counts per split, fold or class are not the manifest's"),
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
    with pytest.raises(DataError, match=fault) as raised:
        open_beton(path)
    assert str(path.with_suffix("")) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_flipped_bit_fails_the_checksum(faces: Make, write: Write) -> None:
    path = write(faces(8))
    content = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(content), 20).tolist():
        alter(path, position, bytes([content[position] ^ 16]))
        with pytest.raises(DataError, match="sha256 is not the manifest's"):
            open_beton(path, checksum=True)
        alter(path, position, content[position : position + 1])
    open_beton(path, checksum=True)


def test_flips_outside_the_pixels_are_found_without_the_checksum(videos: Make, write: Write) -> None:
    path = write(videos(12, folds=2))
    content = path.read_bytes()
    record = range(RECORDS + 48, RECORDS + 96)
    rest = [*range(RECORDS), *range(len(content) - 12 * 24, len(content))]
    for position in [*record, *np.random.default_rng(0).choice(rest, 100, replace=False).tolist()]:
        alter(path, position, bytes([content[position] ^ 4]))
        with pytest.raises(DataError):
            open_beton(path)
        alter(path, position, content[position : position + 1])
    open_beton(path)


@pytest.mark.parametrize("part", [".json", ".samples.csv"])
def test_a_part_of_another_set_of_the_same_size_is_refused(faces: Make, write: Write, part: str) -> None:
    other = write(replace(faces(seed=1), name="other"))
    path = write(faces(seed=0))
    assert other.stat().st_size == path.stat().st_size
    other.with_suffix(part).replace(path.with_suffix(part))
    with pytest.raises(DataError, match="not the manifest's"):
        open_beton(path)


def test_another_name_is_asked_for(faces: Make, write: Write) -> None:
    path = write(faces())
    with pytest.raises(DataError, match=r"give the file that ends in \.beton"):
        open_beton(path.with_suffix(".json"))


# --------------------------------------------------------------------------------------------- reading


@pytest.fixture
def beton(faces: Make, write: Write) -> Beton:
    return open_beton(write(faces(200)))


@pytest.fixture
def loader(beton: Beton) -> BetonLoader:
    return BetonLoader(beton, batch_size=16, device=CPU, timeout=PATIENCE)


ORDERS = {
    "shuffled": np.random.default_rng(1).permutation(200),
    "descending": np.arange(200)[::-1],
    "repeated": np.array([5, 5, 5, 199, 0, 5] * 7),
    "one": np.array([3]),
    "shorter than a batch": np.array([9, 2, 4]),
    "a whole number of batches": np.arange(32),
    "32-bit": np.arange(20, dtype=np.int32),
    "unsigned": np.arange(20, dtype=np.uint64),
}


def test_batches_are_the_samples_of_the_order(faces: Make, loader: BetonLoader) -> None:
    dataset = faces(200)
    for name, order in ORDERS.items():  # orders of several lengths, one after the other, with one loader
        batches = list(loader.batches(order))
        assert [len(batch.label) for batch in batches] == [
            min(16, len(order) - start) for start in range(0, len(order), 16)
        ], name
        image, label, index = joined(iter(batches))
        assert (image.dtype, label.dtype, index.dtype) == (np.uint8, np.int64, np.int64)
        assert np.array_equal(index, order)
        assert np.array_equal(label, dataset.labels[order])
        assert np.array_equal(image, dataset.images[order])


def test_colour_and_several_pages(faces: Make, write: Write) -> None:
    dataset = faces(300, shape=(3, 64, 64))
    loader = BetonLoader(open_beton(write(dataset)), batch_size=64, device=CPU, workers=8)
    order = np.random.default_rng(0).permutation(300)
    image, _, _ = joined(loader.batches(order))
    assert np.array_equal(image, dataset.images[order])


def test_empty_order_has_no_batches(loader: BetonLoader) -> None:
    assert list(loader.batches(np.array([], dtype=np.int64))) == []
    assert list(loader.batches(np.array([]))) == []


@pytest.mark.parametrize(
    ("order", "fault"),
    [
        (np.array([0, 200]), r"index 200, outside 0\.\.199"),
        (np.array([3, -1]), r"index -1, outside 0\.\.199"),
        (np.array([2**63 + 5], dtype=np.uint64), r"outside 0\.\.199"),
        (np.array([0.0, 1.0]), "must be a list of integers, not float64"),
        (np.zeros((2, 2), dtype=np.int64), "must be a list of integers"),
        (np.array([True, False]), "must be a list of integers, not bool"),
    ],
)
def test_an_impossible_order_is_refused_at_once(loader: BetonLoader, order: np.ndarray, fault: str) -> None:
    with pytest.raises(RunError, match=fault):
        loader.batches(order)


def test_tensors_are_the_receivers_own(faces: Make, loader: BetonLoader) -> None:
    dataset = faces(200)
    order = np.arange(200)
    kept = []
    for batch in loader.batches(order):
        kept.append((batch.image, batch.image.clone()))
    assert all(torch.equal(image, copy) for image, copy in kept)
    for batch in loader.batches(order):
        batch.image.zero_()
        batch.label.fill_(-7)
    image, label, _ = joined(loader.batches(order))
    assert np.array_equal(image, dataset.images)
    assert np.array_equal(label, dataset.labels)


def test_the_order_may_change_while_it_is_read(loader: BetonLoader) -> None:
    order = np.arange(200)
    batches = loader.batches(order)
    first = next(batches)
    order[:] = 0
    assert torch.cat([first.index, *(batch.index for batch in batches)]).tolist() == list(range(200))


def test_many_epochs_and_several_loaders_at_once(videos: Make, faces: Make, write: Write) -> None:
    one = BetonLoader(open_beton(write(faces(150))), batch_size=16, device=CPU)
    two = BetonLoader(open_beton(write(videos(150))), batch_size=16, device=CPU)
    generator = np.random.default_rng(0)
    for _ in range(10):
        orders = [generator.permutation(150) for _ in range(3)]
        sources = [one.batches(orders[0]), two.batches(orders[1]), one.batches(orders[2])]
        found: list[list[int]] = [[], [], []]
        for batches in zip(*sources, strict=True):
            for indices, batch in zip(found, batches, strict=True):
                indices.extend(batch.index.tolist())
        assert found == [order.tolist() for order in orders]


def test_loaders_in_several_threads(loader: BetonLoader, beton: Beton) -> None:
    failures: list[str] = []

    def read(seed: int) -> None:
        own = BetonLoader(beton, batch_size=7, device=CPU)
        order = np.random.default_rng(seed).permutation(200)
        if not np.array_equal(joined(own.batches(order))[2], order):
            failures.append(f"seed {seed}")

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_no_order_or_short_batch_compiles_again(loader: BetonLoader) -> None:
    for order in ORDERS.values():
        list(loader.batches(order))
    ((stage, _),), _ = loader._loader.code
    compiled = [function for name, function in stage.__globals__.items() if name.startswith("code_")]
    assert [len(function.signatures) for function in compiled] == [1, 1, 1]


@pytest.mark.slow
def test_numbers_of_threads_stay_as_they_are(beton: Beton) -> None:
    """In a process of its own: importing ferdist.data.beton sets them too, if nobody takes care."""
    script = f"""
import numpy as np, torch, random
torch.set_num_threads(3)
import ferdist.data.beton as beton
assert torch.get_num_threads() == 3, "import"
np.random.seed(0)
loader = beton.BetonLoader(beton.open_beton({str(beton.path)!r}), batch_size=16, device=torch.device("cpu"))
assert torch.get_num_threads() == 3, "loader"
for batch in loader.batches(np.arange(200)):
    assert torch.get_num_threads() == 3, "reading"
assert np.random.randint(1 << 30) == 209652396, "numpy's generator was used"
batches = loader.batches(np.arange(200))
next(batches)  # still open at the end of the process
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_left_iterators_leave_no_thread(loader: BetonLoader) -> None:
    list(loader.batches(np.arange(200)))
    before = threading.active_count()
    for taken in range(12):
        for position, _ in enumerate(loader.batches(np.arange(200))):
            if position == taken:
                break
    loader.batches(np.arange(200))  # never begun
    batches = loader.batches(np.arange(200))
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before

    def fail_inside() -> None:
        for _ in loader.batches(np.arange(200)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert threading.active_count() == before


def test_leaving_ends_the_thread_when_the_queue_is_full(loader: BetonLoader) -> None:
    before = threading.active_count()
    batches = loader.batches(np.arange(200))
    next(batches)
    time.sleep(0.2)  # the thread fills the queue and waits
    batches.close()
    while threading.active_count() > before:
        time.sleep(0.01)


def test_a_replaced_file_is_noticed(faces: Make, write: Write) -> None:
    beton = open_beton(write(faces(200)))
    write(faces(200, seed=1))
    with pytest.raises(DataError, match="replaced since it was opened"):
        BetonLoader(beton, batch_size=16, device=CPU)


def test_a_file_replaced_during_training_is_still_read(
    faces: Make, write: Write, loader: BetonLoader
) -> None:
    dataset = faces(200)
    write(faces(200, seed=1))
    image, label, _ = joined(loader.batches(np.arange(200)))
    assert np.array_equal(image, dataset.images)
    assert np.array_equal(label, dataset.labels)


# ------------------------------------------------------------------------------------------- the guard


def test_the_exception_of_a_dead_thread_is_told(
    loader: BetonLoader, capfd: pytest.CaptureFixture[str]
) -> None:
    """The records vanish from under the thread, so that FFCV's own code fails in it."""
    list(loader.batches(np.arange(20)))
    loader._loader.reader.metadata = loader._loader.reader.metadata[["f0", "f1"]]
    with pytest.raises(RunError, match=r"faces\.beton: the loader's thread died: .*f5") as raised:
        list(loader.batches(np.arange(200)))
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None
    assert capfd.readouterr().err == ""


def test_batches_before_the_death_are_given(loader: BetonLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = _Epoch.run_pipeline

    def fail_at_the_fourth(self: _Epoch, number: int, *arguments: Any) -> Any:
        if number == 3:
            raise OSError(5, "Input/output error\nin two lines")
        return pipeline(self, number, *arguments)

    monkeypatch.setattr(_Epoch, "run_pipeline", fail_at_the_fourth)
    batches = loader.batches(np.arange(200))
    assert [next(batches).index[0].item() for _ in range(3)] == [0, 16, 32]
    with pytest.raises(RunError, match=r"OSError: \[Errno 5\] Input/output error in two lines$"):
        next(batches)


def test_a_death_while_the_receiver_waits_is_noticed(
    loader: BetonLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(loader.batches(np.arange(20)))

    def die_later(*_: Any) -> Any:
        time.sleep(0.7)
        raise SystemExit

    monkeypatch.setattr(_Epoch, "run_pipeline", die_later)
    with pytest.raises(RunError, match="the loader's thread died: SystemExit"):
        next(loader.batches(np.arange(20)))


def test_a_silent_thread_is_an_error_after_the_timeout(beton: Beton) -> None:
    """A stage of FFCV's pipeline hangs, as it does when a network file system is gone."""
    loader = BetonLoader(beton, batch_size=16, device=CPU)
    released = threading.Event()
    stages, outputs = loader._loader.code
    calls: list[int] = []

    def hang_at_the_third(**arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            released.wait(60)
        return stages[0][0](**arguments)

    list(loader.batches(np.arange(20)))  # compiled
    loader._loader.code = [(hang_at_the_third, stages[0][1])], outputs
    batches = loader.batches(np.arange(200))
    next(batches)
    next(batches)
    loader._timeout = 0.8
    start = time.perf_counter()
    with pytest.raises(RunError, match=r"no batch for 0\.8 s; check the disk, or raise data\.timeout$"):
        next(batches)
    assert time.perf_counter() - start >= 0.8
    released.set()


def test_a_slow_receiver_is_no_silence(beton: Beton) -> None:
    before = threading.active_count()
    loader = BetonLoader(beton, batch_size=64, device=CPU, timeout=PATIENCE)
    batches = loader.batches(np.arange(200))
    seen = [len(next(batches).label)]
    while threading.active_count() > before:  # until the thread has read the rest ahead
        time.sleep(0.01)
    loader._timeout = 0.01
    for batch in batches:
        time.sleep(0.05)
        seen.append(len(batch.label))
    assert seen == [64, 64, 64, 8]


@pytest.mark.gpu
def test_batches_on_a_gpu(faces: Make, write: Write) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    dataset = faces(5000, shape=(1, 48, 48))
    device = torch.device("cuda", torch.cuda.current_device())
    loader = BetonLoader(open_beton(write(dataset)), batch_size=128, device=device)
    order = np.random.default_rng(0).permutation(5000)
    busy = torch.randn(4096, 4096, device=device)
    kept = []
    for batch in loader.batches(order):  # the device lags behind: nothing here waits for it
        busy = busy @ busy
        busy /= busy.abs().amax()
        kept.append((batch.image.float().mean() + 0 * busy[0, 0], batch))
    assert np.array_equal(torch.cat([batch.image for _, batch in kept]).cpu().numpy(), dataset.images[order])
    assert torch.cat([batch.index for _, batch in kept]).cpu().tolist() == order.tolist()


@pytest.mark.slow
def test_the_whole_way_at_the_size_of_fer2013(tmp_path: Path) -> None:
    """The size of FER2013, with random pixels: the whole way stays quick."""
    generator = np.random.default_rng(0)
    samples = 35_887
    dataset = FaceDataset(
        name="fer2013",
        images=generator.integers(0, 256, (samples, 1, 48, 48), dtype=np.uint8),
        labels=generator.integers(0, 7, samples),
        split=np.repeat([0, 1, 2], [28_709, 3_589, 3_589]),
        subject=no_values(samples),
        sequence=no_values(samples),
        fold=no_values(samples),
        source_id=[str(row) for row in range(samples)],
        classes=("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"),
    )
    path = write_beton(dataset, tmp_path, audit(dataset))
    beton = open_beton(path, checksum=True)
    order = generator.permutation(beton.indices("train"))
    image, _, index = joined(BetonLoader(beton, batch_size=256, device=CPU).batches(order))
    assert np.array_equal(index, order)
    assert np.array_equal(image, dataset.images[order])
