"""`python -m launch.table1 [options] [key=value ...]`: every network on every data set, fold and seed.

A network on a data set is the config ``configs/DATASET/NETWORK.yaml``, or ``configs/DATASET/base.yaml`` with
``model.name=NETWORK`` if it needs no settings of its own; where that holds a fold out, each fold is held out
in turn. All runs of the grid are one job array. The experiment's folder holds a run folder for each,
``DATASET/NETWORK/fold-00-seed-0`` or ``DATASET/NETWORK/seed-0``, ``experiment.json``, ``jobs/`` and
``table1.md``, which every call rewrites; ``ferdist report`` makes a whole report of it. Running the same
command again submits nothing twice; with further networks, data sets or seeds it adds them.

``--dry-run`` says what the runs would cost, from finished runs or else from a few steps, validations and the
final evaluation of each network on this host.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ferdist.config import find_config
from ferdist.errors import ConfigError
from ferdist.evaluation.pool import folds_of, shared_config
from ferdist.io import write_text
from ferdist.models import model_names
from ferdist.reporting.networks import load_networks
from ferdist.reporting.table1 import group_by_data, networks_markdown
from ferdist.runtime.experiment import Part, Trial
from launch.backends import Options, settle
from launch.command import Overrides, run_launcher
from launch.estimate import estimate
from launch.experiment import Experiment, Standing, launch, read_config

_NETWORKS: Final = "resnet18_cbam,resnet18,alexnet,vgg16,kernel_cnn,mianet,aprnet50"
"""Those of the paper's Table 1, and its network without attention."""

_OWN_KEYS: Final = {
    "data.fold": "every fold of the data is held out in turn",
    "data.inner_fold": "choose settings with launch.kfold --inner-of first",
    "model.name": "give --models",
    "run_dir": "give --out",
}


def _names(help: str) -> Any:
    def check(text: str) -> str:
        if not all(text.split(",")):
            raise typer.BadParameter(f"{text!r}: separate the names with commas")
        return text

    return typer.Option(parser=check, metavar="A,B", help=help)


def launch_grid(
    overrides: Overrides = None,
    *,
    datasets: Annotated[str, _names("Data sets.")] = "fer2013,ckplus",
    models: Annotated[str, _names("Networks.")] = _NETWORKS,
    configs: Annotated[Path, typer.Option(metavar="DIR", help="Holds DATASET/*.yaml.")] = Path("configs"),
    options: Options,
) -> int:
    """Train every network on every data set, fold and seed."""
    options = settle(options)
    grid = datasets.split(","), models.split(",")
    parts, trials = read_grid(*grid, configs, overrides or (), seeds=options.seeds)

    def report(experiment: Experiment, _: Sequence[Standing]) -> None:
        path = experiment.folder / "table1.md"
        write_text(path, networks_markdown(group_by_data(load_networks([experiment.folder]))))
        print(path)

    return launch(
        options.out or Path("runs/table1"),
        parts,
        trials,
        options,
        report,
        lambda experiment, finished, todo: estimate(experiment, finished, todo, options),
    )


def read_grid(
    datasets: Sequence[str], models: Sequence[str], configs: Path, overrides: Sequence[str], *, seeds: int
) -> tuple[dict[str, Part], list[Trial]]:
    """The configs of the grid by ``DATASET/NETWORK``, and its runs.

    Raises:
        ConfigError: if a network is unknown, a config is wrong, or one beton is given for several data sets.
        DataError: if a beton cannot be opened.
    """
    if len(datasets) > 1:
        for override in overrides:
            if override.startswith("data.path="):
                raise ConfigError(f"{override}: each data set has a beton of its own: give one of --datasets")
    parts: dict[str, Part] = {}
    trials = []
    for dataset in datasets:
        for model in models:
            path, own = configs / dataset / f"{model}.yaml", []
            if find_config(path) is None:
                if model not in model_names():
                    near = difflib.get_close_matches(model, model_names(), n=1)
                    hint = f": did you mean {near[0]}?" if near else ""
                    raise ConfigError(f"{path}: not found, and {model} is not a network of ferdist{hint}")
                path, own = path.with_name("base.yaml"), [f"model.name={model}"]
            config, beton = read_config(path, overrides, _OWN_KEYS, own)
            name = f"{dataset}/{model}"
            parts[name] = Part(shared_config(config), beton.manifest.sha256)
            folds: list[int] | list[None] = folds_of(beton, config) or [None]
            trials += [Trial(fold, config.seed + number, name) for number in range(seeds) for fold in folds]
    return parts, trials


main = partial(run_launcher, launch_grid)


if __name__ == "__main__":
    sys.exit(main())
