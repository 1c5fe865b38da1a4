"""`python -m launch.kfold CONFIG [options] [key=value ...]`: each fold of the data held out in turn.

One job is one fold with one seed. The experiment's folder holds a run folder for each, ``experiment.json``
(config, runs and the ids of their jobs), ``jobs/`` (submitit's files and the output of the jobs) and
``summary.json`` and ``summary.md``, which every call rewrites. Running the same command again submits
nothing twice: it shows how the jobs stand. With ``--retry`` it submits those that failed.

With ``--inner-of FOLD`` that fold is left out of everything and the others are held out in turn, so that a
schedule can be chosen without it (docs/protocol.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ferdist.data.beton import Beton
from ferdist.errors import DataError
from ferdist.evaluation.kfold import kfold_summary
from ferdist.evaluation.pool import shared_config
from ferdist.io import write_json, write_text
from ferdist.reporting.kfold import kfold_markdown
from ferdist.runtime.experiment import Part, Trial
from launch.backends import Options, settle
from launch.command import ConfigFile, Overrides, run_launcher
from launch.experiment import Experiment, Standing, default_folder, launch, read_config

_OWN_KEYS = {
    "data.fold": "every fold of the data is held out in turn",
    "data.inner_fold": "give --inner-of",
    "run_dir": "give --out",
}


def launch_folds(
    config: ConfigFile,
    overrides: Overrides = None,
    *,
    inner_of: Annotated[
        int | None,
        typer.Option(
            metavar="FOLD",
            help="Leave this fold out of all runs and hold out each other one in turn, to choose settings.",
        ),
    ] = None,
    options: Options,
) -> int:
    """Train with each fold of the data held out in turn."""
    options = settle(options, script=options.dry_run)
    common, beton = read_config(config, overrides or (), _OWN_KEYS)
    if not beton.manifest.folds:
        raise DataError(
            f"{beton.path}: it has no folds: prepare data with subjects and --folds, or use launch.train"
        )
    kind, shared, folds = "kfold", shared_config(common), sorted(map(int, beton.manifest.folds))
    if inner_of is not None:
        if inner_of not in folds:
            raise DataError(f"{beton.path}: there is no fold {inner_of}: it has 0 to {folds[-1]}")
        kind = f"inner{inner_of}"
        shared = replace(shared, data=replace(shared.data, fold=inner_of))
        folds.remove(inner_of)

    def report(experiment: Experiment, standings: Sequence[Standing]) -> None:
        print(write_summary(experiment, beton, standings))

    return launch(
        options.out or default_folder(config, kind),
        {"": Part(shared, beton.manifest.sha256)},
        [Trial(fold, common.seed + number) for fold in folds for number in range(options.seeds)],
        options,
        report,
    )


def write_summary(experiment: Experiment, beton: Beton, standings: Sequence[Standing]) -> Path:
    """Write summary.json and summary.md from the finished runs; the path of summary.md."""
    finished = [experiment.run_dir(s.trial) for s in standings if s.state == "finished"]
    summary = kfold_summary(finished, beton)
    summary["cells"] = [
        {
            "name": standing.trial.name,
            "fold": standing.trial.fold,
            "seed": standing.trial.seed,
            "state": standing.job.lower() if standing.state == "active" else standing.state,
            "reason": standing.reason,
        }
        for standing in standings
    ]
    write_json(experiment.folder / "summary.json", summary)
    path = experiment.folder / "summary.md"
    write_text(path, kfold_markdown(summary))
    return path


main = partial(run_launcher, launch_folds)


if __name__ == "__main__":
    sys.exit(main())
