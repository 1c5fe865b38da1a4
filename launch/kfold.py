"""`python -m launch.kfold CONFIG [options] [key=value ...]`: each fold of the data held out in turn.

One job is one fold with one seed. The experiment's folder holds a run folder for each, ``experiment.json``
(config, runs and the numbers of their jobs), ``jobs/`` (submitit's files and the output of the jobs) and
``summary.json`` and ``summary.md``, which every call writes anew. The same command given again submits
nothing twice: it shows how the jobs stand. With ``--retry`` it submits those that failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ferdist.beton import Beton
from ferdist.errors import DataError
from ferdist.evaluation.kfold import summarise
from ferdist.evaluation.pool import shared_config
from ferdist.files import write_json, write_text
from ferdist.reporting.kfold import kfold_markdown
from launch.executor import read_options
from launch.experiment import (
    Cell,
    Experiment,
    Part,
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

_OWN_KEYS = {"data.fold": "every fold of the data is held out in turn", "run_dir": "give --out"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launcher.

    Returns:
        0; 1 if a run has failed or the launcher cannot go on, with one line on stderr; 2 for wrong usage.
    """
    parser = make_parser("launch.kfold", "Train with each fold of the data held out in turn.")
    return speak(lambda: _launch(parser.parse_intermixed_args(argv)))


def _launch(arguments: argparse.Namespace) -> int:
    options = read_options(arguments)
    config, beton = read_config(arguments.config, arguments.overrides, _OWN_KEYS)
    if not beton.manifest.folds:
        raise DataError(f"{beton.path}: it has no folds: prepare the data with --folds")
    folder = arguments.out or default_folder(arguments.config, "kfold")
    seeds = range(config.seed, config.seed + arguments.seeds)
    cells = [Cell(int(fold), seed) for fold in beton.manifest.folds for seed in seeds]
    parts = {"": Part(shared_config(config), beton.manifest.sha256)}
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
