"""Kill many trainings, each at a random moment, resume each and compare its end with an unbroken run's.

By hand: ``python -m tests.faults.kill_many --kills 20 [--processes 2] [KEY=VALUE]...``
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from ferdist.config import Config
from ferdist.data import prepare
from tests.faults.processes import STEPS, Training, finish, metrics_of, newest_step, small_config, unequal

SEEDS = 2
"""Kills are spread over so many seeds of the run, each with an unbroken run of its own."""


def main() -> int:
    """Print a line for each kill and the number of ends that were bit-identical; 0 if all were."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=0, help="of torchrun; 0 is one without it")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the run's config")
    arguments = parser.parse_args()
    begin, draw, identical = time.monotonic(), random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as place:
        faces = prepare.synthetic(Path(place) / "faces", images=140, seed=1)
        for number in range(arguments.kills):
            seed = number % SEEDS
            # Half of the runs have a checkpoint at each step, the others have steps to do again.
            interval = draw.choice((0, 2))
            options = (f"seed={seed}", f"train.checkpoint_seconds={interval}", *arguments.overrides)
            whole = Path(place) / f"whole-{seed}"
            if not whole.exists():
                finish(small_config(faces, whole, *options), arguments.processes)
            config = small_config(faces, Path(place) / "killed", *options)
            killed = kill(config, draw, arguments.processes)
            finish(config, arguments.processes)
            found = unequal(whole, Path(config.run_dir))
            identical += not found
            print(f"{number + 1}: seed {seed}, {killed}: {', '.join(found) or 'bit-identical'}", flush=True)
            shutil.rmtree(config.run_dir)
    print(f"{identical} of {arguments.kills} ends bit-identical, {time.monotonic() - begin:.0f} s")
    return int(identical < arguments.kills)


def kill(config: Config, draw: random.Random, processes: int) -> str:
    """SIGKILL at a random moment of a run; the moment, in words."""
    folder, step = Path(config.run_dir), draw.randrange(STEPS)
    training = Training(config, processes)
    try:
        training.wait_until(lambda: reached(folder) >= step)
        time.sleep(draw.random())
        training.kill()
    finally:
        training.close()
    return f"killed after step {reached(folder)}, checkpoint of step {newest_step(folder)}"


def reached(folder: Path) -> int:
    """The last step that the run's folder tells of."""
    lines = metrics_of(folder)
    return max(newest_step(folder), lines[-1]["step"] if lines else 0)


if __name__ == "__main__":
    raise SystemExit(main())
