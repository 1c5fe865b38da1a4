"""Every evaluation of uncovered faces."""

from __future__ import annotations

from collections.abc import Sequence

from ferdist.augment.kinds import kind_label
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run
from ferdist.reporting.page import Section
from ferdist.reporting.words import SUBSETS, TTA, data_of, place, scores
from ferdist.table import MISSING, Number, Table, percent


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
                **scores(entry),
                "Subset": SUBSETS.get(entry.subset, entry.subset),
                "Views": TTA.get(entry.tta, entry.tta),
                "Checkpoint": entry.checkpoint or MISSING,
            }
            for run in runs
            for entry in run.evaluations
            if ((cover := entry.occlusion) is not None) == occluded
        ),
    )
