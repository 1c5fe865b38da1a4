"""The runs side by side, and what differs between them."""

from __future__ import annotations

from collections.abc import Sequence

from ferdist.config import flatten
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run
from ferdist.reporting.page import Section
from ferdist.reporting.words import key_table, main_table


def comparison(runs: Sequence[Run], album: Album) -> Section | None:
    """The main evaluation of each run and the configuration keys in which several runs differ."""
    if len(runs) == 1:
        return None
    configs = [flatten(run.config) for run in runs]
    keys = sorted({key for config in configs for key in config} - {"run_dir"})
    differing = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    values = [{key: config.get(key) for key in differing} for config in configs]
    return Section(
        "comparison",
        "Comparison",
        text=("Rows that differ in data, split, unit or number of samples do not compare models.",),
        tables=(main_table(runs), key_table("Configuration keys in which the runs differ", runs, values)),
        missing=() if differing else ("The configurations of the runs do not differ.",),
    )
