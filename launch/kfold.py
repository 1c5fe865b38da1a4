"""`python -m launch.kfold CONFIG [options] [key=value ...]`: each fold of the data held out in turn.

One job is one fold with one seed. The experiment's folder holds a run folder for each, ``experiment.json``
(config, runs and the numbers of their jobs), ``jobs/`` (submitit's files and the output of the jobs) and
``summary.json`` and ``summary.md``, which every call writes anew. The same command given again submits
nothing twice: it shows how the jobs stand. With ``--retry`` it submits those that failed.

With ``--inner-of FOLD`` that fold is left out of everything and the others are held out in turn, so that a
schedule can be chosen without it (docs/protocol.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ferdist.data.beton import Beton
from ferdist.errors import DataError
from ferdist.evaluation.kfold import summarise
from ferdist.evaluation.pool import shared_config
from ferdist.io import write_json, write_text
from ferdist.reporting.kfold import kfold_markdown
from ferdist.runtime.experiment import Cell, Part
from launch.executor import read_options
from launch.experiment import (
    Experiment,
    Standing,
    carry_out,
    claim,
    count_failed,
    default_folder,
    make_parser,
    print_script,
    read_config,
    speak,
)

_OWN_KEYS = {
    "data.fold": "every fold of the data is held out in turn",
    "data.inner_fold": "give --inner-of",
    "run_dir": "give --out",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launcher.

    Returns:
        0; 1 if a run has failed or the launcher cannot go on, with one line on stderr; 2 for wrong usage.
    """
    parser = make_parser("launch.kfold", "Train with each fold of the data held out in turn.")
    parser.add_argument(
        "--inner-of",
        type=int,
        metavar="FOLD",
        help="leave this fold out of all runs and hold out each other one in turn: for choosing settings",
    )
    return speak(lambda: _launch(parser.parse_intermixed_args(argv)))


def _launch(arguments: argparse.Namespace) -> int:
    options = read_options(arguments, for_script=arguments.dry_run)
    config, beton = read_config(arguments.config, arguments.overrides, _OWN_KEYS)
    if not beton.manifest.folds:
        raise DataError(f"{beton.path}: it has no folds: prepare the data with --folds")
    kind, shared, folds = "kfold", shared_config(config), sorted(map(int, beton.manifest.folds))
    if arguments.inner_of is not None:
        if arguments.inner_of not in folds:
            raise DataError(f"{beton.path}: there is no fold {arguments.inner_of}: it has 0 to {folds[-1]}")
        kind = f"inner{arguments.inner_of}"
        shared = replace(shared, data=replace(shared.data, fold=arguments.inner_of))
        folds.remove(arguments.inner_of)
    folder = arguments.out or default_folder(arguments.config, kind)
    seeds = range(config.seed, config.seed + arguments.seeds)
    cells = [Cell(fold, seed) for fold in folds for seed in seeds]
    parts = {"": Part(shared, beton.manifest.sha256)}
    if arguments.dry_run:
        print_script(Experiment(folder, parts, cells), options, retry=arguments.retry)
        return 0
    with claim(folder):
        experiment = Experiment(folder, parts, cells)
        standings = carry_out(experiment, options, retry=arguments.retry, wait=arguments.wait)
        print(write_summary(experiment, beton, standings))
    return int(count_failed(standings) > 0)


def write_summary(experiment: Experiment, beton: Beton, standings: Sequence[Standing]) -> Path:
    """Write summary.json and summary.md from the finished runs; the path of summary.md."""
    finished = [experiment.run_dir(s.cell) for s in standings if s.state == "finished"]
    summary = summarise(finished, beton)
    summary["cells"] = [
        {
            "name": standing.cell.name,
            "fold": standing.cell.fold,
            "seed": standing.cell.seed,
            "state": standing.job.lower() if standing.state == "active" else standing.state,
            "reason": standing.reason,
        }
        for standing in standings
    ]
    write_json(experiment.folder / "summary.json", summary)
    path = experiment.folder / "summary.md"
    write_text(path, kfold_markdown(summary))
    return path


if __name__ == "__main__":
    sys.exit(main())
