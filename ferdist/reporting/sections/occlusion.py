"""Accuracy against the covered part of the face, and the scores of each kind of occlusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from ferdist.augment.kinds import fill_label, kind_label
from ferdist.charts import Line, line_chart
from ferdist.errors import RunError
from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.records import Evaluation
from ferdist.evaluation.robustness import compare_benchmarks, mean_intervals
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run, grids_of, occluded_entries, robustness_of
from ferdist.reporting.page import Chart, Section
from ferdist.reporting.sections.evaluations import evaluation_table
from ferdist.reporting.words import TTA, data_of, place
from ferdist.table import (
    MISSING,
    Cells,
    Number,
    Table,
    count,
    percent,
    percent_interval,
    points,
    points_interval,
)

Covered = Sequence[tuple[Run, Sequence[Evaluation]]]
"""Runs with their evaluations under occlusion."""

OF_KINDS: Final = (
    "Relative: the accuracy divided by that on the same images uncovered.",
    "Area under curve: the mean accuracy as the covered part grows from nothing to its largest, of the kinds "
    "whose severities are covered areas.",
    "Rows of the kind mean: means over the kinds, each kind once.",
)
CORRUPTION_ERROR: Final = (
    "Corruption error: the errors at all severities and fills of a kind, divided by those of the first run "
    "(Hendrycks and Dietterich, ICLR 2019, where the first is AlexNet); below 100 % is better."
)


def occlusion(runs: Sequence[Run], album: Album) -> Section:
    """Curves, the scores of each kind, paired differences of several runs, and all evaluations."""
    covered = [(run, entries) for run in runs if (entries := occluded_entries(run))]
    if not covered:
        missing = "results.json has no evaluation under occlusion: run `ferdist evaluate RUN --occlusion`."
        return Section("occlusion", "Occlusion", missing=(missing,))
    several = len(runs) > 1
    charts = [_chart(title, lines, covered) for title, lines in _curves(covered, several).items()]
    where = "; ".join(dict.fromkeys(_measured_on(run, entries[0]) for run, entries in covered))
    text = f"Accuracy as more of each image is covered, measured on {where}. " + (
        "A point is the mean over the fills, the shading its 95 % interval where that is known."
        if several
        else "The shading is the 95 % interval of each point."
    )
    unknown = "No curve: the covered fraction is missing from every occlusion evaluation."
    by_kind = [*_by_kind(covered, several)]
    differences, not_compared = _differences(covered)
    return Section(
        "occlusion",
        "Occlusion",
        text=(text,) if charts else (),
        charts=charts,
        tables=(
            Table.of("Accuracy by kind of occlusion (means over the fills), in percent", by_kind),
            Table.of(f"Accuracy under occlusion minus that of {covered[0][0].name}, in points", differences),
        ),
        missing=(*([] if charts else [unknown]), *_unlike_cells(covered), *not_compared),
        folded_tables=(evaluation_table(runs, occluded=True),),
        points=(*(OF_KINDS if by_kind else ()), *([CORRUPTION_ERROR] if differences else [])),
    )


def _measured_on(run: Run, evaluation: Evaluation) -> str:
    samples = count(evaluation.samples, evaluation.unit)
    views = TTA.get(evaluation.tta, evaluation.tta)
    return f"{place(evaluation)} of {data_of(run, evaluation)} ({samples}, {views})"


def _chart(title: str, lines: Sequence[Line], covered: Covered) -> Chart:
    falls = [f"{line.label} from {percent(line.y[0])} to {percent(line.y[-1])} %" for line in lines]
    return Chart(
        "occlusion",
        caption=f"Accuracy against the covered part of the image: {title}.",
        alt=f"Line chart of accuracy against the covered part of the image, {title}: {'; '.join(falls)}.",
        figure=line_chart(
            lines,
            x_label="covered part of the image",
            y_label="accuracy",
            x_percent=True,
            y_percent=True,
            y_from_zero=True,
            baseline=_majority([entries[0] for _, entries in covered]),
        ),
        table=Table.of(
            f"Accuracy by covered part: {title}",
            (
                {
                    "Line": line.label,
                    "Covered %": percent(x),
                    "Accuracy %": percent(y),
                    "95 % interval": percent_interval(None if np.isnan(bounds[0]) else bounds),
                }
                for line in lines
                if line.low is not None and line.high is not None
                for x, y, *bounds in zip(line.x, line.y, line.low, line.high, strict=True)
            ),
        ),
    )


def _majority(evaluations: Sequence[Evaluation]) -> tuple[float, str] | None:
    """Accuracy of always answering the most frequent class, where it is the same for all evaluations."""
    totals = [evaluation.confusion.sum(axis=1) for evaluation in evaluations]
    if not totals[0].sum() or any(not np.array_equal(total, totals[0]) for total in totals):
        return None
    return float(totals[0].max() / totals[0].sum()), "always the most frequent class"


def _curves(covered: Covered, several: bool) -> dict[str, list[Line]]:
    """The lines of each chart, by its title: a chart per fill with a line per kind, or, for several runs, a
    chart per kind with a line per run, the mean over the fills. Kinds with one covered fraction have none."""
    charts: dict[str, list[Line]] = {}
    for number, (run, entries) in enumerate(covered):
        curves: dict[tuple[str, str], dict[float, list[Evaluation]]] = {}
        for entry in entries:
            cover = entry.occlusion
            if cover is not None and cover.covered is not None:
                curve = curves.setdefault((cover.kind, "" if several else cover.fill), {})
                curve.setdefault(cover.covered, []).append(entry)
        curves = {key: curve for key, curve in curves.items() if len(curve) > 1}
        means = [_cells(some) for curve in curves.values() for some in curve.values() if len(some) > 1]
        grids = grids_of(run, entries) if means else ()
        intervals = dict(zip(means, mean_intervals(grids, means), strict=True)) if grids else {}
        clean = [e for e in run.evaluations if e.occlusion is None and e.conditions == entries[0].conditions]
        for (kind, fill), curve in curves.items():
            title = kind_label(kind) if several else f"filled with {fill_label(fill)}"
            lines = charts.setdefault(title, [])
            at = [(0.0, [entry]) for entry in clean[:1]] + sorted(curve.items())
            bounds = [
                (some[0].interval if len(some) == 1 else intervals.get(_cells(some))) or (np.nan, np.nan)
                for _, some in at
            ]
            accuracies = [np.array([entry.accuracy for entry in some], float) for _, some in at]
            lines.append(
                Line(
                    label=run.name if several else kind_label(kind),
                    x=np.array([x for x, _ in at]),
                    y=np.array([values.mean() for values in accuracies]),
                    low=np.array([low for low, _ in bounds]),
                    high=np.array([high for _, high in bounds]),
                    colour=number if several else len(lines),
                )
            )
    return charts


def _cells(entries: Sequence[Evaluation]) -> tuple[Cell, ...]:
    return tuple(o.cell for entry in entries if (o := entry.occlusion) is not None)


def _by_kind(covered: Covered, several: bool) -> Iterator[Cells]:
    """One row per kind and run, and one for the mean over the kinds."""
    known = [(run, summary) for run, entries in covered if (summary := robustness_of(run, entries[0]))]
    for kind in [*dict.fromkeys(kind for _, summary in known for kind in summary["kinds"]), "mean"]:
        for run, summary in known:
            found: Mapping[str, Any] | None = summary if kind == "mean" else summary["kinds"].get(kind)
            if found is None:
                continue
            at = dict(zip(found.get("severities", ()), found.get("by_severity", ()), strict=True))
            shares = [percent(share) for share in found.get("covered", ()) if share is not None]
            yield {
                "Kind": kind_label(kind),
                "Run": run.name if several else None,
                "Covered": Number("–".join(dict.fromkeys((shares[0], shares[-1])))) if shares else MISSING,
                "Severity 1": percent(at.get(1)),
                **{str(severity): percent(at.get(severity)) for severity in range(2, 6)},
                "Mean": percent(found["accuracy"]),
                "Relative": percent(found["relative_robustness"]),
                "Area under curve": percent(found["area_under_curve"]),
                "Macro-F1": percent(found["macro_f1"]),
            }


def _unlike_cells(covered: Covered) -> list[str]:
    """A warning where the means of the runs are not over the same cells."""
    cells = [frozenset(_cells(entries)) for _, entries in covered]
    if len(set(cells)) == 1:
        return []
    counts = ", ".join(f"{run.name} {len(own)}" for (run, _), own in zip(covered, cells, strict=True))
    return [
        f"The runs were evaluated under different cells of the benchmark ({counts}, "
        f"{len(frozenset.intersection(*cells))} in common): their means over fills, severities and kinds are "
        "not of the same images. A paired difference is over the common cells."
    ]


def _differences(covered: Covered) -> tuple[list[Cells], list[str]]:
    """Paired differences of all runs to the first, and why there is none for some."""
    (reference, entries), *others = covered
    first = grids_of(reference, entries)
    rows: list[Cells] = []
    missing = []
    for run, own_entries in others:
        own = grids_of(run, own_entries)
        if not first or not own:
            both = "without both runs' predictions/occlusion/ there is no paired difference"
            missing.append(f"{run.name}: {both}.")
            continue
        try:
            comparison = compare_benchmarks(own, first)
        except RunError as error:
            missing.append(f"{run.name} against {reference.name}: {error}.")
            continue
        mean = {**comparison, "corruption_error": comparison["mean_corruption_error"]}
        rows += [
            {
                "Run": run.name,
                "Kind": kind_label(kind),
                "Difference": points(found["difference"]),
                "Paired 95 % interval": points_interval(found["difference_ci95"]),
                "With seeds": points_interval(found["seeds_ci95"]) if "seeds_ci95" in found else None,
                "Corruption error %": percent(found["corruption_error"]),
            }
            for kind, found in (*comparison["kinds"].items(), ("mean", mean))
        ]
    return rows, missing
