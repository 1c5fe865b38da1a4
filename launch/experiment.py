"""An experiment: several runs in one folder, each a job of its own; submitted once, watched, gone on with."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from submitit.core.utils import JobPaths

from ferdist.config import Config, differences, load_config, to_dict
from ferdist.data.beton import Beton, open_beton
from ferdist.errors import ConfigError, FerdistError, Preempted, RunError
from ferdist.io import locked, write_json
from ferdist.runtime.experiment import FILE, SCHEMA, Cell, Part, read_experiment
from ferdist.runtime.folder import RunFolder
from launch.executor import (
    Options,
    add_cluster_options,
    last_state,
    live_jobs,
    positive,
    refuse_control_characters,
    sbatch_text,
    submit,
)

_LONGEST_POLL: Final = 30.0
"""Seconds between two looks at SLURM; this host is asked more often: there the next job waits for it."""
_LOCAL_POLL: Final = 1.0


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The arguments of a launcher of one config."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file")
    add_options(parser, "in runs/, by the config")
    return parser


def add_options(parser: argparse.ArgumentParser, default_folder: str) -> None:
    """The arguments that all launchers take; where the experiment goes by default is said in the help."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the training config")
    parser.add_argument(
        "--seeds", type=positive, default=1, metavar="N", help="N seeds, from the config's on (default 1)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"the experiment's folder (default: {default_folder})"
    )
    parser.add_argument("--retry", action="store_true", help="submit again what failed")
    add_cluster_options(parser)


def read_config(path: Path, overrides: Sequence[str], own_keys: Mapping[str, str]) -> tuple[Config, Beton]:
    """A training config and its beton.

    Args:
        path: of the config.
        overrides: ``key=value``.
        own_keys: keys that the launcher sets itself, with the reason.

    Raises:
        ConfigError: if one of those is given, or no beton.
        DataError: if the beton cannot be opened.
    """
    for override in overrides:
        if reason := own_keys.get(override.partition("=")[0]):
            raise ConfigError(f"{override}: the launcher sets this key itself: {reason}")
    config = load_config(path, overrides)
    if not config.data.path:
        raise ConfigError("data.path is not set: give the beton file, data.path=DIR/NAME.beton")
    return config, open_beton(Path(config.data.path))


@dataclass(frozen=True)
class Standing:
    """How a cell stands.

    Attributes:
        cell: the cell.
        state: ``finished``, ``new`` (never submitted), ``failed``, or ``active`` (its job waits or runs).
        job: what the cluster says of its job, such as PENDING; empty where there is none.
        reason: why it failed.
        step, total_steps: how far the run is.
    """

    cell: Cell
    state: str
    job: str = ""
    reason: str | None = None
    step: int = 0
    total_steps: int = 0


class Experiment:
    """The runs of one config, or of several, and what is known of their jobs.

    Attributes:
        folder: of the experiment; absolute, since jobs may start elsewhere.
        parts: its configs by name, those of earlier launches included; an only one is called "".
        cells: its runs, those of earlier launches included: all of the first seed, then all of the next.
        asked: the runs of this launch.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Part], cells: Sequence[Cell]) -> None:
        self.folder, self.asked = folder.absolute(), frozenset(cells)
        refuse_control_characters("--out", self.folder)
        self._jobs: dict[str, list[dict[str, Any]]] = {}
        self.parts = dict(parts)
        known: list[Cell] = []
        if self._file.exists():
            stored = read_experiment(self.folder)
            self._check(stored.parts)
            self.parts, known, self._jobs = {**stored.parts, **parts}, stored.cells, stored.jobs
        place = {name: number for number, name in enumerate(self.parts)}
        self.cells = sorted({*cells, *known}, key=lambda cell: (cell.seed, place[cell.part], cell.fold or 0))

    @property
    def jobs_folder(self) -> Path:
        """submitit's files and the output of the jobs."""
        return self.folder / "jobs"

    @property
    def job_name(self) -> str:
        """What the queue shows."""
        return f"ferdist-{self.folder.name}"

    @property
    def _file(self) -> Path:
        return self.folder / FILE

    def run_dir(self, cell: Cell) -> Path:
        """The run's folder."""
        return self.folder / cell.name

    def run_config(self, cell: Cell) -> Config:
        """The whole config of a cell's run."""
        config = self.parts[cell.part].config
        data = replace(config.data, path=str(Path(config.data.path).absolute()))
        if cell.fold is not None:
            inner = data.fold is not None
            data = replace(data, inner_fold=cell.fold) if inner else replace(data, fold=cell.fold)
        return replace(config, data=data, seed=cell.seed, run_dir=str(self.run_dir(cell)))

    def submit(self, cells: Sequence[Cell], options: Options) -> None:
        """Send the jobs of cells, and note their numbers before anything else happens."""
        slot = self._free_slot()
        configs = [self.run_config(cell) for cell in cells]
        submitted = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ids = submit(options, self.jobs_folder, self.job_name, configs, slot)
        for cell, job in zip(cells, ids, strict=True):
            record = {"cluster": options.cluster, "id": job, "submitted": submitted, "slot": slot}
            self._jobs.setdefault(cell.name, []).append(record)
        self.write()

    def write(self) -> None:
        """Write experiment.json."""
        stored = {
            "schema": SCHEMA,
            "parts": {
                name: {"beton_sha256": part.beton_sha256, "config": to_dict(part.config)}
                for name, part in self.parts.items()
            },
            "cells": {
                cell.name: {"fold": cell.fold, "seed": cell.seed, "part": cell.part} for cell in self.cells
            },
            "jobs": self._jobs,
        }
        write_json(self._file, stored)

    def standings(self) -> list[Standing]:
        """How all cells stand now."""
        alive = self._alive()
        return [self._standing(cell, alive) for cell in self.cells]

    def _standing(self, cell: Cell, alive: dict[str, str]) -> Standing:
        folder = RunFolder(self.run_dir(cell))
        progress = folder.progress()
        steps = (int(progress.get("step", 0)), int(progress.get("total_steps", 0)))
        job = self._jobs.get(cell.name, [None])[-1]
        if job is not None and job["id"] in alive:
            return Standing(cell, "active", alive[job["id"]], None, *steps)
        if folder.state() == "finished" and folder.results.exists():
            return Standing(cell, "finished", "", None, *steps)
        if job is None:
            return Standing(cell, "new")
        state = last_state(job["cluster"], job["id"], self.jobs_folder) or ""
        return Standing(cell, "failed", state, self._reason(folder, job, state, steps), *steps)

    def _reason(self, folder: RunFolder, job: dict[str, Any], state: str, steps: tuple[int, int]) -> str:
        """Why a cell whose job has ended is not finished, in a line."""
        log = JobPaths(self.jobs_folder, job["id"], 0).stderr
        status = folder.stored_status()
        if status.get("updated", "") < job["submitted"]:  # an earlier job wrote it
            words = f"its job ended before the training began: {_last_line(log) or f'see {log}'}"
        elif status["state"] in ("failed", "preempted"):
            words = str(status["reason"])
        else:
            words = f"its job ended at step {steps[0]} of {steps[1]} without a word, see {log}"
        return f"{state}, {words}" if state else words

    def _alive(self) -> dict[str, str]:
        """The newest jobs of the cells that wait or run, with their state."""
        newest = [jobs[-1] for jobs in self._jobs.values()]
        alive: dict[str, str] = {}
        for cluster in {job["cluster"] for job in newest}:
            ids = {job["id"] for job in newest if job["cluster"] == cluster}
            alive |= live_jobs(cluster, ids, self.jobs_folder)
        return alive

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
                f"{self.folder}: the experiment of another launcher: choose another one with --out"
            )
        for name in stored.keys() & self.parts.keys():
            old, new = stored[name], self.parts[name]
            different = differences(old.config, new.config)
            if old.beton_sha256 != new.beton_sha256:
                path = new.config.data.path
                different.append(f"content of {path}: {old.beton_sha256[:12]} -> {new.beton_sha256[:12]}")
            if different:
                raise RunError(
                    f"{self.folder / name}: this folder holds the experiment of another config "
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
    busy = "another launcher is at work on this experiment: wait for it, or choose --out"
    with locked(folder, "experiment's folder", busy=busy, instead="choose --out"):
        yield


def default_folder(config: Path, kind: str) -> Path:
    """Where an experiment goes by default: beside the runs of its config."""
    return Path("runs") / config.resolve().parent.name / f"{config.stem}-{kind}"


def wanted(experiment: Experiment, standings: Sequence[Standing], *, retry: bool) -> list[Cell]:
    """The cells to submit of those asked for: the ones that never were and, with ``retry``, that failed."""
    states = ("new", "failed") if retry else ("new",)
    return [s.cell for s in standings if s.state in states and s.cell in experiment.asked]


def print_script(experiment: Experiment, options: Options, *, retry: bool) -> None:
    """Print the script that `carry_out` would hand to sbatch."""
    jobs = len(wanted(experiment, experiment.standings(), retry=retry))
    if jobs:
        print(sbatch_text(options, experiment.jobs_folder, experiment.job_name, jobs))
    else:
        print("ferdist: there is nothing to submit", file=sys.stderr)


def carry_out(experiment: Experiment, options: Options, *, retry: bool, wait: bool) -> list[Standing]:
    """Submit what is wanted and, if asked to, watch until no job waits or runs; how the cells stand then.

    SLURM takes all at once and holds back what is too much; on this host that is done here, which is why
    jobs of this host are always waited for.
    """
    standings = experiment.standings()
    queue = wanted(experiment, standings, retry=retry)
    experiment.write()
    if options.cluster == "slurm" and queue:
        experiment.submit(queue, options)
        print(f"ferdist: submitted {len(queue)} jobs", file=sys.stderr)
        queue = []
    begun, longest = time.monotonic(), _LONGEST_POLL if options.cluster == "slurm" else _LOCAL_POLL
    with _display() as show:
        while True:
            standings = experiment.standings()
            show.update(standings)
            active = sum(standing.state == "active" for standing in standings)
            if queue and active < (options.parallel or 1):
                experiment.submit([queue.pop(0)], options)
            elif not active or not (wait or queue or options.cluster == "local"):
                return standings
            else:
                time.sleep(min(longest, max(0.5, (time.monotonic() - begun) / 20)))


@contextmanager
def _display() -> Iterator[_Lines | _LiveTable]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    with Live(console=console, auto_refresh=False) as live:
        yield _LiveTable(live)


class _LiveTable:
    """The standings as a table that is drawn anew."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def update(self, standings: Sequence[Standing]) -> None:
        """Show them."""
        table = Table("run", "state", "step", "reason")
        for standing in standings:
            steps = f"{standing.step}/{standing.total_steps}" if standing.total_steps else ""
            reason = Text(standing.reason or "")  # a path in it may look like markup
            table.add_row(standing.cell.name, standing.job or standing.state, steps, reason)
        self._live.update(table, refresh=True)


class _Lines:
    """A line for each change."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def update(self, standings: Sequence[Standing]) -> None:
        """Show what is new."""
        for standing in standings:
            words = standing.job if standing.state == "active" else standing.state
            words += f": {standing.reason}" if standing.reason else ""
            if self._shown.get(standing.cell.name) != words:
                self._shown[standing.cell.name] = words
                print(f"ferdist: {standing.cell.name} {words}", file=sys.stderr, flush=True)


def speak(body: Callable[[], int]) -> int:
    """Run a launcher; an exit code, with one line on stderr where it cannot go on."""
    # submitit's messages go to stdout, which is for results; its errors arrive here as exceptions.
    logging.getLogger("submitit").setLevel(logging.CRITICAL)
    try:
        return body()
    except Preempted as error:
        print(f"ferdist: {error}", file=sys.stderr)
        return os.EX_TEMPFAIL
    except FerdistError as error:
        print(f"ferdist: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"ferdist: {error.filename or 'unexpected'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ferdist: left; jobs on a cluster go on, the same command shows them again", file=sys.stderr)
        return 130


def count_failed(standings: Sequence[Standing]) -> int:
    """Say how many cells have failed, and what helps."""
    failed = sum(standing.state == "failed" for standing in standings)
    if failed:
        print(
            f"ferdist: {failed} of {len(standings)} runs failed; --retry submits them again", file=sys.stderr
        )
    return failed


def _last_line(log: Path) -> str:
    """The last words of a job itself: SLURM's own come after them."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    own = (line.strip() for line in reversed(lines) if not line.startswith(("srun:", "slurmstepd:")))
    return next((line for line in own if line), "")
