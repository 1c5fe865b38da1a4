"""How the scores came about: protocol, environment, configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ferdist.config import flatten
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run
from ferdist.reporting.page import Section
from ferdist.reporting.words import DEFINITIONS, TTA, key_table, scorings, selection


def protocol(runs: Sequence[Run], album: Album) -> Section:
    """How each run was trained and its checkpoint chosen, on what, and what the scores mean."""
    of_each = " of each run" if len(runs) > 1 else ""
    return Section(
        "protocol",
        "Protocol and environment",
        tables=(
            key_table(f"Protocol{of_each}", runs, [*map(_protocol, runs)]),
            key_table(f"Environment{of_each}", runs, [flatten(run.environment) for run in runs]),
        ),
        folded_texts=[(f"Configuration of {_named(run)}: config.yaml", run.config_text) for run in runs],
        points=DEFINITIONS,
    )


def _named(run: Run) -> str:
    return run.name if run.pooled == 1 else f"the first run of {run.name}, {run.folder.name}"


def _protocol(run: Run) -> dict[str, Any]:
    main, fold = run.main, run.option("data.fold")
    return {
        "Model": run.model,
        "Data": run.data,
        "Fold held out": "none: the data's own splits" if fold is None else fold,
        "Epochs": run.option("train.epochs"),
        "Seed": run.option("seed"),
        "Checkpoint": main and selection(run, main),
        "Views per image": main and TTA.get(main.tta, main.tta),
        "Test": scorings(run.test_scorings),
    }
