"""Two ranks as a job of this host: stopped and started again, one of them killed, or all cancelled."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import kfold
from tests.conftest import PATIENCE, start
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


def test_a_cancelled_experiment_submits_no_more_until_it_is_retried(
    two_folds: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / "x"
    line = command("kfold", two_folds, folder, "--cluster", "local", "--cpu", "1", "train.epochs=6")
    launcher = begin(*line)
    wait_until(launcher, lambda: newest_step(folder / "fold-00-seed-0") >= 2)
    assert kfold.main([*line[1:], "--cancel"]) == 0
    assert capsys.readouterr().err == "ferdist: cancelled 1 job; --retry resumes the runs\n"
    _, errors = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 1
    assert errors.endswith("ferdist: cancelled, 2 of 2 runs not finished; --retry resumes them\n")
    assert status_of(folder / "fold-00-seed-0")["state"] == "preempted"
    assert not (folder / "fold-01-seed-0").exists()
    retried = start(*line, "--retry")
    assert retried.returncode == 0, retried.stderr
    assert [status_of(folder / f"fold-0{fold}-seed-0")["state"] for fold in (0, 1)] == ["finished"] * 2
