"""From a config to everything that trains: the one way, for runs, estimates and the bench."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from ferdist.augment import Augment
from ferdist.config import Config
from ferdist.data.beton import Batch, Beton, BetonLoader, DeviceCache, Labels, cached, labels_of
from ferdist.data.record import Integers
from ferdist.errors import ConfigError
from ferdist.evaluation.model import ModelCard
from ferdist.evaluation.predict import predict, scorer_of
from ferdist.evaluation.predictions import Predictions
from ferdist.models import Task, build_model, check_resolution
from ferdist.runtime.distributed import World, join_world
from ferdist.training import optim, seeds
from ferdist.training.engine import Engine
from ferdist.training.pretrained import load_pretrained
from ferdist.training.soft import soften
from ferdist.training.steps import StepPlan

VAL_BATCH = 256
"""Samples in a forward pass of the validation, at least."""


@dataclass(frozen=True)
class Setup:
    """What a run trains and validates with; it has no folder and writes nothing.

    Attributes:
        config: of the run.
        beton: its data.
        world: this rank.
        labels: of the beton, softened where the config has teachers.
        train_indices, val_indices: int64, the samples that are trained and validated on.
        card: of the model.
        plan: how an epoch divides into steps and ranks.
        engine: network, augmentation, optimizer and moving average.
        loader, val_loader: of the two parts.
    """

    config: Config
    beton: Beton
    world: World
    labels: Labels
    train_indices: Integers
    val_indices: Integers
    card: ModelCard
    plan: StepPlan
    engine: Engine
    loader: BetonLoader | DeviceCache
    val_loader: BetonLoader | DeviceCache

    def batches(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step from the engine's step on, to the end of the run."""
        return self.engine.batches(self.loader, self.train_indices)

    def score(self, tta: str = "none", samples: int | None = None) -> Predictions:
        """Predictions of the averaged weights for the first samples of the validated part, or all of them.

        All ranks must call; they use rank 0's batch statistics.
        """
        network = self.engine.ema.model
        self.world.share_from_main(network)
        card = self.card
        scorer = scorer_of(network, card.mean, card.std, self.engine.dtype, tta)
        indices = self.val_indices[:samples]
        return predict(scorer, self.beton, self.labels, self.val_loader, indices, self.world)


def join_training(config: Config) -> AbstractContextManager[World]:
    """`join_world` for a run of this config."""
    return join_world(config.device, config.train.precision, deterministic=config.train.deterministic)


def build(config: Config, beton: Beton, world: World, *, samples: int | None = None) -> Setup:
    """Build everything that a config says.

    Args:
        config: of the run.
        beton: its data, opened.
        world: this rank, from `join_training`.
        samples: train on only so many, for a short epoch.

    Raises:
        ConfigError, DataError: if the config does not fit the data or the device.
    """
    holdout = config.data.holdout
    labels = soften(
        labels_of(beton, config.data.labels), config.data.soft_labels, config.train.soft_weight, beton
    )
    train_indices = labels.learnable(beton.indices("train", holdout))[:samples]
    val_indices = labels.scorable(beton.indices(holdout.validated, holdout))
    mean, std = beton.normalisation(holdout)
    task = Task(*beton.manifest.image_shape, len(labels.classes))
    plan = StepPlan(
        len(train_indices),
        config.data.batch_size,
        world.size,
        config.train.accumulate,
        config.train.epochs,
    )
    targets = torch.from_numpy(labels.targets)
    weights = optim.class_weights(config.train.class_weights, targets[train_indices].sum(0))
    augment = Augment(config.augment, mean, std)
    network = _network(config, task, world)
    if plan.micro_batch == 1 and any(isinstance(module, nn.BatchNorm1d) for module in network.modules()):
        raise ConfigError(
            f"data.batch_size is {config.data.batch_size}: on each of {world.size} ranks, with "
            f"train.accumulate={config.train.accumulate}, an image is alone, which batch norm cannot "
            "normalise: raise it"
        )
    engine = Engine(config, network, augment, task, plan, targets, weights, world)
    return Setup(
        config,
        beton,
        world,
        labels,
        train_indices,
        val_indices,
        ModelCard(config, task, labels.classes, tuple(mean), tuple(std), beton.manifest.sha256),
        plan,
        engine,
        _loader(config, beton, world, plan.micro_batch, train_indices),
        _loader(config, beton, world, max(plan.micro_batch, VAL_BATCH), val_indices),
    )


def _network(config: Config, task: Task, world: World) -> nn.Module:
    torch.manual_seed(seeds.derive_seed(config.seed, seeds.WEIGHTS))
    network = build_model(config.model, task)
    check_resolution(network, config.model, task, {share for _, share in config.train.resolution})
    load_pretrained(network, config.model.pretrained)
    if config.train.sync_batchnorm:
        if world.device.type != "cuda":
            raise ConfigError("train.sync_batchnorm is true, which needs GPUs: set it to false")
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    return network.to(world.device).to(memory_format=layout)


def _loader(
    config: Config, beton: Beton, world: World, batch_size: int, samples: Integers
) -> BetonLoader | DeviceCache:
    data = config.data
    loader = BetonLoader(
        beton, batch_size=batch_size, device=world.device, workers=data.workers, timeout=data.timeout
    )
    return cached(loader, samples, data.cache)
