"""The scores: the main evaluation of each run beside those of others, and every evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from ferdist.augment.kinds import kind_label
from ferdist.config import flatten
from ferdist.evaluation.records import Evaluation
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run
from ferdist.reporting.page import Section
from ferdist.reporting.words import SUBSETS, TTA, data_of, key_table, place
from ferdist.table import MISSING, Cells, Number, Table, count, percent, percent_interval


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


def evaluations(runs: Sequence[Run], album: Album) -> Section:
    """The entries of results.json without an occlusion."""
    table = evaluation_table(runs, occluded=False)
    missing = () if table.rows else ("results.json has no evaluation of uncovered faces.",)
    return Section("evaluations", "Evaluations", tables=(table,), missing=missing)


def evaluation_table(runs: Sequence[Run], *, occluded: bool) -> Table:
    """Every entry of results.json, either those with an occlusion or those without.

    Returns:
        One row per entry; a column for the run where there are several, and one for the data where a run was
        evaluated on other data than it was trained on.
    """
    foreign = any(not run.is_own(entry) for run in runs for entry in run.evaluations)
    return Table.of(
        f"Evaluations {'under occlusion' if occluded else 'of uncovered faces'}, in percent",
        (
            {
                "Run": run.name if len(runs) > 1 else None,
                "Data": data_of(run, entry) if foreign else None,
                "Split": place(entry),
                "Occlusion": kind_label(cover.kind) if cover else None,
                "Fill": cover.fill if cover else None,
                "Severity": Number(cover.severity) if cover else None,
                "Covered": percent(cover.covered) if cover else None,
                "In training": cover.seen or MISSING if cover else None,
                **_scores(entry),
                "Subset": SUBSETS.get(entry.subset, entry.subset),
                "Views": TTA.get(entry.tta, entry.tta),
                "Checkpoint": entry.checkpoint or MISSING,
            }
            for run in runs
            for entry in run.evaluations
            if ((cover := entry.occlusion) is not None) == occluded
        ),
    )


def _scores(evaluation: Evaluation) -> Cells:
    """The cells of an evaluation's scores, in percent but for the number of samples."""
    return {
        "Accuracy": percent(evaluation.accuracy),
        "95 % interval": percent_interval(evaluation.interval),
        "Balanced": percent(evaluation.balanced_accuracy),
        "Macro-F1": percent(evaluation.macro_f1),
        "ECE": percent(evaluation.ece),
        "Samples": count(evaluation.samples, evaluation.unit),
    }


def main_table(runs: Sequence[Run], *, protocol: bool = False) -> Table:
    """One row per run: its main evaluation (``Run.main``), rates in percent.

    Args:
        runs: the runs, in order.
        protocol: whether seed, checkpoint and the scorings of test follow in columns of their own.
    """
    records = []
    for run in runs:
        main = run.main
        record: dict[str, str | None] = {
            "Run": run.name,
            "Model": run.model,
            "Data": data_of(run, main) if main else run.data,
            "Split": place(main) if main else "not evaluated",
            **(_scores(main) if main else {}),
        }
        if protocol:
            seed = run.option("seed")
            record["Seed"] = Number(MISSING if seed is None else seed)
            record["Checkpoint"] = (main and main.checkpoint) or MISSING
            record["Test scorings"] = Number(run.test_scorings)
        records.append(record)
    return Table.of("Main evaluation of each run, in percent", records)
