"""Training and scoring as a run does them, without the run's folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ferdist.augment import Augment
from ferdist.config import Config
from ferdist.data.beton import BetonLoader, labels_of, open_beton
from ferdist.evaluation.predict import predict
from ferdist.models import Task, build_model
from ferdist.runtime.distributed import World
from ferdist.runtime.precision import configure_kernels
from ferdist.training import seeds
from ferdist.training.engine import Engine
from ferdist.training.monitor import Stopwatch
from ferdist.training.steps import StepPlan


class Trainer:
    """The engine of a run, with its loader.

    Args:
        config: of the run; its ``data.path`` is the beton.
        world: this rank.
        samples: of the training part that an epoch has, None for all.

    Attributes:
        waited: share of the time of the latest ``train`` that went into waiting for batches.
    """

    def __init__(self, config: Config, world: World, samples: int | None = None) -> None:
        self.config, self.world = config, world
        beton, holdout = open_beton(Path(config.data.path)), config.data.holdout
        self.beton, self.labels = beton, labels_of(beton, config.data.labels)
        self.indices = self.labels.learnable(beton.indices("train", holdout))[:samples]
        self.scored = self.labels.scorable(beton.indices("val", holdout))
        self.mean, self.std = beton.normalisation(holdout)
        image = beton.manifest.image
        self.task = Task(image["channels"], image["height"], image["width"], len(self.labels.classes))
        self.plan = StepPlan(
            len(self.indices),
            config.data.batch_size,
            world.size,
            config.train.accumulate,
            config.train.epochs,
        )
        self.use_kernels()
        torch.manual_seed(seeds.derive_seed(config.seed, seeds.WEIGHTS))
        network = build_model(config.model, self.task).to(world.device)
        if config.train.channels_last:
            network = network.to(memory_format=torch.channels_last)
        targets = torch.from_numpy(self.labels.targets)
        augment = Augment(config.augment, self.mean, self.std)
        self.engine = Engine(config, network, augment, self.task, self.plan, targets, None, world)
        loader = BetonLoader(beton, batch_size=self.plan.micro_batch, device=world.device)
        self.scoring_loader = BetonLoader(beton, batch_size=256, device=world.device)
        self.batches = self.engine.batches(loader, self.indices)
        self.waited = 0.0

    def use_kernels(self) -> None:
        """Choose kernels as the config says, in this process; a peer may have chosen others."""
        configure_kernels(self.config.train.deterministic, self.config.train.precision)

    def train(self, steps: int) -> None:
        """So many steps, and one reading of the counters."""
        watch = Stopwatch()
        stream = watch.timed(self.batches)
        for _ in range(steps):
            self.engine.train_step(next(stream))
        self.engine.read()
        self.waited = watch.read(1)["rate/loader_wait"]

    def score(self, samples: int | None = None, tta: str = "none", network: nn.Module | None = None) -> None:
        """The probabilities of the averaged weights for so many samples of val, or all."""
        predict(
            network or self.engine.ema.model,
            self.beton,
            self.labels,
            self.scoring_loader,
            self.scored[:samples],
            self.world,
            mean=self.mean,
            std=self.std,
            dtype=self.engine.dtype,
            tta=tta,
        )

    def close(self) -> None:
        """Stop the loader's thread."""
        self.batches.close()  # type: ignore[attr-defined]


def alone(device: torch.device) -> World:
    """This process as the only one."""
    return World(0, 1, 0, device)
