"""How an epoch divides into steps, ranks and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ferdist.data.record import Integers
from ferdist.errors import ConfigError


@dataclass(frozen=True)
class StepPlan:
    """The division of a run's samples.

    A global batch is a run of the epoch's order; rank r's micro-batch i is its part r * accumulate + i, so
    two ranks see exactly what one rank with two micro-batches sees.

    Attributes:
        samples: of the training part.
        batch_size: samples in a step, over all ranks and micro-batches.
        world_size: number of ranks.
        accumulate: micro-batches of a rank in a step.
        epochs: of the run.

    Raises:
        ConfigError: if the batch size does not divide, or is larger than the training part.
    """

    samples: int
    batch_size: int
    world_size: int
    accumulate: int
    epochs: int

    def __post_init__(self) -> None:
        parts = self.world_size * self.accumulate
        if self.batch_size % parts:
            raise ConfigError(
                f"data.batch_size is {self.batch_size}: "
                f"it must be a multiple of world size x train.accumulate, {parts}"
            )
        if self.batch_size > self.samples:
            raise ConfigError(
                f"data.batch_size is {self.batch_size}, "
                f"but the training part has {self.samples} samples: lower it"
            )

    @property
    def micro_batch(self) -> int:
        """Samples in a forward pass of one rank."""
        return self.batch_size // (self.world_size * self.accumulate)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the rest of its order is left out, another rest each epoch."""
        return self.samples // self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.epochs * self.steps_per_epoch

    def rank_order(self, order: Integers, rank: int, first_step: int) -> Integers:
        """This rank's samples in an epoch's order, from the epoch's step ``first_step`` (from 0) on."""
        whole = order[: self.steps_per_epoch * self.batch_size]
        parts = whole.reshape(self.steps_per_epoch, self.world_size, self.accumulate * self.micro_batch)
        return np.ascontiguousarray(parts[first_step:, rank].ravel())

    def rows(self, rank: int, micro_batch: int) -> tuple[int, int]:
        """Where a rank's micro-batch begins and ends in the global batch."""
        start = (rank * self.accumulate + micro_batch) * self.micro_batch
        return start, start + self.micro_batch
