"""How large the bench is, and what it runs on."""

from __future__ import annotations

import gc
import shutil
import time
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import torch

from ferdist.bench.harness import Measure
from ferdist.config import Config, DataConfig, TrainConfig
from ferdist.data import prepare
from ferdist.data.beton import Beton, BetonLoader, open_beton
from ferdist.data.rawformats import write_fer2013_csv
from ferdist.data.record import Images, Integers
from ferdist.data.synthetic import synthesize
from ferdist.models.config import STEMS, ModelConfig
from ferdist.runtime.distributed import World
from ferdist.training.build import Setup, build

GPU_STEPS: Final = 200
"""In a measurement on a GPU, at least."""


@dataclass(frozen=True)
class Size:
    """How much of everything; the defaults are the size ``default``.

    Attributes:
        images: drawn faces, where no data are given.
        batch: samples in a step.
        rounds: of quick measurements.
        long_rounds: of those that take seconds each: steps and epochs.
        process_rounds: of those that start processes.
        repeat: what takes less than 0.2 s, until it has lasted that long.
        stems: of the networks.
        stem: where one is enough.
        compile: also measure what torch.compile makes; compiling takes most of a stage's time.
        steps: in an epoch, and in the processes of ``scale`` and ``memory``.
        scored: images that an evaluation scores.
        growth: drawn faces in each set of ``memory``, ascending.
        matrix: rows of the square matrices whose product shows the arithmetic peak.
    """

    images: int = 8000
    batch: int = 128
    rounds: int = 7
    long_rounds: int = 5
    process_rounds: int = 3
    repeat: bool = True
    stems: tuple[str, ...] = STEMS
    stem: str = ModelConfig.stem
    compile: bool = True
    steps: int = 4
    scored: int = 512
    growth: tuple[int, ...] = (500, 2000, 8000)
    matrix: int = 2048

    def on(self, device: torch.device) -> Size:
        """This size for a device: on a GPU a step takes milliseconds, and a small product is no peak."""
        if device.type != "cuda" or not self.repeat:
            return self
        return replace(self, images=max(self.images, 40_000), steps=GPU_STEPS, matrix=8192)


SIZES: Final = {
    "smallest": Size(
        images=140,
        batch=16,
        rounds=1,
        long_rounds=1,
        process_rounds=1,
        repeat=False,
        stems=("imagenet",),
        stem="imagenet",
        compile=False,
        steps=1,
        scored=16,
        growth=(70, 140),
        matrix=256,
    ),
    "default": Size(),
}


@dataclass(frozen=True)
class Bench:
    """What every stage gets.

    Attributes:
        size: how much of everything.
        device: where the tensors are.
        folder: for files; it is empty at the start and removed at the end.
        data: a beton, or None for drawn faces.
        source: a fer2013.csv, or None for drawn faces.
    """

    size: Size
    device: torch.device
    folder: Path
    data: Path | None = None
    source: Path | None = None

    @cached_property
    def csv(self) -> Path:
        """A fer2013.csv."""
        return self.source or write_fer2013_csv(synthesize(self.size.images), self.folder / "fer2013.csv")

    @cached_property
    def beton(self) -> Beton:
        """An opened beton."""
        return open_beton(self.data or prepare.fer2013(self.csv, self.folder / "beton"))

    def config(
        self, stem: str | None = None, *, compile: bool = False, path: Path | None = None, batch: int = 0
    ) -> Config:
        """A run as users start it, on this bench's data or another beton without folds."""
        fold = 0 if path is None and "train" not in self.beton.manifest.splits else None
        return Config(
            data=DataConfig(
                path=str(path or self.beton.path), fold=fold, batch_size=batch or self.size.batch
            ),
            model=ModelConfig(stem=stem or self.size.stem),
            train=TrainConfig(epochs=1000, compile=compile),
            device=self.device.type,
        )

    def setup(self, config: Config, samples: int | None = None) -> Setup:
        """What this process, alone, trains with."""
        return build(config, self.beton, World(0, 1, 0, self.device), samples=samples)

    def images(self, indices: Integers) -> tuple[Images, Integers]:
        """Samples as arrays in memory: images uint8 (M, C, H, W), labels int64 (M,)."""
        loader = BetonLoader(self.beton, batch_size=256, device=torch.device("cpu"))
        parts = list(loader.batches(indices))
        images, labels = (torch.cat([getattr(p, field) for p in parts]) for field in ("image", "label"))
        return images.numpy(), labels.numpy()

    def kinds(self) -> Iterator[tuple[bool, str]]:
        """Whether to compile, for each measurement of the same work, and what to call it."""
        for compiled in (False, True) if self.size.compile else (False,):
            torch._dynamo.reset()  # it refuses to compile one function for many networks
            yield compiled, "compiled" if compiled else "eager"

    def seconds(self, call: Callable[[], object]) -> Measure:
        """Seconds that a call takes, the device's work included: the mean over one or more calls.

        The first measurement runs the call once, to warm up, and then finds how many calls last 0.2 s.
        """
        timer, calls = timeit.Timer(call, gc.enable, self._clock), 0

        def measure() -> float:
            nonlocal calls
            if calls:
                return timer.timeit(calls) / calls
            call()
            calls, seconds = timer.autorange() if self.size.repeat else (1, timer.timeit(1))
            if self.size.repeat and self.device.type == "cuda" and seconds < 0.1 * calls:
                calls = max(calls, GPU_STEPS)
            return seconds / calls

        return measure

    def rate(self, call: Callable[[], object], images: int) -> Measure:
        """Images per second of a call that handles so many images."""
        seconds = self.seconds(call)
        return lambda: images / seconds()

    def fresh_folder(self, name: str) -> Path:
        """An empty folder."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
