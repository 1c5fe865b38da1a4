"""What the runs of an experiment will cost: from those that are finished, else measured on this host."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import torch
import yaml

from ferdist.config import Config
from ferdist.errors import RunError
from ferdist.runtime.experiment import Cell
from ferdist.runtime.folder import RunFolder
from launch.executor import Options, training_job
from launch.experiment import Experiment

MEASURED: Final = "measured here"


@dataclass(frozen=True)
class Cost:
    """What one run costs.

    Attributes:
        seconds: from the job's start to its end.
        images_per_second: of training; None where it is not known.
        source: where the figures come from.
    """

    seconds: float
    images_per_second: float | None
    source: str


def estimate(
    experiment: Experiment, finished: Sequence[Cell], cells: Sequence[Cell], options: Options
) -> str:
    """A table of what is left to run: for each config the cost of a run, and of all.

    Args:
        experiment: the experiment.
        finished: its finished runs; a config that has some is not measured.
        cells: the runs to come, at least one.
        options: of the jobs.

    Returns:
        Text: a line per config, the sum, and what it rests on.

    Raises:
        RunError: if a run cannot be measured here.
    """
    costs: dict[str, Cost] = {}
    for part in dict.fromkeys(cell.part for cell in cells):
        done = [experiment.run_dir(cell) for cell in finished if cell.part == part]
        if done:
            costs[part] = cost_of_finished(done, _start_seconds())
            continue
        first = next(cell for cell in cells if cell.part == part)
        print(f"ferdist: measuring {part or 'the config'} on this host", file=sys.stderr, flush=True)
        costs[part] = measure(experiment.run_config(first), options)
    return _as_text(costs, cells, options)


def cost_of_finished(runs: Sequence[Path], start: float) -> Cost:
    """The median of what finished runs took, and the seconds that a process takes to start."""
    seconds = [_spent(RunFolder(run)) for run in runs]
    rates = [rate for run in runs for rate in _rates(RunFolder(run))]
    word = "run" if len(runs) == 1 else "runs"
    return Cost(
        statistics.median(seconds) + start,
        statistics.median(rates) if rates else None,
        f"{len(runs)} finished {word}",
    )


def measure(config: Config, options: Options) -> Cost:
    """Start a run as a job would, do a little of each of its parts, and reckon the whole from that.

    Raises:
        RunError: if that fails; the message is the run's.
    """
    with tempfile.TemporaryDirectory(prefix="ferdist-estimate-") as name:
        folder = Path(name)
        values = training_job(replace(config, run_dir=str(folder / "run")), options).config
        (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.tasks)]
        command = [
            sys.executable,
            *(launcher if options.tasks > 1 else []),
            *("-m", "ferdist.training.estimate", str(folder / "config.yaml"), str(folder / "cost.json")),
        ]
        begun = time.monotonic()
        done = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": str(options.cpus)},
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
    return Cost(start + sum(costs[part] for part in parts), costs["images_per_second"], MEASURED)


def _spent(run: RunFolder) -> float:
    """Seconds of a finished run without the start of its process."""
    lines = run.metrics.read_text(encoding="utf-8").splitlines()
    recorded = float(json.loads(lines[-1])["time"])
    started = datetime.fromisoformat(run.stored_environment()["date"])
    ended = datetime.fromisoformat(run.stored_status()["updated"])
    # The final evaluation is in the difference only; of a run that was resumed, its first part is not.
    return max(recorded, (ended - started).total_seconds())


def _rates(run: RunFolder) -> list[float]:
    lines = map(json.loads, run.metrics.read_text(encoding="utf-8").splitlines())
    return [line["rate/images_per_second"] for line in lines if line.get("rate/images_per_second")]


def _start_seconds() -> float:
    """Seconds from the start of a process to that of its training: imports, mostly."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import ferdist.training.run"], check=True)
    return time.monotonic() - begun


def _as_text(costs: Mapping[str, Cost], cells: Sequence[Cell], options: Options) -> str:
    cores = options.nodes * options.tasks * options.cpus
    head = f"{'':<28}{'runs':>6}{'img/s':>9}{'a run':>10}{'core h':>9}{'GPU h':>8}  from"
    lines, total = [head], 0.0
    for part, cost in costs.items():
        runs = sum(cell.part == part for cell in cells)
        seconds = runs * cost.seconds
        total += seconds
        rate = "" if cost.images_per_second is None else f"{cost.images_per_second:,.0f}"
        lines.append(
            f"{part or 'all':<28}{runs:>6}{rate:>9}{_clock(cost.seconds):>10}"
            f"{seconds * cores / 3600:>9.2f}{_gpu_hours(seconds, options):>8}  {cost.source}"
        )
    lines.append(
        f"{'together':<28}{len(cells):>6}{'':>9}{'':>10}"
        f"{total * cores / 3600:>9.2f}{_gpu_hours(total, options):>8}"
    )
    longest = max(costs[cell.part].seconds for cell in cells)
    parallel = min(options.parallel or len(cells), len(cells))
    lines.append(
        f"about {_clock(max(longest, total / parallel))} with {parallel} at a time, without waiting in a "
        f"queue; {cores} {'core' if cores == 1 else 'cores'} a run"
    )
    measured = any(cost.source == MEASURED for cost in costs.values())
    if measured and options.cluster == "slurm" and options.gpus and not torch.cuda.is_available():
        lines.append("this host has no GPU, but the jobs will: measure on a node like theirs (srun --pty)")
    return "\n".join(lines)


def _gpu_hours(seconds: float, options: Options) -> str:
    return f"{seconds * options.nodes * options.gpus / 3600:.2f}" if options.gpus else "-"


def _clock(seconds: float) -> str:
    """H:MM:SS, with days where there are some."""
    return str(timedelta(seconds=round(seconds)))
