"""What the runs of an experiment will cost, by those that have finished or else by a measurement here."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from ferdist.config import Config
from ferdist.errors import RunError, tell
from ferdist.runtime.experiment import Trial
from ferdist.runtime.folder import RunFolder
from ferdist.table import Number, Table, count
from launch.backends import Options, training_job
from launch.experiment import Experiment


class Cost(NamedTuple):
    """What one run costs: seconds from its job's start to its end, and where the numbers come from."""

    seconds: float
    images_per_second: float | None
    source: str


def estimate(
    experiment: Experiment, finished: Sequence[Trial], trials: Sequence[Trial], options: Options
) -> str:
    """A table of what is left to run: for each config the cost of a run, and of all.

    If one of them would have to be measured on a GPU that only the jobs will have, a line that says so.

    Args:
        experiment: the experiment.
        finished: its finished runs; a config that has some is not measured.
        trials: the runs to come, at least one.
        options: of the jobs.

    Raises:
        RunError: if a run cannot be measured here.
    """
    parts = dict.fromkeys(trial.part for trial in trials)
    done = {part: [experiment.run_dir(one) for one in finished if one.part == part] for part in parts}
    if options.backend.queues and not torch.cuda.is_available():
        jobs = [training_job(experiment.parts[part].config, options) for part in parts if not done[part]]
        if any(job.config["device"] == "cuda" for job in jobs):
            return "this host has no GPU, but the jobs will: measure on a node like theirs (srun --pty)"
    costs: dict[str, Cost] = {}
    for part in parts:
        if done[part]:
            costs[part] = cost_of_finished(done[part], _start_seconds())
            continue
        tell(f"ferdist: measuring {part or 'the config'} on this host")
        first = next(trial for trial in trials if trial.part == part)
        costs[part] = measure(experiment.run_config(first), options)
    return _as_text(costs, trials, options)


def cost_of_finished(runs: Sequence[Path], start: float) -> Cost:
    """The median of what finished runs took, and the seconds that a process takes to start."""
    seconds, rates = [], []
    for run in map(RunFolder, runs):
        lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
        rates += [line["rate/images_per_second"] for line in lines if line.get("rate/images_per_second")]
        started = datetime.fromisoformat(run.stored_environment()["date"])
        ended = datetime.fromisoformat(run.stored_status()["updated"])
        # Only the difference has the final evaluation; of a resumed run, it lacks the first part.
        seconds.append(max(float(lines[-1]["time"]), (ended - started).total_seconds()))
    rate = statistics.median(rates) if rates else None
    return Cost(statistics.median(seconds) + start, rate, count(len(runs), "finished run"))


def measure(config: Config, options: Options) -> Cost:
    """Start a run as a job would, do a little of each of its parts, and extrapolate the whole from that.

    Raises:
        RunError: if that fails; the message is the run's.
    """
    with tempfile.TemporaryDirectory(prefix="ferdist-estimate-") as name:
        folder = Path(name)
        values = training_job(replace(config, run_dir=str(folder / "run")), options).config
        (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks)]
        command = [
            sys.executable,
            *(launcher if options.ranks > 1 else []),
            *("-m", "ferdist.training.estimate", str(folder / "config.yaml"), str(folder / "cost.json")),
        ]
        begun = time.monotonic()
        done = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": str(options.cores)},
            capture_output=True,
            text=True,
            check=False,
        )
        wall = time.monotonic() - begun
        if done.returncode or not (folder / "cost.json").exists():
            lines = [line for line in done.stderr.splitlines() if line.startswith("ferdist: ")]
            reason = lines[-1].removeprefix("ferdist: ") if lines else f"exit code {done.returncode}"
            raise RunError(f"{config.model.name}: its cost cannot be measured here: {reason}")
        costs = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    parts = ("open", "train", "validate", "save", "finish")
    start = wall - costs["inside"]
    return Cost(start + sum(costs[part] for part in parts), costs["images_per_second"], "measured here")


def _start_seconds() -> float:
    """Seconds from the start of a process to that of its training: imports, mostly."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import ferdist.training.run"], check=True)
    return time.monotonic() - begun


def _as_text(costs: Mapping[str, Cost], trials: Sequence[Trial], options: Options) -> str:
    cores, gpus = options.nodes * options.ranks * options.cores, options.nodes * options.node_gpus
    rows, total = [], 0.0
    for part, cost in costs.items():
        runs = sum(trial.part == part for trial in trials)
        total += runs * cost.seconds
        rate = None if cost.images_per_second is None else count(round(cost.images_per_second))
        one = {"runs": count(runs), "images/s": rate, "a run": _clock(cost.seconds)}
        rows.append(
            {"config": part or "all", **one, **_hours(runs * cost.seconds, cores, gpus), "from": cost.source}
        )
    rows.append({"config": "together", "runs": count(len(trials)), **_hours(total, cores, gpus)})
    longest = max(costs[trial.part].seconds for trial in trials)
    parallel = min(options.array_parallelism or len(trials), len(trials))
    return (
        f"{Table.of('Cost', rows).text()}\n"
        f"about {_clock(max(longest, total / parallel))} with {parallel} at a time, without waiting in a "
        f"queue; {count(cores, 'core')} per run"
    )


def _hours(seconds: float, cores: int, gpus: int) -> dict[str, str | None]:
    hours = seconds / 3600
    return {
        "core h": Number(f"{hours * cores:.2f}"),
        "GPU h": Number(f"{hours * gpus:.2f}") if gpus else None,
    }


def _clock(seconds: float) -> Number:
    """H:MM:SS, with days where there are some."""
    return Number(timedelta(seconds=round(seconds)))
