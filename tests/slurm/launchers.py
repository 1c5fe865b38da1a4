"""Launchers as a user starts them on a login node, and the jobs that they sent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.core.utils import JobPaths

from tests.conftest import ROOT
from tests.faults.processes import SMALL
from tests.slurm.conftest import OVERRIDES
from tests.slurm.jobs import PATIENCE, Job


@dataclass
class Launched:
    """A launcher that has ended: its exit code and what it printed."""

    code: int
    out: str
    errors: str


class Launcher:
    """`launch.kfold` or `launch.train` with small runs and an experiment's folder of its own.

    Args:
        name: ``kfold`` or ``train``.
        beton: the data.
        folder: of the experiment.
        arguments: that every call takes: options and overrides.
    """

    def __init__(self, name: str, beton: Path, folder: Path, *arguments: str) -> None:
        self.folder = folder
        config = str(ROOT / "configs" / "base.yaml")
        cluster = ("--cluster", "slurm", "--cpus", "1", "--mem-gb", "1")
        own = (*SMALL, *OVERRIDES, f"data.path={beton}", *arguments)
        self._command = [sys.executable, "-m", f"launch.{name}", config, "--out", str(folder), *cluster, *own]

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it and leave it running."""
        return subprocess.Popen(
            [*self._command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __call__(self, *arguments: str) -> Launched:
        """Start it and wait for its end."""
        return ended(self.begin(*arguments))

    def content(self, name: str) -> dict[str, Any]:
        """A JSON file of the experiment."""
        return dict(json.loads((self.folder / name).read_text()))

    def attempts(self) -> dict[str, int]:
        """How often each run was submitted."""
        return {name: len(jobs) for name, jobs in self.content("experiment.json")["jobs"].items()}

    def job(self, run: str) -> Job:
        """The newest job of a run."""
        number = self.content("experiment.json")["jobs"][run][-1]["id"]
        return Job(number, JobPaths(self.folder / "jobs", number, 0).stderr)

    def standings(self) -> dict[str, str]:
        """The state of each run by summary.json."""
        return {cell["name"]: cell["state"] for cell in self.content("summary.json")["cells"]}

    def reason(self, run: str) -> str:
        """Why a run failed, by summary.json."""
        return next(str(c["reason"]) for c in self.content("summary.json")["cells"] if c["name"] == run)


def ended(launcher: subprocess.Popen[str]) -> Launched:
    """Wait for a launcher's end."""
    try:
        out, errors = launcher.communicate(timeout=3 * PATIENCE)
    finally:
        launcher.kill()
    return Launched(launcher.returncode, out, errors)


def wait_for(condition: Callable[[], object], within: float = PATIENCE) -> None:
    """Wait for something that comes."""
    limit = time.monotonic() + within
    while not condition():
        assert time.monotonic() < limit, "never came about"
        time.sleep(0.05)


def has_begun(run: Path) -> bool:
    """Whether a run has made a step."""
    metrics = run / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def rank_of(job: Job, rank: int) -> int:
    """The process id of a job's rank."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            variables = (process / "environ").read_text(errors="replace").split("\0")
        except OSError:
            continue
        values = dict(pair.split("=", 1) for pair in variables if "=" in pair)
        array, element = values.get("SLURM_ARRAY_JOB_ID"), values.get("SLURM_ARRAY_TASK_ID")
        number = f"{array}_{element}" if array else values.get("SLURM_JOB_ID")
        # srun and the shell around it carry the same variables and words, but not as Python.
        if (
            number == job.id
            and values.get("SLURM_PROCID") == str(rank)
            and command.startswith(os.fsencode(sys.executable))
        ):
            return int(process.name)
    raise AssertionError(f"job {job.id} has no rank {rank}")


def kill_ranks(job: Job, *ranks: int) -> None:
    """SIGKILL to ranks, at once: srun ends the others when it sees that one has died."""
    pids = [rank_of(job, rank) for rank in ranks]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
