"""Batches of an opened beton in a given order: by FFCV's thread, or from the device's memory."""

from __future__ import annotations

import copy
import functools
import math
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full
from typing import Any, Final
from unittest import mock

import numba
import numpy as np
import numpy.typing as npt
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.fields.ndarray import NDArrayDecoder
from ffcv.loader import Loader, epoch_iterator
from ffcv.loader.epoch_iterator import EpochIterator
from torch import Tensor

from ferdist.data.beton.files import Identity, identity, open_part
from ferdist.data.beton.layout import CODES, Layout
from ferdist.data.beton.opened import Beton
from ferdist.data.record import Integers
from ferdist.errors import DataError, RunError

LARGE: Final = 2**30
"""Bytes of a beton from which images are asked for before they are read: memory may not hold it."""
CACHE_BYTES: Final = 512 * 2**20
"""What ``data.cache=auto`` keeps on the device at most, for each loader: FER2013's Training takes 66 MB."""

epoch_iterator.IS_CUDA = False  # FFCV's own streams: `_Epoch` has its own, and a loader on the CPU needs none

_POLL_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Batch:
    """A batch of samples on the loader's device; the tensors are the receiver's own.

    Attributes:
        image: uint8 (B, C, H, W), 0-255.
        label: int64 (B,), class number.
        index: int64 (B,), the samples' numbers in the beton.
    """

    image: Tensor
    label: Tensor
    index: Tensor


class BetonLoader:
    """Batches of a beton in any order, read ahead by a thread.

    Args:
        beton: an opened beton. The file must not be changed in place while the loader is in use.
        batch_size: samples per batch.
        device: where the batches go.
        workers: FFCV's number of workers. Pixels that are not compressed take one thread whatever it is.
        timeout: seconds after which a thread that lives but gives nothing is an error.

    Attributes:
        path: of the beton.
        device: where the batches go.
        batch_size: samples per batch.
        image_shape: (C, H, W).

    Raises:
        DataError: if the file is no longer the one that was opened.
    """

    def __init__(
        self,
        beton: Beton,
        *,
        batch_size: int,
        device: torch.device,
        workers: int = 1,
        timeout: float = 300.0,
    ) -> None:
        self.path, self.device, self.batch_size = beton.path, device, batch_size
        self.image_shape = beton.manifest.image_shape
        self._samples, self._timeout = len(beton.label), timeout
        self._loader = _ffcv_loader(beton, batch_size, workers)
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def batches(self, order: Integers) -> Iterator[Batch]:
        """Read exactly these samples in this order.

        Args:
            order: int64 (M,), indices of samples; repeats are allowed, M may be 0.

        Returns:
            ceil(M / batch_size) batches; the last may be short. Closing the iterator, or dropping it, stops
            the thread.

        Raises:
            RunError: at once if the order is not a list of sample numbers, as FFCV would read other memory;
                while iterating, if the thread died or gave nothing for ``timeout`` seconds.
        """
        order = np.asarray(order)
        if order.ndim != 1 or (order.size and order.dtype.kind not in "iu"):
            raise RunError(f"{self.path}: an order must be a list of integers, not {order.dtype}")
        if order.size and not 0 <= int(order.min()) <= int(order.max()) < self._samples:
            outside = order.min() if order.min() < 0 else order.max()
            raise RunError(f"{self.path}: an order has index {outside}, outside 0..{self._samples - 1}")
        return self._read(order.astype(np.int64))  # a copy: the caller may change theirs

    def _read(self, order: Integers) -> Iterator[Batch]:
        if not len(order):
            return
        epoch = _Epoch(self._loader, order, self.device, self._copies)
        try:
            for _ in range(-(-len(order) // self.batch_size)):
                yield epoch.take(self._timeout)
        finally:
            epoch.stop()


class DeviceCache:
    """The same batches as `BetonLoader`, from samples that lie on the device.

    The samples are read once, by FFCV, and then picked by index: no thread, no copy to the device.

    Args:
        loader: reads the samples.
        samples: int64 (M,), the samples that will be asked for.
    """

    def __init__(self, loader: BetonLoader, samples: Integers) -> None:
        self._path, self._device, self._batch_size = loader.path, loader.device, loader.batch_size
        samples = np.sort(samples)
        parts = list(loader.batches(samples))
        self._images = torch.cat([batch.image for batch in parts])
        self._labels = torch.cat([batch.label for batch in parts])
        self._row = np.full(int(samples[-1]) + 1, -1, dtype=np.int64)
        self._row[samples] = np.arange(len(samples))

    def batches(self, order: Integers) -> Iterator[Batch]:
        """As `BetonLoader.batches`.

        Raises:
            RunError: at once if a sample is asked for that was not read.
        """
        order = np.asarray(order, dtype=np.int64)
        known = (order >= 0) & (order < len(self._row))
        known[known] = self._row[order[known]] >= 0
        if not known.all():
            raise RunError(f"{self._path}: sample {order[~known][0]} is not in the cache")
        return self._read(torch.from_numpy(self._row[order]), torch.from_numpy(order))

    def _read(self, rows: Tensor, order: Tensor) -> Iterator[Batch]:
        # One copy to the device for the whole order; the batches are picked there.
        rows, order = rows.to(self._device), order.to(self._device)
        for start in range(0, len(rows), self._batch_size):
            chosen = rows[start : start + self._batch_size]
            yield Batch(
                self._images.index_select(0, chosen),
                self._labels.index_select(0, chosen),
                order[start : start + self._batch_size],
            )


def cached(loader: BetonLoader, samples: Integers, cache: str) -> BetonLoader | DeviceCache:
    """What ``data.cache`` asks for: the loader itself, or its samples on the device.

    Args:
        loader: reads the samples.
        samples: int64 (M,), all that will be asked for.
        cache: ``none``, ``device``, or ``auto`` for ``device`` where the pixels fit ``CACHE_BYTES``.
    """
    fits = len(samples) * math.prod(loader.image_shape) <= CACHE_BYTES
    return DeviceCache(loader, samples) if cache == "device" or (cache == "auto" and fits) else loader


class _Epoch(EpochIterator):  # type: ignore[misc]  # FFCV has no types
    """FFCV's reading thread and compiled pipeline, with a loop of our own around it.

    FFCV's own loop sets torch's number of threads for the whole process, cannot be stopped while its queue is
    full, leaves the consumer waiting forever after an exception, and gives out views of a ring of buffers
    that it fills again: on a GPU even while a copy from there still waits behind the network's kernels. Here
    a batch is copied, on the GPU by a stream that waits for nothing else, before its buffer is used again.
    """

    def __init__(
        self, loader: Any, order: Integers, device: torch.device, copies: torch.cuda.Stream | None
    ) -> None:
        self._device = device
        self._copies = copies
        self._failure: BaseException | None = None
        with nullcontext() if device.type == "cuda" else _unpinned():
            super().__init__(loader, order)  # allocates the buffers and starts the thread

    def run(self) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(
                    self._device
                )  # a new thread starts on GPU 0, and would take memory there
            slots, ask = self.loader.batches_ahead + 2, self.loader.ask_for
            parts = list(self.iter_ixes)
            for number, indices in enumerate(parts):
                if ask is not None:
                    for coming in parts[:2] if number == 0 else parts[number + 1 : number + 2]:
                        ask(coming)
                batch = self._copied(self.run_pipeline(number, indices, number % slots, None))
                while not self.terminate_event.is_set():
                    try:
                        self.output_queue.put(batch, timeout=_POLL_SECONDS)
                        break
                    except Full:
                        continue
                else:
                    return
        except BaseException as error:
            self._failure = error

    def _copied(self, views: Sequence[npt.NDArray[Any]]) -> Batch:
        image, label, index = views
        arrays = (image, label.reshape(-1), index.reshape(-1))
        if self._copies is None:
            return Batch(*(torch.from_numpy(array.copy()).to(self._device) for array in arrays))
        with torch.cuda.stream(self._copies):
            batch = Batch(*(torch.from_numpy(array).to(self._device, non_blocking=True) for array in arrays))
        self._copies.synchronize()
        return batch

    def take(self, timeout: float) -> Batch:
        """Wait for the next batch."""
        deadline = time.monotonic() + timeout
        while True:
            alive = self.is_alive()  # asked before the queue: the last batch of a dead thread is not lost
            try:
                patience = min(_POLL_SECONDS, max(deadline - time.monotonic(), 0.0)) if alive else 0.0
                batch: Batch = self.output_queue.get(timeout=patience)
                break
            except Empty:
                if not alive:
                    failure = self._failure
                    reason = " ".join(f"{type(failure).__name__}: {failure}".split())
                    raise RunError(f"{self.loader.fname}: the loader's thread died: {reason}") from failure
                if time.monotonic() >= deadline:
                    fault = f"no batch for {timeout:g} s; check the disk, or raise data.timeout"
                    raise RunError(f"{self.loader.fname}: {fault}") from None
        if self._copies is not None:
            for tensor in (batch.image, batch.label, batch.index):
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return batch

    def stop(self) -> None:
        """End the thread; one that hangs inside a read is left behind."""
        self.close()
        while not self.output_queue.empty():  # a full queue would hold the thread up
            self.output_queue.get_nowait()
        self.join(_STOP_SECONDS)


class _ReadAhead:
    """Asks the system for the images of a batch, to be there once the batch is read.

    Otherwise each page of a file that the memory does not hold is waited for; and where it is told to read
    far ahead, as for disks of many GB a second, that is megabytes for each image.

    Args:
        mapped: the file's bytes.
        reader: FFCV's, of that file.
    """

    def __init__(self, mapped: Any, reader: Any) -> None:
        self._map = mapped._mmap
        start, size = (reader.alloc_table[key].astype(np.int64) for key in ("ptr", "size"))
        self._first = start // mmap.PAGESIZE * mmap.PAGESIZE
        self._bytes = start + size - self._first
        self._map.madvise(mmap.MADV_RANDOM)

    def __call__(self, samples: Integers) -> None:
        for first, count in zip(self._first[samples].tolist(), self._bytes[samples].tolist(), strict=True):
            self._map.madvise(mmap.MADV_WILLNEED, first, count)


@contextmanager
def _unpinned() -> Iterator[None]:
    """FFCV pins its buffers wherever it can: on a host with GPUs that would open a context on one of them."""
    with mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor):
        yield


def _ffcv_loader(beton: Beton, batch_size: int, workers: int) -> Any:
    """FFCV's loader for image, label and index."""
    with _opened(beton.path, beton.file):
        loader = copy.copy(_compiled_loader(beton.path, beton.file, workers))
    reader, layout = loader.reader, Layout(beton.manifest.image_shape, len(beton.label))
    columns = {"image": layout.pointers(), **{name: getattr(beton, name) for name in CODES[:4]}}
    if reader.alloc_table.tobytes() != layout.table() or not all(
        np.array_equal(reader.metadata[f"f{number}"], values)
        for number, values in enumerate(columns.values())
    ):
        raise _replaced(beton.path)
    loader.batch_size = batch_size  # read by each epoch; what FFCV compiles does not depend on it
    return loader


@contextmanager
def _opened(path: Path, file: Identity) -> Iterator[int]:
    """The descriptor of this very file, whatever has its name later."""
    try:
        with open_part(path, ".beton") as beton:
            if identity(os.fstat(beton.fileno())) != file:
                raise _replaced(path)
            yield beton.fileno()
    except FileNotFoundError:
        raise _replaced(path) from None


def _replaced(path: Path) -> DataError:
    return DataError(f"{path}: the file has been replaced or removed since it was opened; start again")


@functools.lru_cache(maxsize=4)
def _compiled_loader(path: Path, file: Identity, workers: int) -> Any:
    """One loader for each file and process: FFCV compiles for each one anew, which takes a second.

    FFCV sets the process's numbers of threads; they are put back.
    """
    pipelines: dict[str, list[Any] | None] = dict.fromkeys(CODES)
    pipelines |= {"image": [NDArrayDecoder()], "label": [IntDecoder()], "index": [IntDecoder()]}
    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        with _opened(path, file) as descriptor:
            loader = Loader(
                f"/proc/self/fd/{descriptor}",
                batch_size=1,  # of each copy, see above
                num_workers=min(workers, numba_threads),  # numba refuses more than it has
                os_cache=True,
                seed=0,  # without one FFCV draws from numpy's global generator
                drop_last=False,
                pipelines=pipelines,
            )
            context = loader.memory_manager.schedule_epoch([])
            context.__enter__()  # maps the file, else at the first epoch
            large = context.mmap.nbytes >= LARGE
            loader.ask_for = _ReadAhead(context.mmap, loader.reader) if large else None
        loader.fname = str(path)
        return loader
    finally:
        torch.set_num_threads(torch_threads)
        numba.set_num_threads(numba_threads)
