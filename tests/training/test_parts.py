"""The pure parts of training: schedule, learning rate, seeds, weights, averages."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ferdist.config import TrainConfig
from ferdist.errors import ConfigError
from ferdist.runtime import precision
from ferdist.runtime.distributed import choose_device
from ferdist.runtime.precision import autocast_dtype
from ferdist.training import optim, seeds
from ferdist.training.ema import Ema
from ferdist.training.monitor import cut_back
from ferdist.training.steps import StepPlan


def test_ranks_and_micro_batches_share_a_global_batch_without_overlap() -> None:
    order = np.arange(1000)[::-1].copy()
    for world, accumulate in ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1)):
        plan = StepPlan(1000, 96, world, accumulate, epochs=3)
        assert (plan.steps_per_epoch, plan.total_steps) == (10, 30)
        ranks = [plan.rank_order(order, rank, 0).reshape(10, -1) for rank in range(world)]
        for step in range(10):
            seen = np.concatenate([rank[step] for rank in ranks])
            assert np.array_equal(seen, order[step * 96 : (step + 1) * 96])


def test_two_ranks_see_what_one_rank_with_two_micro_batches_sees() -> None:
    order = np.random.default_rng(0).permutation(500)
    one, two = StepPlan(500, 64, 1, 2, epochs=1), StepPlan(500, 64, 2, 1, epochs=1)
    micro_batches = one.rank_order(order, 0, 0).reshape(-1, 2, 32)
    for rank in range(2):
        assert np.array_equal(two.rank_order(order, rank, 0).reshape(-1, 32), micro_batches[:, rank])
        assert two.rows(rank, 0) == one.rows(0, rank)


def test_a_later_step_of_an_epoch_is_the_tail_of_its_order() -> None:
    plan = StepPlan(100, 10, 2, 1, epochs=1)
    order = np.random.default_rng(0).permutation(100)
    assert np.array_equal(plan.rank_order(order, 1, 7), plan.rank_order(order, 1, 0)[35:])


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [(30, "must be a multiple of world size x train.accumulate, 4"), (200, "lower it")],
)
def test_a_batch_size_that_does_not_fit_is_refused(batch_size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StepPlan(100, batch_size, 2, 2, epochs=1)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_nearly_nothing(
    schedule: str, warmup: float
) -> None:
    config = TrainConfig(lr=0.4, schedule=schedule, warmup=warmup)
    rates = [optim.learning_rate(config, step, 100) for step in range(1, 101)]
    peak = int(np.argmax(rates)) + 1
    assert peak == (25 if warmup else 1)
    assert max(rates) == pytest.approx(0.4, rel=1e-3)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak - 1 :] == sorted(rates[peak - 1 :], reverse=True)
    assert 0 < rates[-1] < 1e-3


def test_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3))
    for kind in ("sgd", "adamw"):
        optimizer = optim.make_optimizer(model, TrainConfig(optimizer=kind, weight_decay=0.1))
        decay, rest = optimizer.param_groups
        assert sorted(p.ndim for p in decay["params"]) == [2, 4]
        assert [p.ndim for p in rest["params"]] == [1, 1, 1, 1]
        assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_class_weights_keep_the_mean_weight_of_a_sample_at_one() -> None:
    counts = torch.tensor([400, 100, 0, 25])
    assert optim.class_weights("none", counts) is None
    for kind, ratio in (("balanced", 16.0), ("sqrt", 4.0)):
        weights = optim.class_weights(kind, counts)
        assert weights is not None
        assert weights[3] / weights[0] == pytest.approx(ratio)
        assert weights[2] == 0
        assert (weights * counts).sum() / counts.sum() == pytest.approx(1.0)


def test_orders_and_seeds_depend_on_seed_and_position_only() -> None:
    indices = np.arange(100, 200)
    first = seeds.epoch_order(indices, 7, 3)
    assert np.array_equal(first, seeds.epoch_order(indices, 7, 3))
    assert np.array_equal(np.sort(first), indices)
    assert not np.array_equal(first, seeds.epoch_order(indices, 7, 4))
    assert not np.array_equal(first, seeds.epoch_order(indices, 8, 3))
    derived = {seeds.derive_seed(s, p, step) for s in range(5) for p in range(4) for step in range(50)}
    assert len(derived) == 1000
    assert all(0 <= value < 2**63 for value in derived)


def test_the_average_follows_weights_and_batch_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(model, 0.9)
    start = ema.model[0].weight.clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[1].running_mean.fill_(3.0)
        model[1].num_batches_tracked.fill_(5)
    ema.update(1000)
    torch.testing.assert_close(ema.model[0].weight, start + 0.1)
    torch.testing.assert_close(ema.model[1].running_mean, torch.full((2,), 0.3))
    assert ema.model[1].num_batches_tracked == 5
    early = Ema(model, 0.9)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    early.update(1)
    moved = (early.model[0].weight - (model[0].weight - 1)).mean().item()
    assert moved == pytest.approx(1 - 2 / 11), "the random start must be forgotten quickly"


def test_metrics_are_cut_back_to_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    cut_back(path, 5)
    assert not path.exists()
    path.write_text('{"step": 3}\n{"step": 5}\n{"step": 7}\n{"step": 9, "x"')
    cut_back(path, 7)
    assert path.read_text() == '{"step": 3}\n{"step": 5}\n{"step": 7}\n'
    cut_back(path, 5)
    assert path.read_text() == '{"step": 3}\n{"step": 5}\n'
    for odd in ("3", "[]", '{"epoch": 1}', '{"step": "6"}', "[" * 100_000):
        path.write_text(f'{{"step": 3}}\n{odd}\n{{"step": 5}}\n')
        cut_back(path, 5)
        assert path.read_text() == '{"step": 3}\n'
    path.write_text('{"step": 5, "train/loss": 1}\n{"step": 5, "val/accuracy": 1}\n')
    cut_back(path, 5)
    assert path.read_text() == '{"step": 5, "train/loss": 1}\n'


def test_precision_and_device_choices() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("fp32", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    assert autocast_dtype("fp16", cpu) is torch.float16
    assert choose_device("cpu", 0) == cpu
    if not torch.cuda.is_available():
        assert choose_device("auto", 3) == cpu
        with pytest.raises(ConfigError, match=r"device is cuda, but .* or use device=cpu"):
            choose_device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "avx512", "amx", "gains"),
    [
        ("AMD EPYC 9R14", True, False, True),
        ("Intel(R) Xeon(R) Platinum 8380H CPU @ 2.90GHz", True, False, False),
        ("Intel(R) Xeon(R) Platinum 8488C", True, True, True),
        ("AMD EPYC 7763", False, False, False),
    ],
)
def test_auto_is_bf16_on_cpus_that_gain_from_it(
    monkeypatch: pytest.MonkeyPatch, name: str, avx512: bool, amx: bool, gains: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(precision, "cpu_name", lambda: name)
    assert autocast_dtype("auto", torch.device("cpu")) is (torch.bfloat16 if gains else None)


def test_a_rank_finds_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among all of a host's, or alone where SLURM shows each task only its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto", 3) == torch.device("cuda", 3)
    with pytest.raises(ConfigError, match="local rank 4 has no GPU: this process sees 4"):
        choose_device("cuda", 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert choose_device("cuda", 3) == torch.device("cuda", 0)
    monkeypatch.setenv("SLURM_LOCALID", "0")  # torchrun is the task: its ranks share what it sees
    with pytest.raises(ConfigError, match="local rank 3 has no GPU"):
        choose_device("cuda", 3)


def test_the_last_step_of_a_short_run_has_a_rate() -> None:
    assert math.isfinite(optim.learning_rate(TrainConfig(), 1, 1))
    assert optim.learning_rate(TrainConfig(warmup=0.99), 1, 1) > 0
