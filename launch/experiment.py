"""An experiment: several runs in one folder, each a job of its own; submitted once, monitored, resumed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from submitit.core.utils import JobPaths

from ferdist.config import Config, differences, load_config, to_dict
from ferdist.data.beton import Beton, open_beton
from ferdist.errors import ConfigError, RunError, tell
from ferdist.io import locked, write_json
from ferdist.runtime.experiment import FILE, SCHEMA, Part, Trial, read_experiment
from ferdist.runtime.folder import RunFolder
from ferdist.table import count
from launch.backends import BACKENDS, Backend, Options, Request, refuse_control_characters


def read_config(
    path: Path, overrides: Sequence[str], own_keys: Mapping[str, str], own: Sequence[str] = ()
) -> tuple[Config, Beton]:
    """A training config and its beton.

    Args:
        path: of the config.
        overrides: ``key=value``, as given.
        own_keys: keys that the launcher sets itself, with the reason.
        own: ``key=value``, from the launcher.

    Raises:
        ConfigError: if one of those is given, or no beton.
        DataError: if the beton cannot be opened.
    """
    for override in overrides:
        if reason := own_keys.get(override.partition("=")[0]):
            raise ConfigError(f"{override}: the launcher sets this key itself: {reason}")
    config = load_config(path, [*own, *overrides])
    if not config.data.path:
        raise ConfigError("data.path is not set: give the beton file, data.path=DIR/NAME.beton")
    return config, open_beton(Path(config.data.path))


@dataclass(frozen=True)
class Standing:
    """How a trial stands.

    Attributes:
        trial: the trial.
        state: ``finished``, ``new`` (never submitted), ``failed``, or ``active`` (its job waits or runs).
        job: what the cluster says of its job, such as PENDING; empty where there is none.
        reason: why it failed.
        step, total_steps: how far the run is.
    """

    trial: Trial
    state: str
    job: str = ""
    reason: str | None = None
    step: int = 0
    total_steps: int = 0


class Experiment:
    """The runs of one config, or of several, and what is known of their jobs.

    Attributes:
        folder: of the experiment; absolute, since jobs may start elsewhere.
        jobs_folder: submitit's files and the output of the jobs.
        parts: its configs by name, those of earlier launches included; an only one is called "".
        trials: its runs, those of earlier launches included: all of the first seed, then all of the next.
        asked: the runs of this launch.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Part], trials: Sequence[Trial]) -> None:
        self.folder, self.asked = folder.absolute(), frozenset(trials)
        self._file, self.jobs_folder = self.folder / FILE, self.folder / "jobs"
        self._cancelled = self.folder / ".cancelled"
        refuse_control_characters("--out", self.folder)
        self._jobs: dict[str, list[dict[str, Any]]] = {}
        self.parts = dict(parts)
        known: list[Trial] = []
        if self._file.exists():
            stored = read_experiment(self.folder)
            self._check(stored.parts)
            self.parts, known, self._jobs = {**stored.parts, **parts}, stored.trials, stored.jobs
            unknown = {job["cluster"] for jobs in self._jobs.values() for job in jobs} - BACKENDS.keys()
            if unknown:
                raise RunError(f"{self._file}: unknown cluster {', '.join(unknown)}: choose another --out")
        place = {name: number for number, name in enumerate(self.parts)}
        self.trials = sorted({*trials, *known}, key=lambda one: (one.seed, place[one.part], one.fold or 0))

    def run_dir(self, trial: Trial) -> Path:
        """The run's folder."""
        return self.folder / trial.name

    def run_config(self, trial: Trial) -> Config:
        """The whole config of a trial's run."""
        config = self.parts[trial.part].config
        data = replace(config.data, path=str(Path(config.data.path).absolute()))
        if trial.fold is not None:
            inner = data.fold is not None
            data = replace(data, inner_fold=trial.fold) if inner else replace(data, fold=trial.fold)
        return replace(config, data=data, seed=trial.seed, run_dir=str(self.run_dir(trial)))

    def request(self, trials: Sequence[Trial], options: Options) -> Request:
        """What a backend needs to submit the jobs of trials."""
        configs = [self.run_config(trial) for trial in trials]
        return Request(configs, options, self.jobs_folder, f"ferdist-{self.folder.name}", self._free_slot())

    def submit(self, trials: Sequence[Trial], options: Options) -> None:
        """Submit the jobs of trials, and note their ids before anything else happens."""
        request = self.request(trials, options)
        submitted = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for trial, job in zip(trials, options.backend.submit(request), strict=True):
            record = {
                "cluster": options.cluster,
                "id": job,
                "submitted": submitted,
                "slot": request.slot,
                "minutes": options.minutes,
            }
            self._jobs.setdefault(trial.name, []).append(record)
        self.write()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called since `begin`, in any process."""
        return self._cancelled.exists()

    def begin(self) -> None:
        """Write experiment.json, and forget that it was cancelled before."""
        self._cancelled.unlink(missing_ok=True)
        self.write()

    def cancel(self) -> int:
        """End the jobs that wait or run, whose number it returns, and tell the launcher to submit no more.

        Raises:
            RunError: if the folder holds no experiment.
        """
        if not self._file.exists():
            raise RunError(f"{self.folder}: this folder holds no experiment to cancel: give its --out")
        self._cancelled.touch()
        # After that: the launcher may just have noted a job, and looks whether it is cancelled when it has.
        self._jobs = read_experiment(self.folder).jobs
        jobs = [(backend, backend.alive(ids, self.jobs_folder)) for backend, ids in self._newest()]
        for backend, alive in jobs:
            if alive:
                backend.cancel(alive, self.jobs_folder)
        return sum(len(alive) for _, alive in jobs)

    def write(self) -> None:
        """Write experiment.json."""
        parts = {
            name: {"beton_sha256": part.beton_sha256, "config": to_dict(part.config)}
            for name, part in self.parts.items()
        }
        trials = {one.name: {"fold": one.fold, "seed": one.seed, "part": one.part} for one in self.trials}
        write_json(self._file, {"schema": SCHEMA, "parts": parts, "cells": trials, "jobs": self._jobs})

    def standings(self) -> list[Standing]:
        """How each trial stands now."""
        alive = self._alive()
        return [self._standing(trial, alive) for trial in self.trials]

    def _standing(self, trial: Trial, alive: dict[str, str]) -> Standing:
        folder = RunFolder(self.run_dir(trial))
        progress = folder.progress()
        steps = (int(progress.get("step", 0)), int(progress.get("total_steps", 0)))
        job = self._jobs.get(trial.name, [None])[-1]
        if job is not None and job["id"] in alive:
            return Standing(trial, "active", alive[job["id"]], None, *steps)
        if folder.state() == "finished" and folder.results.exists():
            return Standing(trial, "finished", "", None, *steps)
        if job is None:
            return Standing(trial, "new")
        backend, limit = BACKENDS[job["cluster"]], job.get("minutes")
        state = backend.state(job["id"], self.jobs_folder, limit) or ""
        return Standing(trial, "failed", state, self._reason(folder, job, state, steps), *steps)

    def _reason(self, folder: RunFolder, job: dict[str, Any], state: str, steps: tuple[int, int]) -> str:
        """Why a trial whose job has ended is not finished, in a line."""
        log = JobPaths(self.jobs_folder, job["id"], 0).stderr
        status = folder.stored_status()
        if status.get("updated", "") < job["submitted"]:  # an earlier job wrote it
            words = f"its job ended before the training began: {_last_line(log) or f'see {log}'}"
        elif status["state"] in ("failed", "preempted"):
            words = str(status["reason"])
        else:
            words = f"its job ended at step {steps[0]} of {steps[1]} without a word, see {log}"
        return f"{state}, {words}" if state else words

    def _newest(self) -> list[tuple[Backend, list[str]]]:
        """The newest job of each trial that has any, by backend."""
        newest = [jobs[-1] for jobs in self._jobs.values()]
        return [
            (BACKENDS[name], [job["id"] for job in newest if job["cluster"] == name])
            for name in {job["cluster"] for job in newest}
        ]

    def _alive(self) -> dict[str, str]:
        """Those of the newest jobs that wait or run, with their state."""
        found = [backend.alive(ids, self.jobs_folder) for backend, ids in self._newest()]
        return {job: state for states in found for job, state in states.items()}

    def _free_slot(self) -> int:
        """The first part of this host's GPUs that no job of this experiment computes on."""
        alive = self._alive()
        taken = {jobs[-1]["slot"] for jobs in self._jobs.values() if jobs[-1]["id"] in alive}
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)

    def _check(self, stored: Mapping[str, Part]) -> None:
        """Compare what is launched with what the folder holds.

        Raises:
            RunError: if the folder is another experiment's.
        """
        if stored and self.parts and ("" in stored) != ("" in self.parts):
            raise RunError(
                f"{self.folder}: this folder holds another launcher's experiment: choose another --out"
            )
        for name in stored.keys() & self.parts.keys():
            old, new = stored[name], self.parts[name]
            different = differences(old.config, new.config)
            if old.beton_sha256 != new.beton_sha256:
                path = new.config.data.path
                different.append(f"content of {path}: {old.beton_sha256[:12]} -> {new.beton_sha256[:12]}")
            if different:
                raise RunError(
                    f"{self.folder / name}: this folder holds an experiment with another config "
                    f"({'; '.join(different)}): choose another one with --out"
                )


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Take an experiment's folder for one launcher.

    Raises:
        ConfigError: if its path cannot stand in an sbatch script.
        RunError: if another launcher has it.
    """
    refuse_control_characters("--out", folder.absolute())
    busy = "another launcher is working on this experiment: wait for it, or choose another --out"
    with locked(folder, "experiment's folder", busy=busy, instead="choose --out"):
        yield


def default_folder(config: Path, kind: str) -> Path:
    """Where an experiment goes by default: beside the runs of its config, a file or a shipped one's name."""
    parent = config.resolve().parent.name if config.suffix else str(config.parent)
    return Path("runs") / parent / f"{config.stem}-{kind}"


def wanted(experiment: Experiment, standings: Sequence[Standing], *, retry: bool) -> list[Trial]:
    """The trials to submit of those asked for: the ones that never were and, with ``retry``, that failed."""
    states = ("new", "failed") if retry else ("new",)
    return [s.trial for s in standings if s.state in states and s.trial in experiment.asked]


def launch(
    folder: Path,
    parts: Mapping[str, Part],
    trials: Sequence[Trial],
    options: Options,
    report: Callable[[Experiment, list[Standing]], None],
    estimate: Callable[[Experiment, list[Trial], list[Trial]], str] | None = None,
) -> int:
    """Do with an experiment what the options ask for.

    Args:
        folder, parts, trials: see `Experiment`.
        options: from `settle`.
        report: writes what the launcher leaves, and prints where it is.
        estimate: says with ``--dry-run`` what the runs to come (last) cost, from those that are finished.

    Returns:
        The exit code: 1 if a run has failed, or the experiment was cancelled.
    """
    if options.cancel:
        jobs = count(Experiment(folder, parts, trials).cancel(), "job")
        tell(f"ferdist: cancelled {jobs}; --retry resumes the runs")
        return 0
    if options.dry_run:
        experiment = Experiment(folder, parts, trials)
        standings = experiment.standings()
        todo = wanted(experiment, standings, retry=options.retry)
        if not todo:
            tell("ferdist: there is nothing to submit")
            return 0
        if estimate is not None:
            print(estimate(experiment, [s.trial for s in standings if s.state == "finished"], todo))
        script = options.backend.script(experiment.request(todo, options))
        if script or estimate is None:
            print(script or options.described(len(todo)))
        return 0
    with claim(folder):
        experiment = Experiment(folder, parts, trials)
        standings = carry_out(experiment, options)
        report(experiment, standings)
        cancelled = experiment.is_cancelled
    unfinished = sum(standing.state != "finished" for standing in standings)
    if cancelled and unfinished:
        tell(f"ferdist: cancelled, {unfinished} of {len(standings)} runs not finished; --retry resumes them")
        return 1
    failed = sum(standing.state == "failed" for standing in standings)
    if failed:
        whole, which = count(len(standings), "run"), "it" if failed == 1 else "them"
        tell(f"ferdist: {failed} of {whole} failed; --retry submits {which} again")
    return int(failed > 0)


def carry_out(experiment: Experiment, options: Options) -> list[Standing]:
    """Submit what is wanted and, if asked to, wait until no job waits or runs; how the trials stand then.

    A backend without a queue is given a job when another ends, so its jobs are always waited for. Once the
    experiment is cancelled, it is given no more.
    """
    backend = options.backend
    queue = wanted(experiment, experiment.standings(), retry=options.retry)
    experiment.begin()
    if backend.queues and queue:
        experiment.submit(queue, options)
        tell(f"ferdist: submitted {count(len(queue), 'job')}")
        queue = []
    begun = time.monotonic()
    with _display() as show:
        while True:
            if experiment.is_cancelled:
                queue = []
                experiment.cancel()  # again and again: a job that is starting passes the signal over
            standings = experiment.standings()
            show(standings)
            active = sum(standing.state == "active" for standing in standings)
            if queue and active < (options.array_parallelism or 1):
                experiment.submit([queue.pop(0)], options)
            elif not active or not (options.wait or queue or not backend.queues):
                return standings
            else:
                time.sleep(min(backend.poll_seconds, max(0.5, (time.monotonic() - begun) / 20)))


@contextmanager
def _display() -> Iterator[Callable[[Sequence[Standing]], None]]:
    """Shows standings: on a terminal as a table that is redrawn, elsewhere as a line for each change."""
    console = Console(stderr=True)
    shown: dict[str, str] = {}

    def print_changes(standings: Sequence[Standing]) -> None:
        for standing in standings:
            words = standing.job if standing.state == "active" else standing.state
            words += f": {standing.reason}" if standing.reason else ""
            if shown.get(standing.trial.name) != words:
                shown[standing.trial.name] = words
                tell(f"ferdist: {standing.trial.name} {words}")

    if not console.is_terminal:
        yield print_changes
        return

    def draw_table(standings: Sequence[Standing]) -> None:
        table = Table("run", "state", "step", "reason")
        for standing in standings:
            steps = f"{standing.step}/{standing.total_steps}" if standing.total_steps else ""
            reason = Text(standing.reason or "")  # a path in it may look like markup
            table.add_row(standing.trial.name, standing.job or standing.state, steps, reason)
        live.update(table, refresh=True)

    with Live(console=console, auto_refresh=False) as live:
        yield draw_table


def _last_line(log: Path) -> str:
    """The last words of a job itself: SLURM's own come after them."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    said = [line.strip() for line in reversed(lines) if line.strip()]
    own = [line for line in said if not line.startswith(("srun:", "slurmstepd"))]
    last = next(iter(own or [line for line in said if "error:" in line]), "")
    return re.sub(r"^ferdist\.errors\.\w+: ", "", last)
