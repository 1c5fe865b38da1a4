"""One rank of 8 or 64: the real code with torch's fake process group, whose collectives do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from ferdist.config import Config
from ferdist.data.beton import open_beton
from ferdist.runtime.distributed import World
from ferdist.training import seeds
from ferdist.training.build import build
from ferdist.training.steps import StepPlan


@pytest.fixture(params=[(0, 8), (7, 8), (63, 64)], ids=str)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    rank, size = request.param
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    yield World(rank, size, rank % 8, torch.device("cpu"))
    dist.destroy_process_group()


def test_a_rank_of_many_trains_its_share(
    world: World, tiny: Callable[..., Config], beton_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[int] = []

    class Alone(DistributedDataParallel):
        """DDP whose sums are over this rank alone: the fake group's have no result."""

        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            self.register_comm_hook(None, self.take)

        @staticmethod
        def take(_, bucket):  # type: ignore[no-untyped-def]  # DDP compares annotations, which here are strings
            sums.append(bucket.buffer().numel())
            future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

    monkeypatch.setattr("ferdist.training.engine.DistributedDataParallel", Alone)
    setup = build(tiny("data.batch_size=128", "model.width=32"), open_beton(beton_path), world)
    engine, plan = setup.engine, setup.plan
    assert plan.micro_batch == 128 // world.size
    before = len(sums)
    steps = setup.batches()
    micro_batches = next(steps)
    order = seeds.epoch_order(setup.train_indices, setup.config.seed, 0)
    start = world.rank * plan.micro_batch
    assert micro_batches[0].index.tolist() == order[start : start + plan.micro_batch].tolist()
    engine.train_step(micro_batches)
    first = sums[before:]
    assert sum(first) == sum(p.numel() for p in engine.parameters), "each gradient is summed once"
    engine.train_step(next(steps))
    assert sums[before + len(first) :] == first, "the groups of gradients are final before the first step"


@pytest.mark.parametrize("size", [8, 64])
def test_the_ranks_of_many_divide_an_epoch(size: int) -> None:
    plan = StepPlan(28_709, 4096, size, 1, epochs=2)
    order = np.random.default_rng(0).permutation(28_709)
    shares = [plan.rank_order(order, rank, 0).reshape(plan.steps_per_epoch, -1) for rank in range(size)]
    assert np.array_equal(np.concatenate(shares, axis=1).ravel(), order[: plan.steps_per_epoch * 4096])
