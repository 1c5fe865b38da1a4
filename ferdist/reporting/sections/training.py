"""Learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ferdist.charts import Floats, Line, line_chart
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run
from ferdist.reporting.page import Chart, Section
from ferdist.table import MISSING, Number, Table, count, percent

TRAIN_POINTS: Final = 150
"""Points that a curve of training has at most; more lines of metrics.jsonl are averaged."""
VIEWS: Final = {
    "none": "on unchanged images",
    "flip": "on the average over image and mirror image",
    "ten-crop": "on the average over ten crops",
}
"""What val scores are measured on in training, by ``train.tta``."""


def training(runs: Sequence[Run], album: Album) -> Section:
    """Loss, accuracy and learning rate by epoch, from metrics.jsonl."""
    trained = [run for run in runs if run.history]
    if not trained:
        return Section(
            "training", "Training", missing=("No learning curves: metrics.jsonl is missing or empty.",)
        )
    charts = []
    for name, keys, in_percent in (
        ("loss", ("val/loss", "train/loss"), False),  # val first, so that it lies on top
        ("accuracy", ("val/accuracy", "train/accuracy"), True),
        ("learning-rate", ("train/lr",), False),
    ):
        lines = [line for key in keys for line in _lines(runs, key, several_keys=len(keys) > 1)]
        if not lines:
            continue
        title = name.replace("-", " ")
        note = " Solid with marks: val; thin and dashed: train." * (len(runs) > 1 and len(keys) > 1)
        spoken = "; ".join(_course(line, in_percent) for line in lines if line.label)
        charts.append(
            Chart(
                name,
                caption=f"{title.capitalize()} by epoch.{note}",
                alt=f"Line chart of the {title} by epoch: {spoken}.",
                figure=line_chart(lines, x_label="epoch", y_label=title, y_percent=in_percent),
            )
        )
    text = (
        "Training scores are means over the augmented batches in the course of the epoch; "
        f"val scores are measured at the end of the epoch {_measured_on(trained)}.{_means_of(trained)}",
    )
    folded = [history_table(run) for run in trained]
    return Section("training", "Training", text=text, charts=charts, folded_tables=folded)


def _measured_on(runs: Sequence[Run]) -> str:
    """The views of val's images, with the names of the runs where they differ."""
    views: dict[str, list[str]] = {}
    for run in runs:
        tta = str(run.option("train.tta") or "none")
        views.setdefault(VIEWS.get(tta, f"with {tta}"), []).append(run.name)
    if len(views) == 1:
        return next(iter(views))
    return "; ".join(f"{view} ({', '.join(names)})" for view, names in views.items())


def _means_of(runs: Sequence[Run]) -> str:
    """Over how many runs the curves are means, if they are, as a sentence."""
    numbers = {run.name: run.pooled for run in runs if run.pooled > 1}
    if not numbers:
        return ""
    if len(numbers) == len(runs) and len({*numbers.values()}) == 1:
        return f" Curves are means over {count(runs[0].pooled, 'run')}{' each' if len(runs) > 1 else ''}."
    return f" Means over runs: {', '.join(f'{name} {number}' for name, number in numbers.items())}."


def _lines(runs: Sequence[Run], key: str, *, several_keys: bool) -> list[Line]:
    """A metric of each run that has it; a colour for each run, or for each metric where there is one run."""
    train, several = key.startswith("train/"), len(runs) > 1
    behind = train and several_keys
    lines = []
    for number, run in enumerate(runs):
        epochs, values = run.curve(key)
        if not len(epochs):
            continue
        lines.append(
            Line(
                label=("" if behind else run.name) if several else key.partition("/")[0],
                x=_thin(epochs) if train else epochs,
                y=_thin(values) if train else values,
                colour=number if several else int(not train),
                marks=not train and len(epochs) <= 40,
                faint=behind,
            )
        )
    return lines


def _thin(values: Floats) -> Floats:
    """At most ``TRAIN_POINTS`` means of consecutive values, NaN where one of them is."""
    parts = np.array_split(values, min(TRAIN_POINTS, len(values)))
    return np.array([part.mean() for part in parts])


def _course(line: Line, in_percent: bool) -> str:
    finite = line.y[~np.isnan(line.y)]
    if not len(finite):
        return f"{line.label} is never a number"
    first, last = (f"{percent(y)} %" if in_percent else f"{y:.3g}" for y in (finite[0], finite[-1]))
    return f"{line.label} from {first} to {last}"


def history_table(run: Run) -> Table:
    """One row per epoch: the means of the lines in it."""
    last = max((line["epoch"] for line in run.history), default=0)
    names = ("train/loss", "val/loss", "train/accuracy", "val/accuracy", "val/balanced_accuracy", "train/lr")
    train_loss, val_loss, train_accuracy, val_accuracy, val_balanced, rate = map(run.epoch_means, names)
    over = f" over {count(run.pooled, 'run')}" if run.pooled > 1 else ""
    return Table.of(
        f"{run.name}: means of each epoch{over}",
        (
            {
                "Epoch": Number(epoch),
                "Train loss": _decimal(train_loss.get(epoch)),
                "Val loss": _decimal(val_loss.get(epoch)),
                "Train accuracy %": percent(train_accuracy.get(epoch)),
                "Val accuracy %": percent(val_accuracy.get(epoch)),
                "Val balanced %": percent(val_balanced.get(epoch)),
                "Learning rate": _decimal(rate.get(epoch), ".2e"),
            }
            for epoch in range(1, int(np.ceil(last)) + 1)
        ),
    )


def _decimal(value: float | None, form: str = ".3f") -> Number:
    return Number(MISSING if value is None else "NaN" if np.isnan(value) else f"{value:{form}}")
