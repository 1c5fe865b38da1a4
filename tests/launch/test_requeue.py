"""Two ranks as a job of this host: stopped and started again, or one of them killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.faults.processes import finish, newest_step, small_config, status_of, unequal
from tests.launch.conftest import begin, command

pytestmark = pytest.mark.slow

RANKS = ("--cluster", "local", "--cpu", "2")


def rank_of(jobs: Path, rank: int) -> int | None:
    """The process id of a rank of the job whose files are in this folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command_line = (process / "cmdline").read_bytes()
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = b"submitit.core._submit" in command_line and os.fsencode(jobs) in command_line
        if ours and f"SUBMITIT_LOCAL_GLOBALID={rank}".encode() in variables:
            return int(process.name)
    return None


def wait_until(launcher: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_signalled_job_starts_again_and_ends_like_an_unbroken_one(two_folds: Path, place: Path) -> None:
    whole = small_config(two_folds, place / "whole", "data.fold=0")
    finish(whole, 2)
    folder = place / "x" / "seed-0"
    launcher = begin(*command("train", two_folds, place / "x", *RANKS, "data.fold=0"))
    wait_until(launcher, lambda: newest_step(folder) >= 2)
    first = rank_of(place / "x" / "jobs", 1)
    assert first is not None
    os.kill(first, signal.SIGUSR2)
    wait_until(launcher, lambda: status_of(folder)["state"] == "preempted")
    step = newest_step(folder)
    assert 2 <= step < status_of(folder)["total_steps"]
    out, errors = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 0, errors
    assert out == f"{folder}\n"
    assert unequal(place / "whole", folder) == []
    logs = "".join(file.read_text() for file in (place / "x" / "jobs").glob("*_0_log.out"))
    assert logs.count("Starting with JobEnvironment") == 2
    assert "Requeued job" in logs


def test_a_killed_rank_ends_the_job(two_folds: Path, place: Path) -> None:
    folder = place / "x" / "seed-0"
    launcher = begin(*command("train", two_folds, place / "x", *RANKS, "data.fold=0", "train.epochs=1000"))
    wait_until(launcher, lambda: newest_step(folder) >= 2)
    victim = rank_of(place / "x" / "jobs", 1)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    _, errors = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 1
    assert "seed-0 failed" in errors
    assert status_of(folder)["state"] == "failed"
    assert rank_of(place / "x" / "jobs", 0) is None
