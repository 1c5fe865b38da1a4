"""`python -m launch.train CONFIG --nodes N --gpus-per-node M [options] [key=value ...]`: one job per seed.

The folder of the experiment holds a run folder for each seed, ``experiment.json`` and ``jobs/``, as that of
``launch.kfold`` does. The run folders are printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from ferdist.runtime.experiment import Cell, Part
from launch.executor import read_options
from launch.experiment import (
    Experiment,
    carry_out,
    claim,
    count_failed,
    default_folder,
    make_parser,
    print_script,
    read_config,
    speak,
)

_OWN_KEYS = {"run_dir": "give --out"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launcher.

    Returns:
        0; 1 if a run has failed or the launcher cannot go on, with one line on stderr; 2 for wrong usage.
    """
    parser = make_parser("launch.train", "Train on one node or several, a job for each seed.")
    return speak(lambda: _launch(parser.parse_intermixed_args(argv)))


def _launch(arguments: argparse.Namespace) -> int:
    options = read_options(arguments, for_script=arguments.dry_run)
    config, beton = read_config(arguments.config, arguments.overrides, _OWN_KEYS)
    folder = arguments.out or default_folder(arguments.config, "seeds")
    cells = [Cell(None, seed) for seed in range(config.seed, config.seed + arguments.seeds)]
    parts = {"": Part(replace(config, seed=0, run_dir=""), beton.manifest.sha256)}
    if arguments.dry_run:
        print_script(Experiment(folder, parts, cells), options, retry=arguments.retry)
        return 0
    with claim(folder):
        experiment = Experiment(folder, parts, cells)
        standings = carry_out(experiment, options, retry=arguments.retry, wait=arguments.wait)
    for standing in standings:
        print(experiment.run_dir(standing.cell))
    return int(count_failed(standings) > 0)


if __name__ == "__main__":
    sys.exit(main())
