"""`python -m launch.train CONFIG --nodes N --gpus-per-node M [options] [key=value ...]`: one job per seed.

The folder of the experiment holds a run folder for each seed, ``experiment.json`` and ``jobs/``, as that of
``launch.kfold`` does. The run folders are printed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ferdist.runtime.experiment import Part, Trial
from launch.backends import Options, settle
from launch.command import ConfigFile, Overrides, run_launcher
from launch.experiment import Experiment, Standing, default_folder, launch, read_config


def launch_seeds(config: ConfigFile, overrides: Overrides = None, *, options: Options) -> int:
    """Train on one node or several, a job for each seed."""
    options = settle(options, script=options.dry_run)
    common, beton = read_config(config, overrides or (), {"run_dir": "give --out"})

    def report(experiment: Experiment, standings: Sequence[Standing]) -> None:
        for standing in standings:
            print(experiment.run_dir(standing.trial))

    return launch(
        options.out or default_folder(config, "seeds"),
        {"": Part(replace(common, seed=0, run_dir=""), beton.manifest.sha256)},
        [Trial(None, common.seed + number) for number in range(options.seeds)],
        options,
        report,
    )


main = partial(run_launcher, launch_seeds)


if __name__ == "__main__":
    sys.exit(main())
