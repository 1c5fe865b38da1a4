from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ferdist.data.beton import Batch, Beton, BetonLoader, open_beton
from ferdist.data.beton import loader as loader_module
from ferdist.data.beton.layout import Layout
from ferdist.data.beton.loader import _Epoch
from ferdist.errors import DataError, RunError
from tests.conftest import PATIENCE
from tests.data.beton import Make, Write
from tests.data.files import refused

CPU = torch.device("cpu")


def joined(batches: Iterator[Batch]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kept = list(batches)
    return tuple(  # type: ignore[return-value]
        torch.cat([getattr(batch, name) for batch in kept]).numpy() for name in ("image", "label", "index")
    )


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
    "empty": np.array([], dtype=np.int64),
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
        if not batches:
            continue
        image, label, index = joined(iter(batches))
        assert (image.dtype, label.dtype, index.dtype) == (np.uint8, np.int64, np.int64)
        assert np.array_equal(index, order)
        assert np.array_equal(label, dataset.labels[order])
        assert np.array_equal(image, dataset.images[order])


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
        order[:] = 0  # so is the order
    order = np.arange(200)
    image, label, _ = joined(loader.batches(order))
    assert np.array_equal(image, dataset.images)
    assert np.array_equal(label, dataset.labels)


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


def test_images_of_a_large_file_are_asked_for_before_they_are_read(
    faces: Make, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "LARGE", 0)
    dataset = faces(50)
    beton = open_beton(write(dataset))
    asked: list[np.ndarray] = []
    ask = loader_module._ReadAhead.__call__
    monkeypatch.setattr(
        loader_module._ReadAhead, "__call__", lambda self, part: (asked.append(part), ask(self, part))
    )
    order = np.random.default_rng(0).permutation(50)
    batches = list(BetonLoader(beton, batch_size=8, device=torch.device("cpu")).batches(order))
    assert np.array_equal(np.concatenate([batch.index for batch in batches]), order)
    assert np.array_equal(np.concatenate([batch.image for batch in batches]), dataset.images[order])
    assert np.array_equal(np.concatenate(asked), order)


def test_what_is_asked_for_is_the_pages_of_the_images(faces: Make, write: Write) -> None:
    beton = open_beton(write(faces(50)))
    compiled = loader_module._compiled_loader(beton.path, beton.file, 1)
    asked: list[tuple[int, int]] = []
    mapped = SimpleNamespace(
        _mmap=SimpleNamespace(madvise=lambda advice, *pages: asked.append(pages) if pages else None)
    )
    loader_module._ReadAhead(mapped, compiled.reader)(np.array([3, 0]))
    layout = Layout(beton.manifest.image_shape, 50)
    pointers, size = layout.pointers(), layout.image_bytes
    for (first, count), number in zip(asked, (3, 0), strict=True):
        start = int(pointers[number])
        assert first % mmap.PAGESIZE == 0
        assert start - mmap.PAGESIZE < first <= start
        assert first + count == start + size


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


def test_a_file_replaced_during_training_is_still_read_and_not_opened_again(
    faces: Make, write: Write, beton: Beton, loader: BetonLoader
) -> None:
    dataset = faces(200)
    write(faces(200, seed=1))
    image, label, _ = joined(loader.batches(np.arange(200)))
    assert np.array_equal(image, dataset.images)
    assert np.array_equal(label, dataset.labels)
    with pytest.raises(DataError, match="replaced or removed since it was opened"):
        BetonLoader(beton, batch_size=16, device=CPU)


def test_a_file_of_the_same_codes_is_another_file(faces: Make, write: Write, beton: Beton) -> None:
    """Other pixels; and the same file, changed in place without a trace in its times."""
    write(replace(faces(200), images=255 - faces(200).images))
    with refused("replaced or removed since it was opened"):
        BetonLoader(beton, batch_size=16, device=CPU)
    beton = open_beton(beton.path)
    layout, before = Layout((1, 12, 10), 200), beton.path.stat()
    for position in (layout.records_at, layout.table_at + 8):  # the first image's pointer, twice
        with beton.path.open("r+b") as file:
            file.seek(position)
            pointer = file.read(8)
            file.seek(position)
            file.write((int.from_bytes(pointer, "little") + 120).to_bytes(8, "little"))
            file.flush()
            os.utime(file.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
            with refused("replaced or removed since it was opened"):
                BetonLoader(beton, batch_size=16, device=CPU)
            loader_module._compiled_loader.cache_clear()
            file.seek(position)
            file.write(pointer)
            file.flush()
            os.utime(file.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
    BetonLoader(beton, batch_size=16, device=CPU)


# The guard


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
