"""Launchers as a user starts them on a login node, and the jobs that they sent."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.core.utils import JobPaths

from tests.conftest import PATIENCE, ROOT
from tests.faults.processes import SMALL
from tests.forking import Forked
from tests.slurm.conftest import OVERRIDES
from tests.slurm.jobs import Job


@dataclass(frozen=True)
class Launched:
    """A launcher that has ended: its exit code and what it printed."""

    code: int
    out: str
    errors: str


class Running:
    """A launcher in a process of its own, whose output goes to ``FILES.out`` and ``FILES.err``."""

    def __init__(self, arguments: Sequence[str], files: Path) -> None:
        self._out, self._errors = files.with_suffix(".out"), files.with_suffix(".err")
        self._process = Forked(arguments, stdout=self._out, stderr=self._errors)

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def end(self) -> Launched:
        """Wait for its end."""
        try:
            code = self._process.wait(PATIENCE)
        finally:
            if self.runs():
                self._process.kill()
        return Launched(code, self._out.read_text(), self._errors.read_text())


class Launcher:
    """`launch.kfold` or `launch.train` with small runs and an experiment's folder of its own.

    Args:
        name: ``kfold`` or ``train``.
        beton: the data.
        folder: of the experiment.
        arguments: that every call takes: options and overrides.

    Attributes:
        arguments: what every call gives to ``python -m``.
    """

    def __init__(self, name: str, beton: Path, folder: Path, *arguments: str) -> None:
        self.folder = folder
        config = str(ROOT / "configs" / "base.yaml")
        cluster = ("--cluster", "slurm", "--cpus", "1", "--mem-gb", "1")
        own = (*SMALL, *OVERRIDES, f"data.path={beton}", *arguments)
        self.arguments = [f"launch.{name}", config, "--out", str(folder), *cluster, *own]
        self._calls = itertools.count()

    def begin(self, *arguments: str) -> Running:
        """Start it and leave it running."""
        files = self.folder.with_name(f"{self.folder.name}-launcher-{next(self._calls)}")
        return Running([*self.arguments, *arguments], files)

    def __call__(self, *arguments: str) -> Launched:
        """Start it and wait for its end."""
        return self.begin(*arguments).end()

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


def wait_for(condition: Callable[[], object], launcher: Running | None = None) -> None:
    """Wait for something that comes, before the launcher's end if there is one."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert launcher is None or launcher.runs() or condition(), launcher.end()
        assert time.monotonic() < limit, "never came about"
        time.sleep(0.05)


def has_begun(run: Path) -> bool:
    """Whether a run has made a step."""
    metrics = run / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0
