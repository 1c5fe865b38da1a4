"""How large the bench is, and what it runs on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import torch

from ferdist.config import Config, DataConfig, TrainConfig
from ferdist.data import prepare
from ferdist.data.beton import Beton, open_beton
from ferdist.data.rawformats import write_fer2013_csv
from ferdist.data.synthetic import synthesize
from ferdist.errors import ConfigError
from ferdist.models.config import STEMS, ModelConfig


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        images: drawn faces, where no data are given.
        batch: samples in a step.
        rounds: of quick measurements.
        long_rounds: of those that take seconds each: steps and epochs.
        process_rounds: of those that start processes.
        seconds: that a quick measurement lasts at least.
        stems: of the networks.
        compile: also measure what torch.compile makes; compiling takes most of a stage's time.
        steps: in an epoch, and in the processes of ``scale`` and ``memory``.
        scored: images that an evaluation scores.
        growth: drawn faces in the smallest set of ``memory``.
        multiples: of it in the others, ascending from 1.
        matrix: rows of the square matrices whose product shows the arithmetic peak.
    """

    images: int
    batch: int
    rounds: int
    long_rounds: int
    process_rounds: int
    seconds: float
    stems: tuple[str, ...]
    compile: bool
    steps: int
    scored: int
    growth: int
    multiples: tuple[int, ...]
    matrix: int

    @property
    def stem(self) -> str:
        """Where one is enough: the configs' default."""
        return ModelConfig.stem if ModelConfig.stem in self.stems else self.stems[0]


SIZES: Final = {
    "smallest": Size(
        images=140,
        batch=16,
        rounds=1,
        long_rounds=1,
        process_rounds=1,
        seconds=0.0,
        stems=("imagenet",),
        compile=False,
        steps=1,
        scored=16,
        growth=70,
        multiples=(1, 2),
        matrix=256,
    ),
    "default": Size(
        images=8000,
        batch=128,
        rounds=7,
        long_rounds=5,
        process_rounds=3,
        seconds=0.2,
        stems=STEMS,
        compile=True,
        steps=4,
        scored=512,
        growth=500,
        multiples=(1, 4, 16),
        matrix=2048,
    ),
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
        if self.source is not None:
            return self.source
        return write_fer2013_csv(synthesize(self.size.images), self.folder / "fer2013.csv")

    @cached_property
    def beton(self) -> Beton:
        """An opened beton."""
        if self.data is not None:
            return open_beton(self.data)
        return open_beton(prepare.fer2013(self.csv, self.folder / "beton"))

    @cached_property
    def fold(self) -> int | None:
        """The fold that is held out where the data have no splits."""
        return None if "train" in self.beton.manifest.splits else 0

    def config(self, stem: str, *, compile: bool, batch: int | None = None) -> Config:
        """A run as users start it, on this bench's data."""
        return Config(
            data=DataConfig(path=str(self.beton.path), fold=self.fold, batch_size=batch or self.size.batch),
            model=ModelConfig(stem=stem),
            train=TrainConfig(epochs=1000, compile=compile),
            device=self.device.type,
        )

    def fresh_folder(self, name: str) -> Path:
        """An empty folder."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


def size_of(name: str, images: int | None) -> Size:
    """The size of a name, with another number of drawn faces where one is given.

    Raises:
        ConfigError: if there is no such size or the number is too small.
    """
    if name not in SIZES:
        raise ConfigError(f"--size {name}: choose one of {', '.join(SIZES)}")
    size = SIZES[name]
    if images is None:
        return size
    if images < SIZES["smallest"].images:
        raise ConfigError(f"--images {images}: give at least {SIZES['smallest'].images}")
    return replace(size, images=images)
