"""How well each class is recognised: recall, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ferdist.charts import GRID, MARKERS, PERCENT, SERIES, confusion_chart, label_of, panel, short
from ferdist.evaluation.records import Evaluation
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run
from ferdist.reporting.page import Chart, Section
from ferdist.reporting.words import place
from ferdist.table import Table, count, percent

Evaluated = Sequence[tuple[Run, Evaluation]]


def classes(runs: Sequence[Run], album: Album) -> Section:
    """Recall of each class, one chart for runs of the same classes, and the confusion matrix of each run."""
    evaluated = [(run, run.main) for run in runs if run.main is not None]
    if not evaluated:
        return Section(
            "classes", "Classes", missing=("There are no scores per class without an evaluation.",)
        )
    groups: dict[tuple[str, ...], list[tuple[Run, Evaluation]]] = {}
    for run, main in evaluated:
        groups.setdefault(run.classes, []).append((run, main))
    recalls = [_recall(group, named=len(groups) > 1) for group in groups.values()]
    charts = [*recalls, *(_confusion(run, main) for run, main in evaluated)]
    return Section("classes", "Classes", charts=charts)


def _recall(evaluated: Evaluated, *, named: bool) -> Chart:
    """Recall of runs with the same classes; their names are in the caption where other runs have others."""
    names = evaluated[0][0].classes
    totals = [main.confusion.sum(axis=1) for _, main in evaluated]
    same = all(np.array_equal(total, totals[0]) for total in totals)
    spoken = "; ".join(
        f"{run.name}: " + ", ".join(f"{c} {percent(r)} %" for c, r in zip(names, main.recall, strict=True))
        for run, main in evaluated
    )
    where = "; ".join(dict.fromkeys(place(main) for _, main in evaluated))
    of_runs = f": {', '.join(run.name for run, _ in evaluated)}" if named else ""
    per_seed = ", counted once for each seed," if any(main.seeds > 1 for _, main in evaluated) else ""
    return Chart(
        "recall",
        caption=f"Recall of each class on {where}{of_runs}."
        + f" The number of samples{per_seed} is in brackets." * same,
        alt=f"Dot chart of the recall of each class. {spoken}.",
        figure=recall_chart(
            [run.name for run, _ in evaluated],
            [main.recall for _, main in evaluated],
            [f"{c} ({count(int(n))})" for c, n in zip(names, totals[0], strict=True)] if same else names,
        ),
        table=recall_table(evaluated),
    )


def recall_chart(
    labels: Sequence[str], recalls: Sequence[Sequence[float | None]], classes: Sequence[str]
) -> Figure:
    """Recall of each class as dots on a common scale, one row per class.

    Args:
        labels: R names of runs.
        recalls: R sequences of K fractions; None where a class has no samples.
        classes: K names, with their counts where they are wanted.
    """
    K, R = len(classes), len(labels)
    style = {"axes.grid.axis": "x", "xtick.major.size": 0}
    shown = [*map(label_of, labels)]
    with panel(0.9 + K * max(0.3, 0.16 * R), shown, style=style) as (figure, (axes,)):
        places = np.arange(K)
        for number, (label, recall) in enumerate(zip(shown, recalls, strict=True)):
            values = np.array(recall, dtype=np.float64)  # None becomes NaN
            heights = places + (number - (R - 1) / 2) * 0.6 / max(R - 1, 1)
            colour, size = SERIES[number % len(SERIES)], 6.5 if R == 1 else 5
            if R == 1:
                axes.hlines(heights, 0, values, color=colour, linewidth=2.2)
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(values, heights, marker, color=colour, markersize=size, label=label, clip_on=False)
        if R > 1:
            axes.hlines(places[1:] - 0.5, 0, 1, color=GRID, linewidth=0.7)
        axes.set_yticks(places, [short(name, 26) for name in classes])
        axes.set(xlim=(0, 1), ylim=(K - 0.5, -0.5), xlabel="recall")
        axes.xaxis.set_major_formatter(PERCENT)
        axes.tick_params(axis="y", pad=8)
        axes.spines["left"].set_visible(False)
    return figure


def recall_table(evaluated: Evaluated) -> Table:
    """Recall, precision (from the confusion matrix) and count of each class; one row per run and class."""
    return Table.of(
        "Recall and precision of each class",
        (
            {
                "Run": run.name if len(evaluated) > 1 else None,
                "Class": name,
                "Recall %": percent(main.recall[label]),
                "Precision %": percent(main.confusion[label, label] / answers if answers else None),
                "Samples": count(int(main.confusion[label].sum())),
            }
            for run, main in evaluated
            for label, (name, answers) in enumerate(zip(run.classes, main.confusion.sum(axis=0), strict=True))
        ),
    )


def _confusion(run: Run, main: Evaluation) -> Chart:
    mistakes = f"Most frequent mistakes: {'; '.join(worst_confusions(main, run.classes)) or 'none'}."
    counts = "the count" if main.seeds == 1 else "the count over all seeds"
    return Chart(
        "confusion",
        caption=f"Confusion matrix of {run.name} on {place(main)}: of each true class (row), the percentage "
        f"that was predicted as each class, and {counts} below it. {mistakes}",
        alt=f"Confusion matrix of {len(run.classes)} classes; the diagonal holds {percent(main.accuracy)} % "
        f"of {count(main.samples, main.unit)}. {mistakes}",
        figure=confusion_chart(main.confusion, run.classes),
        table=Table(
            "Counts: true class by row, predicted class by column",
            ("True \\ predicted", *run.classes),
            tuple(
                (name, *(count(int(number)) for number in row))
                for name, row in zip(run.classes, main.confusion, strict=True)
            ),
        ),
    )


def worst_confusions(main: Evaluation, classes: Sequence[str], most: int = 3) -> list[str]:
    """The most frequent mistakes relative to their true class, worst first.

    Returns:
        For example ``disgust mistaken for angry (30 %, 17 of 56)``.
    """
    totals = main.confusion.sum(axis=1)
    mistakes = [
        (number / totals[true], number, true, predicted)
        for (true, predicted), number in np.ndenumerate(main.confusion)
        if true != predicted and number
    ]
    mistakes.sort(key=lambda mistake: -mistake[0])
    return [
        f"{classes[true]} mistaken for {classes[predicted]} "
        f"({percent(share, 0)} %, {count(int(number))} of {count(int(totals[true]))})"
        for share, number, true, predicted in mistakes[:most]
    ]
