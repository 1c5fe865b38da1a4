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

from ferdist.config import Config, load_config
from ferdist.errors import exit_code, is_main_rank, leave
from ferdist.io import write_json
from ferdist.runtime.claim import claimed
from ferdist.runtime.distributed import World
from ferdist.training.build import build, join_training
from ferdist.training.run import Run, open_data

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
    with join_training(config) as world:
        beton = open_data(config, world)
        with (
            claimed(config, beton.manifest.sha256, world) as folder,
            closing(Run(build(config, beton, world), folder)) as run,
        ):
            opened = time.perf_counter() - began
            total = run.setup.plan.total_steps
            starts = [int(start * total) for start, _ in config.train.resolution] or [0]
            train = steady = 0.0
            for first, end in zip(starts, [*starts[1:], total], strict=True):
                extra, per_step = _time_steps(run, first)
                train += extra + per_step * (end - first)
                steady += per_step * (end - first)
            run.engine.skip_to(total)
            first_validation, validation = (_timed(run.validate, world) for _ in range(2))
            if world.is_main:
                validation += _timed(run.save_best, world)
            save, finish = _timed(run.save, world), _timed(run.finish, world)
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


def _time_steps(run: Run, first: int) -> tuple[float, float]:
    """From a step on: seconds that the first steps take beyond the usual, and seconds of a usual step."""
    world = run.world
    run.engine.skip_to(first)
    stream = run.setup.batches()

    def seconds(steps: int) -> float:
        def take() -> None:
            for _ in range(steps):
                run.engine.train_step(next(stream))
                run.show_progress()
            run.engine.read()

        return _timed(take, world)

    left = run.setup.plan.total_steps - first
    warm = min(WARMUP, left)
    started = seconds(warm)
    if left <= warm:
        return 0.0, started / warm
    once = seconds(1)
    number = int(world.from_main(min(MOST_STEPS, left - warm - 1, int(TIMED_SECONDS / once))))
    per_step = seconds(number) / number if number > 0 else once
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


def main(config: str, out: str) -> None:
    """Measure; rank 0 writes the file."""
    costs = measure(load_config(Path(config)))
    if is_main_rank():
        write_json(Path(out), costs)


if __name__ == "__main__":
    leave(exit_code(lambda: main(*sys.argv[1:])))
