"""What may happen to a launcher's job on a real SLURM: it resumes to the same end, or says why not.

The jobs have two ranks and write a checkpoint only when a signal asks for one, unless stated.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, ROOT
from tests.faults.processes import finish, newest_step, small_config, status_of, unequal
from tests.slurm.conftest import OVERRIDES
from tests.slurm.jobs import ask, sbatch
from tests.slurm.launchers import Launcher, has_begun, wait_for

Unbroken = Callable[[int], Path]


@pytest.fixture
def train(faces: Path, place: Path) -> Launcher:
    """The launcher of one job with two ranks."""
    return Launcher("train", faces, place / "x", "--cpu", "2")


@pytest.fixture
def run(train: Launcher) -> Path:
    """The folder of its run."""
    return train.folder / "seed-0"


def preempt(train: Launcher) -> None:
    """Send a job that takes the place of the training's."""
    script = train.folder.with_name("urgent.sh")
    script.write_text("#!/bin/sh\nsleep 1\n")
    options = ("--partition=urgent", "--nodes=2", "--exclusive")
    sbatch(script, folder=train.folder.with_name("urgent"), options=options)


STOPS: dict[str, tuple[Callable[[Launcher], object], tuple[str, ...]]] = {
    "a signal": (lambda train: train.job("seed-0").signal("USR2"), ("REQUEUED",)),
    "a preemption": (preempt, ("REQUEUED", "PREEMPTED")),
    "scontrol requeue": (
        lambda train: ask("scontrol", "requeue", train.job("seed-0").id),
        ("REQUEUED", "PREEMPTED"),
    ),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_stopped_job_comes_back_and_nothing_is_lost(
    train: Launcher, run: Path, unbroken: Unbroken, name: str
) -> None:
    stop, first_turn = STOPS[name]
    launcher = train.begin("--wait")
    wait_for(lambda: has_begun(run), launcher)
    stop(train)
    wait_for(lambda: status_of(run).get("state") == "preempted", launcher)
    step, before = newest_step(run), (run / "metrics.jsonl").read_text()
    assert 0 < step < status_of(run)["total_steps"], "it was to be stopped amid the training"
    launched = launcher.end()
    assert launched.code == 0, launched.errors
    assert (run / "metrics.jsonl").read_text().startswith(before), "it did not resume from the checkpoint"
    turns = train.job("seed-0").end()
    assert len(turns) == 2
    assert turns[0] in first_turn
    assert turns[1] == "COMPLETED"
    assert unequal(unbroken(2), run) == []


def test_a_requeue_without_time_loses_no_more_than_the_interval(
    train: Launcher, run: Path, unbroken: Unbroken
) -> None:
    """Ranks that are killed before they can write: the checkpoint of each tenth step counts."""
    every = "train.checkpoint_steps=10"
    launcher = train.begin("--wait", every)
    wait_for(lambda: newest_step(run) >= 10, launcher)
    job = train.job("seed-0")
    job.kill_ranks(0, 1)
    ask("scontrol", "requeue", job.id)
    launched = launcher.end()
    if launched.code:  # the job had ended before it could be requeued
        launched = train("--wait", "--retry", every)
    assert launched.code == 0, launched.errors
    assert unequal(unbroken(2), run) == []


def test_a_time_limit_brings_it_back(train: Launcher, run: Path, faces: Path, place: Path) -> None:
    """SLURM looks at limits about every half minute, so the signal comes 20 to 50 seconds after the start."""
    long = ("train.epochs=75", "train.evaluate_every=25")
    whole = small_config(faces, place / "whole", *OVERRIDES, *long)
    limit = ("--time", "2", "--sbatch", "signal=USR2@100", *long)
    launcher = train.begin("--wait", *limit)
    wait_for(lambda: has_begun(run), launcher)
    wait_for(lambda: status_of(run).get("state") == "preempted", launcher)
    train.job("seed-0").lift_time_limit()  # one turn is enough: a slow machine would take many
    launched = launcher.end()
    assert launched.code == 0, launched.errors
    turns = train.job("seed-0").end()
    assert len(turns) >= 2
    assert (set(turns[:-1]), turns[-1]) == ({"REQUEUED"}, "COMPLETED"), turns
    finish(whole, 2)
    assert unequal(place / "whole", run) == []


def test_a_killed_rank_ends_the_job_and_retry_goes_on(train: Launcher, run: Path, unbroken: Unbroken) -> None:
    every = "train.checkpoint_steps=10"
    launcher = train.begin("--wait", every)
    wait_for(lambda: newest_step(run) >= 10, launcher)
    train.job("seed-0").kill_ranks(1)
    assert train.job("seed-0").end() == ["FAILED"]
    launched = launcher.end()
    assert launched.code == 1
    assert "ferdist: 1 of 1 run failed" in launched.errors
    retried = train("--retry", "--wait", every)
    assert retried.code == 0, retried.errors
    assert unequal(unbroken(2), run) == []


def test_a_cancelled_job_stays_away_until_it_is_retried(
    train: Launcher, run: Path, unbroken: Unbroken
) -> None:
    launcher = train.begin("--wait")
    wait_for(lambda: has_begun(run), launcher)
    cancelled = train("--cancel")
    assert (cancelled.code, cancelled.errors) == (
        0,
        "ferdist: cancelled 1 job; --retry resumes the runs\n",
    )
    launched = launcher.end()
    assert launched.code == 1
    assert "stopped by a signal at step" in launched.errors
    assert train.job("seed-0").end() == ["CANCELLED"]
    assert newest_step(run) > 0
    assert train("--retry", "--wait").code == 0
    assert unequal(unbroken(2), run) == []


def test_the_controller_crashes_while_it_trains(
    train: Launcher, run: Path, unbroken: Unbroken, cluster: Path
) -> None:
    launcher = train.begin("--wait")
    wait_for(lambda: has_begun(run), launcher)
    for action in ("kill-controller", "start-controller"):
        command = [sys.executable, str(ROOT / "tests" / "slurm" / "onehost.py"), action, str(cluster)]
        subprocess.run(command, check=True, timeout=PATIENCE)
        if action == "kill-controller":
            time.sleep(2)
    launched = launcher.end()
    assert launched.code == 0, launched.errors
    assert train.attempts() == {"seed-0": 1}
    assert train.job("seed-0").end() == ["COMPLETED"]
    assert unequal(unbroken(2), run) == []


def test_the_options_count_whatever_the_variables_say(
    train: Launcher, run: Path, unbroken: Unbroken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch takes variables before the options of a script, and squeue filters by its own."""
    others = {
        "PARTITION": "urgent",
        "TIMELIMIT": "7",
        "EXPORT": "NONE",
        "SIGNAL": "TERM@1",
        "COMMENT": "kept",
    }
    for name, value in others.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    options = ("--partition", "main", "--time", "90", "--sbatch", "hold")
    assert train(*options).code == 0
    again = train("--retry", *options)
    assert "submitted" not in again.errors, "a job that waits is not submitted again"
    job = train.job("seed-0")
    ask("scontrol", "release", job.id)
    assert job.completes() == ["COMPLETED"]
    assert job.fields("Partition,TimelimitRaw,SubmitLine").startswith("main|90|")
    assert train.attempts() == {"seed-0": 1}
    assert unequal(unbroken(2), run) == []


@pytest.fixture
def small_disk(run: Path) -> Iterator[Path]:
    """A file system of 12 MB in the place of the run's folder."""
    run.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(run)], check=True)
    yield run
    subprocess.run(["umount", "--lazy", str(run)], check=True)


def test_a_full_disk_is_told_and_retry_goes_on(train: Launcher, small_disk: Path, unbroken: Unbroken) -> None:
    every = ("train.checkpoint_steps=5", "train.keep_checkpoints=2")
    launcher = train.begin("--wait", *every)
    wait_for(lambda: newest_step(small_disk) >= 5, launcher)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 20))
    launched = launcher.end()
    assert launched.code == 1
    assert "free some space and resume" in launched.errors
    filler.unlink()
    retried = train("--retry", "--wait", *every)
    assert retried.code == 0, retried.errors
    assert unequal(unbroken(2), small_disk) == []
