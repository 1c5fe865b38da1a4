"""Open a verified beton and read batches of it in a given order."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full
from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.fields.ndarray import NDArrayDecoder
from ffcv.loader import Loader
from ffcv.loader.epoch_iterator import EpochIterator
from torch import Tensor

from ferdist.data.beton.manifest import Manifest, count_folds, count_splits, read_samples
from ferdist.data.beton.writer import CODES, read_records
from ferdist.data.folds import HOLDOUT, Holdout
from ferdist.data.record import SPLITS, Integers
from ferdist.errors import ConfigError, DataError, RunError
from ferdist.io import sha256

_POLL_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 1.0
_PAIR: Final = "copy the .json and .samples.csv that belong to it, or run `ferdist prepare` again"


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


@dataclass(frozen=True)
class Beton:
    """An opened and verified beton.

    Attributes:
        path: the beton.
        manifest: its manifest.
        samples: ``X.samples.csv``, one row per index (see ``manifest.read_samples`` for the types).
        label: int64 (N,), 0 to K-1.
        split: int64 (N,), index into ``SPLITS`` or -1.
        subject: int64 (N,), person or -1.
        fold: int64 (N,), fold in which the sample is held out or -1.
        sequence: int64 (N,), number of the video sequence, counted in order of appearance, or -1.
        copy_group: int64 (N,), smallest index with exactly the same pixels.
    """

    path: Path
    manifest: Manifest
    samples: pd.DataFrame
    label: Integers
    split: Integers
    subject: Integers
    fold: Integers
    sequence: Integers
    copy_group: Integers

    def indices(self, split: str, holdout: Holdout = Holdout()) -> Integers:
        """The samples of a split, ascending.

        Args:
            split: "train", "val" or "test"; or "holdout", the part of train that a ``val_share`` leaves out.
            holdout: what is left out of train; by default the beton's splits say. Where a fold is held out,
                samples without a fold are in neither train nor val.

        Returns:
            int64 (M,), M > 0.

        Raises:
            DataError: if there is no such split or fold, or no sample in it.
        """
        if split not in (*SPLITS, HOLDOUT):
            raise DataError(f"{self.path}: there is no split {split!r}; choose one of {', '.join(SPLITS)}")
        fold = holdout.fold
        if fold is None and split == HOLDOUT:
            chosen = self._held_out(holdout.val_share)
        elif fold is None:
            chosen = self.split == SPLITS.index(split)
            if split == "train" and holdout.val_share:
                chosen &= ~self._held_out(holdout.val_share)
        elif split in ("test", HOLDOUT):
            raise DataError(f"{self.path}: fold {fold} has no {split} split; it has train and val")
        else:
            self._check_folds(holdout)
            if split == "val":
                chosen = self.fold == holdout.scored_fold
            else:
                chosen = (self.fold >= 0) & ~np.isin(self.fold, holdout.folds)
        indices: Integers = np.flatnonzero(chosen).astype(np.int64)
        if len(indices) == 0:
            place = "" if fold is None else f" beside fold {fold}"
            raise DataError(f"{self.path}: there is no {split} sample{place}; it has {self._parts()}")
        return indices

    def _held_out(self, share: float) -> npt.NDArray[np.bool_]:
        """Which samples belong to the part of the train split that is held out."""
        train = self.split == SPLITS.index("train")
        with_subjects = train.any() and (self.subject[train] >= 0).all()
        group = self.subject if with_subjects else self.copy_group
        names, sizes = np.unique(group[train], return_counts=True)
        order = np.random.default_rng(0).permutation(len(names))
        before = np.cumsum(sizes[order]) - sizes[order]
        drawn = names[order[before < share * sizes.sum()]]
        held_out: npt.NDArray[np.bool_] = train & np.isin(group, drawn)
        return held_out

    def normalisation(self, holdout: Holdout = Holdout()) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the training pixels, per channel, in units where 255 is 1.

        Args:
            holdout: the folds to leave out; without any, the pixels are those of the whole train split, or of
                all samples where there is no split.

        Returns:
            Mean and standard deviation, C numbers each, the latter above 0.

        Raises:
            DataError: if there is no such fold or no training sample, or all training pixels are the same.
        """
        statistics = self.manifest.statistics
        self._check_folds(holdout)
        if holdout.fold is None:
            moments = statistics.get("train") or statistics.get("all")
        elif holdout.inner_fold is None:
            moments = statistics["without_fold"].get(str(holdout.fold))
        else:
            moments = self.manifest.moments_without(*holdout.folds)
        if moments is None:
            raise DataError(f"{self.path}: there is no train sample to normalise by; it has {self._parts()}")
        if min(moments["std"]) <= 0:
            raise DataError(f"{self.path}: all training pixels of a channel are the same; check the raw data")
        return list(moments["mean"]), list(moments["std"])

    def _check_folds(self, holdout: Holdout) -> None:
        for fold in holdout.folds:
            if str(fold) not in self.manifest.folds:
                raise DataError(f"{self.path}: there is no fold {fold}; it has {self._parts()}")

    def _parts(self) -> str:
        splits = [f"{name} ({counts['samples']})" for name, counts in self.manifest.splits.items()]
        folds = sorted(map(int, self.manifest.folds))
        parts = [f"the splits {', '.join(splits)}"] if splits else ["no splits"]
        parts += [f"the folds {', '.join(map(str, folds))}"] if folds else ["no folds"]
        return " and ".join(parts)


def open_beton(path: Path, *, checksum: bool = False) -> Beton:
    """Open a beton after checking it against its manifest and table of samples.

    Every opening checks the size, FFCV's header, fields, records and allocation table, the table of samples
    (by checksum and row by row) and all counts. Only the checksum finds changed pixels.

    Args:
        path: ``X.beton``, with ``X.json`` and ``X.samples.csv`` beside it.
        checksum: also compare the sha256 of the whole file with the manifest's.

    Raises:
        DataError: if one of the three is missing, damaged, or belongs to another set.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: this is a folder; give the .beton file in it")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; make it with `ferdist prepare`")
    if path.suffix != ".beton":
        raise DataError(f"{path}: not the name of a beton; give the file that ends in .beton")
    manifest_path, samples_path = path.with_suffix(".json"), path.with_suffix(".samples.csv")
    if not manifest_path.is_file():
        raise DataError(f"{path}: its manifest {manifest_path.name} is not beside it; {_PAIR}")
    manifest = Manifest.load(manifest_path)
    size = path.stat().st_size
    if size != manifest.bytes:
        raise DataError(
            f"{path}: {size} bytes instead of {manifest.bytes}: truncated, or of another set; {_PAIR}"
        )
    if checksum and _checksum(path) != manifest.sha256:
        raise DataError(f"{path}: its sha256 is not the manifest's: damaged, or of another set; {_PAIR}")
    records = read_records(path, manifest.image_shape, manifest.samples)
    codes = {name: np.ascontiguousarray(records[name], dtype=np.int64) for name in CODES}
    if not samples_path.is_file():
        raise DataError(f"{path}: its table {samples_path.name} is not beside it; {_PAIR}")
    if _checksum(samples_path) != manifest.samples_sha256:
        raise DataError(
            f"{samples_path}: its sha256 is not the manifest's: edited, or of another set; {_PAIR}"
        )
    samples = read_samples(samples_path)
    _check_agreement(path, manifest, samples, codes)
    return Beton(
        path=path,
        manifest=manifest,
        samples=samples,
        label=codes["label"],
        split=codes["split"],
        subject=codes["subject"],
        fold=codes["fold"],
        sequence=_numbered(samples["sequence"], ""),
        copy_group=samples["copy_group"].to_numpy(dtype=np.int64),
    )


class BetonLoader:
    """Batches of a beton in any order, read ahead by a thread.

    FFCV copies the pixels out of the mapped file; the thread then gives each batch memory of its own, so
    nothing is overwritten later. FFCV alone waits for ever when its thread dies; here that is an error.

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
        wait_seconds: time spent waiting for batches in the latest call of ``batches``.

    Raises:
        ConfigError: if batch_size, workers or timeout is not positive.
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
        for name, value in (("batch_size", batch_size), ("workers", workers), ("timeout", timeout)):
            if value <= 0:
                raise ConfigError(f"data.{name} must be above 0, not {value}")
        self.wait_seconds = 0.0
        self.path, self.device, self.batch_size = beton.path, device, batch_size
        self.image_shape = beton.manifest.image_shape
        self._beton = beton
        self._device = device
        self._timeout = timeout
        self._loader = _ffcv_loader(beton.path, batch_size, workers)
        records = self._loader.reader.metadata
        if not all(
            np.array_equal(records[f"f{1 + CODES.index(name)}"], getattr(beton, name)) for name in CODES[:4]
        ):
            raise DataError(f"{beton.path}: the file has been replaced since it was opened; start again")
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def batches(self, order: Integers) -> Iterator[Batch]:
        """Read exactly these samples in this order.

        Args:
            order: int64 (M,), indices of samples; repeats are allowed, M may be 0.

        Returns:
            ceil(M / batch_size) batches; the last may be short. Closing the iterator, or dropping it, stops
            the thread.

        Raises:
            RunError: at once if the order is no list of sample numbers; while iterating, if the thread died
                or gave nothing for ``timeout`` seconds.
        """
        order = np.asarray(order)
        if order.ndim != 1 or (order.size and order.dtype.kind not in "iu"):
            raise RunError(f"{self._beton.path}: an order must be a list of whole numbers, not {order.dtype}")
        samples = len(self._beton.label)
        if order.size and not 0 <= int(order.min()) <= int(order.max()) < samples:
            outside = order.min() if order.min() < 0 else order.max()
            raise RunError(f"{self._beton.path}: an order has index {outside}, outside 0..{samples - 1}")
        return self._read(order.astype(np.int64))  # a copy: the caller may change theirs

    def _read(self, order: Integers) -> Iterator[Batch]:
        self.wait_seconds = 0.0
        if not len(order):
            return
        epoch = _Epoch(self._loader, order, self._device, self._copies)
        try:
            for _ in range(-(-len(order) // self._loader.batch_size)):
                start = time.perf_counter()
                batch = epoch.take(self._timeout)
                self.wait_seconds += time.perf_counter() - start
                yield batch
        finally:
            epoch.stop()


class DeviceCache:
    """The same batches as `BetonLoader`, from samples that lie on the device.

    The samples are read once, by FFCV, and then picked by index: for sets that fit (80 MB for FER2013) and
    devices so quick that even FFCV's thread is felt.

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
        if order.size and not 0 <= int(order.min()) <= int(order.max()) < len(self._row):
            raise RunError(f"{self._path}: an order has an index that is not in the cache")
        rows = self._row[order]
        if (rows < 0).any():
            raise RunError(f"{self._path}: sample {order[rows < 0][0]} is not in the cache")
        return self._read(torch.from_numpy(rows), torch.from_numpy(order))

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


CACHE_BYTES: Final = 512 * 2**20
"""What ``data.cache=auto`` keeps on the device at most, for each loader: FER2013's Training takes 66 MB."""


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
    """FFCV's reading thread, with another loop around its pipeline.

    FFCV's own loop sets torch's number of threads for the whole process, cannot be stopped while its queue is
    full, is silent about an exception, and gives out views of a ring of buffers that it fills again. On a GPU
    it may fill one whose copy to the device is still waiting behind the network's kernels. Here a batch is
    copied, on the GPU by a stream that waits for nothing else, before its buffer is used again.
    """

    def __init__(
        self, loader: Any, order: Integers, device: torch.device, copies: torch.cuda.Stream | None
    ) -> None:
        self._device = device
        self._copies = copies
        self._failure: BaseException | None = None
        super().__init__(loader, order)  # allocates the buffers and starts the thread

    def run(self) -> None:
        try:
            slots = self.loader.batches_ahead + 2
            for number, indices in enumerate(self.iter_ixes):
                views = self.run_pipeline(number, indices, number % slots, None)
                if not self._give(self._copied(views)):
                    return
        except BaseException as error:
            self._failure = error

    def _copied(self, views: Sequence[npt.NDArray[Any]]) -> Batch:
        image, label, index = views
        arrays = (image, label.reshape(-1), index.reshape(-1))
        if self._copies is None:
            tensors = [torch.from_numpy(array.copy()).to(self._device) for array in arrays]
        else:
            with torch.cuda.stream(self._copies):
                tensors = [torch.from_numpy(array).to(self._device, non_blocking=True) for array in arrays]
            self._copies.synchronize()
        return Batch(*tensors)

    def _give(self, batch: Batch) -> bool:
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(batch, timeout=_POLL_SECONDS)
            except Full:
                continue
            return True
        return False

    def take(self, timeout: float) -> Batch:
        """Wait for the next batch."""
        deadline = time.monotonic() + timeout
        while True:
            alive = (
                self.is_alive()
            )  # asked before the queue, so that the last batch of a dead thread is not lost
            try:
                patience = min(_POLL_SECONDS, max(deadline - time.monotonic(), 0.0)) if alive else 0.0
                batch: Batch = self.output_queue.get(timeout=patience)
            except Empty:
                if not alive:
                    raise RunError(
                        f"{self.loader.fname}: the loader's thread died: {_one_line(self._failure)}"
                    ) from self._failure
                if time.monotonic() >= deadline:
                    fault = f"no batch for {timeout:g} s; check the disk, or raise data.timeout"
                    raise RunError(f"{self.loader.fname}: {fault}") from None
                continue
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


def _ffcv_loader(path: Path, batch_size: int, workers: int) -> Any:
    """FFCV's loader for image, label and index."""
    file = path.stat()
    identity = (file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns)
    loader = copy.copy(_compiled_loader(path, identity, workers))
    loader.batch_size = batch_size  # read by each epoch; what FFCV compiles does not depend on it
    return loader


@functools.lru_cache(maxsize=4)
def _compiled_loader(path: Path, identity: tuple[int, ...], workers: int) -> Any:
    """One loader for each file and process: FFCV compiles for each one anew, which takes a second.

    The process's numbers of threads stay as they are.
    """
    pipelines: dict[str, list[Any] | None] = dict.fromkeys(CODES)
    pipelines |= {"image": [NDArrayDecoder()], "label": [IntDecoder()], "index": [IntDecoder()]}
    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        loader = Loader(
            str(path),
            batch_size=1,  # of each copy, see above
            num_workers=min(workers, numba_threads),  # numba refuses more than it has
            os_cache=True,
            seed=0,  # without one FFCV draws from numpy's global generator
            drop_last=False,
            pipelines=pipelines,
        )
        # FFCV maps the file at the first epoch: map it now, before another can take its name.
        loader.memory_manager.schedule_epoch([]).__enter__()
        return loader
    finally:
        torch.set_num_threads(torch_threads)
        numba.set_num_threads(numba_threads)


def _checksum(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot read it: {error.strerror}") from error


def _check_agreement(
    path: Path, manifest: Manifest, samples: pd.DataFrame, codes: dict[str, Integers]
) -> None:
    """Compare a beton's codes with its manifest's counts and the rows of its table."""
    if len(samples) != manifest.samples:
        raise DataError(f"{path}: its table has {len(samples)} rows for {manifest.samples} samples; {_PAIR}")
    label, split, fold = codes["label"], codes["split"], codes["fold"]
    classes = len(manifest.classes)
    if label.min() < 0 or label.max() >= classes or split.min() < -1 or split.max() >= len(SPLITS):
        raise DataError(f"{path}: it has a label or split that the manifest does not know; {_PAIR}")
    subjects = samples["subject"].to_numpy(dtype=object)
    if (
        count_splits(label, split, classes) != manifest.splits
        or count_folds(label, fold, subjects, classes) != manifest.folds
    ):
        raise DataError(f"{path}: its counts per split, fold or class are not the manifest's; {_PAIR}")
    copy_group = samples["copy_group"].to_numpy()
    agreement = {
        "index": samples["index"].to_numpy() == codes["index"],
        "label": samples["label"].to_numpy() == label,
        "split": samples["split"].to_numpy(dtype=object) == np.array([*SPLITS, ""], dtype=object)[split],
        "subject": _numbered(samples["subject"], "") == _numbered(pd.Series(codes["subject"]), -1),
        "fold": samples["fold"].fillna(-1).to_numpy(dtype=np.int64) == fold,
        "copy_group": (copy_group >= 0) & (copy_group <= codes["index"]),
    }
    for column, equal in agreement.items():
        if not equal.all():
            raise DataError(f"{path}: row {int(equal.argmin())} of its table has another {column}; {_PAIR}")


def _numbered(values: pd.Series, none: object) -> Integers:
    """Number the values in order of appearance, and ``none`` as -1."""
    numbers, _ = pd.factorize(values.mask(values == none))
    return np.asarray(numbers, dtype=np.int64)


def _one_line(error: BaseException | None) -> str:
    if error is None:
        return "without a word"
    return " ".join(f"{type(error).__name__}: {error}".split())
