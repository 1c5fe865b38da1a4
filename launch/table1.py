"""`python -m launch.table1 [options] [key=value ...]`: every network on every data set, fold and seed.

A network on a data set is the config ``configs/DATASET/NETWORK.yaml``; where that holds a fold out, each fold
is held out in turn. All runs of the grid are one job array. The experiment's folder holds a run folder for
each, ``DATASET/NETWORK/fold-00-seed-0`` or ``DATASET/NETWORK/seed-0``, ``experiment.json``, ``jobs/`` and
``table1.md``, which every call writes anew; ``ferdist report`` makes a whole report of it. The same command
given again submits nothing twice, one with further networks, data sets or seeds adds them.

``--dry-run`` says what the runs would cost: a few steps, validations and the final evaluation of each network
are done on this host, unless there are finished runs to go by.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ferdist.errors import ConfigError
from ferdist.evaluation.pool import folds_of, shared_config
from ferdist.io import write_text
from ferdist.reporting.networks import load_networks
from ferdist.reporting.table1 import group_by_data, networks_markdown
from ferdist.runtime.experiment import Cell, Part
from launch.estimate import estimate
from launch.executor import read_options
from launch.experiment import (
    Experiment,
    add_options,
    carry_out,
    claim,
    count_failed,
    print_script,
    read_config,
    speak,
    wanted,
)

DATASETS: Final = ("fer2013", "ckplus")
NETWORKS: Final = ("resnet18_cbam", "resnet18", "alexnet", "vgg16", "kernel_cnn", "mianet", "aprnet50")
"""Those of the paper's Table 1, and its network without attention."""

_OWN_KEYS: Final = {
    "data.fold": "every fold of the data is held out in turn",
    "data.inner_fold": "choose settings with launch.kfold --inner-of first",
    "model.name": "give --models",
    "run_dir": "give --out",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launcher.

    Returns:
        0; 1 if a run has failed or the launcher cannot go on, with one line on stderr; 2 for wrong usage.
    """
    parser = argparse.ArgumentParser(
        prog="python -m launch.table1", description="Train every network on every data set, fold and seed."
    )
    for name, default in (("datasets", DATASETS), ("models", NETWORKS)):
        parser.add_argument(
            f"--{name}",
            type=_names,
            default=default,
            metavar="A,B",
            help=f"default: {','.join(default)}",
        )
    parser.add_argument(
        "--configs", type=Path, default=Path("configs"), metavar="DIR", help="holds DATASET/NETWORK.yaml"
    )
    add_options(parser, "runs/table1")
    return speak(lambda: _launch(parser.parse_intermixed_args(argv)))


def _launch(arguments: argparse.Namespace) -> int:
    options = read_options(arguments)
    parts, cells = read_grid(arguments)
    folder = arguments.out or Path("runs/table1")
    if arguments.dry_run:
        experiment = Experiment(folder, parts, cells)
        standings = experiment.standings()
        todo = wanted(experiment, standings, retry=arguments.retry)
        if todo:
            finished = [standing.cell for standing in standings if standing.state == "finished"]
            print(estimate(experiment, finished, todo, options))
        else:
            print("ferdist: there is nothing to submit", file=sys.stderr)
        if options.cluster == "slurm" and todo:
            print_script(experiment, options, retry=arguments.retry)
        return 0
    with claim(folder):
        experiment = Experiment(folder, parts, cells)
        standings = carry_out(experiment, options, retry=arguments.retry, wait=arguments.wait)
        print(write_table1(experiment))
    return int(count_failed(standings) > 0)


def write_table1(experiment: Experiment) -> Path:
    """Write table1.md from the finished runs; its path."""
    path = experiment.folder / "table1.md"
    write_text(path, networks_markdown(group_by_data(load_networks([experiment.folder]))))
    return path


def read_grid(arguments: argparse.Namespace) -> tuple[dict[str, Part], list[Cell]]:
    """The configs of the grid by ``DATASET/NETWORK``, and its runs.

    Raises:
        ConfigError: if a config is missing or wrong, or one beton is given for several data sets.
        DataError: if a beton cannot be opened.
    """
    if len(arguments.datasets) > 1:
        for override in arguments.overrides:
            if override.startswith("data.path="):
                raise ConfigError(f"{override}: the data sets have a beton each: give one of --datasets")
    parts, cells = {}, []
    for dataset in arguments.datasets:
        for model in arguments.models:
            path, name = arguments.configs / dataset / f"{model}.yaml", f"{dataset}/{model}"
            config, beton = read_config(path, arguments.overrides, _OWN_KEYS)
            parts[name] = Part(shared_config(config), beton.manifest.sha256)
            folds: list[int] | list[None] = folds_of(beton, config) or [None]
            seeds = range(config.seed, config.seed + arguments.seeds)
            cells += [Cell(fold, seed, name) for seed in seeds for fold in folds]
    return parts, cells


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r}: write names with commas between them")
    return names


if __name__ == "__main__":
    sys.exit(main())
