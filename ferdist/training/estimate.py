"""`python -m ferdist.training.estimate CONFIG OUT`: what a run would cost here, by doing a little of it.

It is started as a run is, also by torchrun; OUT gets the seconds of each part as JSON. The run folder that
the config names is written as a run writes it and is of no further use.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from ferdist.cli import is_main_rank, leave
from ferdist.config import Config, load_config
from ferdist.errors import FerdistError
from ferdist.io import write_json
from ferdist.runtime.claim import claimed
from ferdist.runtime.distributed import World, join_world
from ferdist.training.run import Job, open_data

WARMUP: Final = 3
"""Steps before the timed ones: compilation, the loader's start, the choice of kernels."""
TIMED_SECONDS: Final = 5.0
MOST_STEPS: Final = 50


def measure(config: Config) -> dict[str, float]:
    """Do a few steps at each resolution, two validations, a checkpoint and the final evaluation.

    Args:
        config: of the run, with a run_dir that may be written. Under torchrun every rank calls this.

    Returns:
        Seconds of a whole run by part: ``open``, ``train``, ``validate``, ``save``, ``finish``; and
        ``images_per_second`` of the training steps, ``steps``, and ``inside``: the seconds of measuring.
    """
    began = time.perf_counter()
    # The rate has no influence on the time; a tiny one keeps the weights finite wherever the steps begin.
    config = replace(config, train=replace(config.train, lr=1e-9))
    with join_world(config.device) as world:
        beton = open_data(config, world)
        taken = claimed(config, beton.manifest.sha256, world)
        with taken as folder, closing(Job(config, beton, world, folder)) as job:
            opened = time.perf_counter() - began
            total = job.plan.total_steps
            starts = [int(start * total) for start, _ in config.train.resolution] or [0]
            train = steady = 0.0
            for first, end in zip(starts, [*starts[1:], total], strict=True):
                extra, per_step = _time_steps(job, first, world)
                train += extra + per_step * (end - first)
                steady += per_step * (end - first)
            job.engine.step = total
            first_validation = _timed(job.validate, world)
            job.best = None  # so that this one writes the weights too
            validation = _timed(job.validate, world)
            save, finish = _timed(job.save, world), _timed(job.finish, world)
        saves = _saves(config, total, train)
    validations = -(-config.train.epochs // config.train.evaluate_every)
    return {
        "open": opened,
        "train": train,
        "validate": first_validation + (validations - 1) * validation,
        "save": saves * save,
        "finish": finish,
        "images_per_second": total * config.data.batch_size / steady,
        "steps": total,
        "inside": time.perf_counter() - began,
    }


def _time_steps(job: Job, first: int, world: World) -> tuple[float, float]:
    """From a step on: seconds that the first steps take beyond the usual, and seconds of a usual step."""
    job.engine.step = job.engine.read_at = first
    stream = job.engine.batches(job.loader, job.train_indices)

    def steps(number: int) -> Callable[[], None]:
        def take() -> None:
            for _ in range(number):
                job.engine.train_step(next(stream))
                job.show_progress()
            job.engine.read()

        return take

    left = job.plan.total_steps - first
    warm = min(WARMUP, left)
    started = _timed(steps(warm), world)
    if left <= warm:
        return 0.0, started / warm
    once = _timed(steps(1), world)
    number = int(world.from_main(min(MOST_STEPS, left - warm - 1, int(TIMED_SECONDS / once))))
    per_step = _timed(steps(number), world) / number if number > 0 else once
    stream.close()  # type: ignore[attr-defined]
    return max(0.0, started - warm * per_step), per_step


def _timed(work: Callable[[], object], world: World) -> float:
    """Seconds until the work is done, on the device too."""
    begun = time.perf_counter()
    work()
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return time.perf_counter() - begun


def _saves(config: Config, steps: int, seconds: float) -> float:
    """How many checkpoints a run of so many steps and seconds writes."""
    every, by_steps = config.train.checkpoint_seconds, config.train.checkpoint_steps
    by_clock = min(float(steps), seconds / every) if every > 0 else float(steps)
    return by_clock + (steps // by_steps if by_steps else 0) + 1


def main(arguments: list[str]) -> int:
    """Measure; rank 0 writes the file. An exit code, with one line on stderr where it cannot be done."""
    try:
        costs = measure(load_config(Path(arguments[0])))
    except FerdistError as error:
        print(f"ferdist: {error}", file=sys.stderr)
        return 1
    if is_main_rank():
        write_json(Path(arguments[1]), costs)
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
