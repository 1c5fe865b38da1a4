"""Signals that ask for a stop: a checkpoint is written, exit code 75, and the resumed run ends the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ferdist.config import Config
from tests.faults.processes import (
    STEPS_PER_EPOCH,
    Training,
    finish,
    newest_step,
    status_of,
    unequal,
)

pytestmark = pytest.mark.slow

Small = Callable[..., Config]
Start = Callable[..., Training]


def ends_preempted(training: Training, fault: str, code: int, ranks: Sequence[int] = ()) -> int:
    """Check the end after a stop signal; the step of the checkpoint that was written."""
    end = training.end(fault, ranks=ranks)
    assert end.code == code, end.errors
    status, step = status_of(training.folder), newest_step(training.folder)
    assert status["state"] == "preempted"
    assert f"stopped by a signal at step {step}; start it again" in status["reason"]
    assert status["step"] == step
    assert f"ferdist: {status['reason']}\n" in end.errors
    assert not list((training.folder / "checkpoints").glob(".*.tmp"))
    return step


def test_one_process_is_stopped_at_any_moment(small: Small, start: Start, whole: Path) -> None:
    config = small()
    folder = Path(config.run_dir)

    def begin() -> Training:
        return start(config, command=("ferdist", "train"))

    training = begin()
    training.wait_for_step(1)
    training.stop_at_write()
    training.signal(signal.SIGTERM)
    training.signal(signal.SIGCONT)
    ends_preempted(training, "SIGTERM while a checkpoint is written", os.EX_TEMPFAIL)

    step = 0
    while step != STEPS_PER_EPOCH + 1:  # on a busy machine the signal may come too late
        shutil.rmtree(folder)
        training = begin()
        training.wait_for_step(STEPS_PER_EPOCH)
        time.sleep(0.1)
        training.signal(signal.SIGTERM)
        step = ends_preempted(training, "SIGTERM during the validation", os.EX_TEMPFAIL)

    training = begin()
    training.wait_for_step(step + 1)
    training.signal(signal.SIGUSR2)
    time.sleep(0.02)
    training.signal(signal.SIGTERM)
    ends_preempted(training, "SIGUSR2 and SIGTERM 20 ms apart", os.EX_TEMPFAIL)

    training = begin()
    training.wait_for_step(newest_step(folder) + 1)
    training.signal(signal.SIGINT)
    ends_preempted(training, "Ctrl-C", os.EX_TEMPFAIL)

    finish(config)
    assert unequal(whole, folder) == []


def test_two_processes_are_stopped_by_a_signal_to_one(small: Small, start: Start, whole_of_two: Path) -> None:
    """torchrun answers 1 whatever its workers' exit code."""
    config = small()
    folder = Path(config.run_dir)
    cases = ((signal.SIGTERM, 1), (signal.SIGUSR2, 0), (signal.SIGTERM, None), (signal.SIGINT, None))
    for case, (number, rank) in enumerate(cases):
        if case == 2:  # a stop takes some of the few steps
            shutil.rmtree(folder)
        training = start(config, 2, torchrun=[])
        training.wait_for_step(newest_step(folder) + 1)
        training.signal(number, None if rank is None else training.rank(rank))
        whom = "torchrun" if rank is None else f"rank {rank} of 2"
        ends_preempted(training, f"{number.name} to {whom}", 1)
    shutil.rmtree(folder)
    training = start(config, 2, torchrun=[])
    training.wait_for_step(1)
    ranks = [training.rank(0), training.rank(1)]
    training.signal(signal.SIGKILL)
    ends_preempted(training, "SIGKILL to torchrun alone", -signal.SIGKILL, ranks)
    finish(config, 2)
    assert unequal(whole_of_two, folder) == []


CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""What makes the command that follows process 1, as in a container."""


def test_torchrun_can_be_process_1(small: Small) -> None:
    if subprocess.run([*CONTAINER, "true"], check=False).returncode:
        pytest.skip("unshare is not allowed")
    finish(small(), 2, torchrun=[], wrapper=CONTAINER)
