"""How the scores came about: protocol, environment, configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from ferdist.config import flatten
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run
from ferdist.reporting.page import Section
from ferdist.reporting.words import DEFINITIONS, TTA, key_tables, scorings, selection

HASH: Final = re.compile("[0-9a-f]{40,}")


def protocol(runs: Sequence[Run], album: Album) -> Section:
    """How each run was trained and its checkpoint chosen, on what, and what the scores mean."""
    return Section(
        "protocol",
        "Protocol and environment",
        tables=(
            *key_tables("Protocol", runs, [*map(_protocol, runs)]),
            *key_tables("Environment of the latest evaluation", runs, [*map(_environment, runs)]),
        ),
        folded_texts=[(f"Configuration of {_named(run)}: config.yaml", run.config_text) for run in runs],
        points=DEFINITIONS,
    )


def _named(run: Run) -> str:
    return run.name if run.pooled == 1 else f"the first run of {run.name}, {run.folder.name}"


def _environment(run: Run) -> dict[str, Any]:
    """By dotted key; a checksum is cut to as many digits as a revision has."""
    return {
        key: value[:12] if isinstance(value, str) and HASH.fullmatch(value) else value
        for key, value in flatten(run.environment).items()
    }


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
        "Precision": main and main.precision,
        "Test": scorings(run.test_scorings),
    }
