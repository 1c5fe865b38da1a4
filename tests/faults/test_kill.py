"""SIGKILL at any moment: the resumed run ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ferdist.config import Config
from tests.faults.processes import Training, finish, metrics_of, newest_step, status_of, unequal

pytestmark = pytest.mark.slow

Small = Callable[..., Config]
Start = Callable[..., Training]


def test_killed_with_a_checkpoint_at_each_step(small: Small, start: Start, whole: Path) -> None:
    """At two random moments, and while a checkpoint is written."""
    config, draw = small(), random.Random(0)
    folder = Path(config.run_dir)
    for step in sorted(draw.sample(range(1, 12), 2)):
        training = start(config)
        training.wait_for_step(step)
        time.sleep(draw.random())
        training.kill()
        assert training.end(f"SIGKILL after step {step}").code == -signal.SIGKILL
        assert status_of(folder)["state"] == "running", "nobody was left to say more"

    training = start(config)
    before = newest_step(folder)
    training.wait_until(lambda: newest_step(folder) > before)
    training.stop_at_write()
    training.kill()
    training.end("SIGKILL while a checkpoint is written")
    assert len(list((folder / "checkpoints").glob(".step-*.tmp"))) == 1
    assert newest_step(folder) > before
    finish(config)
    assert unequal(whole, folder) == []


def test_killed_with_steps_to_do_again(small: Small, start: Start, whole: Path) -> None:
    """Twice, where metrics.jsonl is ahead of the newest checkpoint."""
    config = small("train.checkpoint_seconds=1.5")
    folder = Path(config.run_dir)
    for _ in range(2):
        training = start(config)
        # Only then are the lines fresh: those of the killed run beyond its checkpoint are cut off by now.
        training.wait_for_step(newest_step(folder) + 1)
        training.wait_until(lambda: ahead(folder))
        training.kill()
        assert training.end("SIGKILL between two checkpoints").code == -signal.SIGKILL
        assert ahead(folder)
    finish(config)
    assert unequal(whole, folder) == []


def ahead(folder: Path) -> bool:
    """Whether metrics.jsonl, which may be empty at first, knows a step beyond the newest checkpoint."""
    return any(line["step"] > newest_step(folder) for line in metrics_of(folder))


def test_two_processes_killed(small: Small, start: Start, whole_of_two: Path) -> None:
    """torchrun and its workers at once; then one worker, which torchrun starts again by itself."""
    config, draw = small(), random.Random(1)
    folder = Path(config.run_dir)
    training = start(config, 2, torchrun=[])
    training.wait_for_step(draw.randrange(2, 6))
    time.sleep(draw.random())
    training.kill()
    assert training.end("SIGKILL to torchrun and both ranks").code == -signal.SIGKILL

    training = start(config, 2)
    training.wait_for_step(newest_step(folder) + 1)
    training.signal(signal.SIGKILL, training.rank(1))
    end = training.end("SIGKILL to rank 1 of 2")
    assert end.code == 1
    status = status_of(folder)
    assert status["state"] == "failed"
    assert status["reason"]
    assert "ferdist: unexpected" in end.errors

    training = start(config, 2, torchrun=["--max-restarts", "2"])
    training.wait_for_step(newest_step(folder) + 1)
    # A rank that stops with 75 is one more that failed to torchrun, which starts all of them again.
    for number, rank in ((signal.SIGKILL, 1), (signal.SIGTERM, 0)):
        training.signal(number, training.rank(rank))
        training.wait_until(lambda: status_of(folder)["state"] != "running")
        before = newest_step(folder)
        training.wait_for_step(before + 1)
    end = training.end(
        "SIGKILL to rank 1 and SIGTERM to rank 0 of 2, torchrun --max-restarts 2, to the run's end"
    )
    assert end.code == 0, end.errors
    assert status_of(folder)["state"] == "finished"
    assert unequal(whole_of_two, folder) == []
