"""What must not be mixed: two runs in a folder, configs, world sizes; and ranks that fail together."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ferdist.config import Config
from tests.faults.processes import Training, copy_until, finish, status_of, unequal

pytestmark = pytest.mark.slow

Small = Callable[..., Config]
Start = Callable[..., Training]


def test_a_second_run_in_the_folder_is_refused_and_a_dead_one_is_not_waited_for(
    small: Small, start: Start
) -> None:
    config = small("train.epochs=100")  # it is not to end before the second one begins
    folder = Path(config.run_dir)
    first = start(config)
    first.wait_for_step(1)
    alone, together = start(config), start(config, 2, torchrun=[])
    refusal = f"{folder}: another process is training in this run folder"
    end = alone.end("a second run in the same folder, with its start-up")
    assert (end.code, end.errors.count(refusal)) == (1, 1)
    end = together.end("a second run in the same folder under torchrun, with its start-up")
    assert end.code == 1
    assert f"ferdist: {refusal}" in end.errors
    assert f"ferdist[rank 1]: {folder}: rank 0 could not claim this folder" in end.errors
    status = status_of(folder)
    assert (status["state"], status["pid"]) == ("running", first.pid)
    assert first.runs(), "the first goes on"
    first.kill()
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_another_config_is_refused(small: Small, start: Start, whole: Path) -> None:
    config = small("train.lr=0.5", "seed=3")
    folder = Path(config.run_dir)
    copy_until(whole, folder, 15)
    before = status_of(folder)
    end = start(config).end("another config, with its start-up")
    assert end.code == 1
    assert "belongs to another config (" in end.errors
    assert "train.lr: 0.02 -> 0.5" in end.errors
    assert "seed: 0 -> 3" in end.errors
    assert len(end.errors.splitlines()) == 1
    assert status_of(folder) == before


def test_another_number_of_processes_is_warned_of(small: Small, whole: Path) -> None:
    config = small()
    folder = Path(config.run_dir)
    copy_until(whole, folder, 15)
    end = finish(config, processes=2)
    assert end.errors.count("resuming with 2 processes, started with 1") == 1
    assert "fp32 on cpu, 2 processes, resuming at step 15\n" in end.errors
    assert status_of(folder)["world_size"] == 2


def test_more_than_two_ranks_go_on_to_the_same_weights(small: Small) -> None:
    """With two, a sum has one order only; with more, DDP must not regroup the gradients meanwhile."""
    whole, resumed = small(run="whole"), small(run="resumed")
    finish(whole, processes=4)
    copy_until(Path(whole.run_dir), Path(resumed.run_dir), 9)
    finish(resumed, processes=4)
    assert unequal(Path(whole.run_dir), Path(resumed.run_dir)) == []


def test_a_gradient_that_is_not_finite_stops_all_ranks_alike(small: Small, start: Start) -> None:
    config = small("train.lr=1e30")
    end = start(config, 2).end("a gradient that is not finite on two ranks, with the start-up")
    assert end.code == 1
    said = re.findall(r"^ferdist(?:\[rank 1\])?: (the loss or its gradient .*)$", end.errors, re.M)
    assert len(said) == 2
    assert said[0] == said[1]
    status = status_of(Path(config.run_dir))
    assert (status["state"], status["reason"]) == ("failed", said[0])
