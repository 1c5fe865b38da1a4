"""What is mistaken for what, and the samples that were missed with the most confidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from ferdist.charts import short
from ferdist.errors import FerdistError
from ferdist.evaluation.predictions import Predictions
from ferdist.evaluation.records import Evaluation
from ferdist.reporting.album import HIDDEN, MOST_RUNS, Album, Tile, in_rows, left_out, pixels_of, tile_chart
from ferdist.reporting.load import Run, predictions_of
from ferdist.reporting.page import Chart, Section
from ferdist.reporting.words import place
from ferdist.table import Cells, Number, Table, count, percent

MISTAKES: Final = 12


class Mistake(NamedTuple):
    """A sample that was not recognised."""

    sample: int
    """Its number in the beton."""
    true: int
    predicted: int
    probability: float
    """Of the predicted class."""
    of_true: float
    """Probability of the true class."""


def confident_mistakes(predictions: Predictions, most: int = MISTAKES) -> list[Mistake]:
    """The samples that were not recognised with the highest probability of another class, highest first.

    Args:
        predictions: where a sample is in them several times (once for each seed), its mean counts.
        most: how many at most.
    """
    index, first, group = np.unique(predictions.index, return_index=True, return_inverse=True)
    sums = np.zeros((len(index), predictions.probabilities.shape[1]))
    np.add.at(sums, group, predictions.probabilities)
    rows = sums / np.bincount(group)[:, None]
    label, predicted = predictions.label[first], rows.argmax(axis=1)
    wrong = np.flatnonzero(predicted != label)
    order = wrong[np.argsort(-rows[wrong].max(axis=1), kind="stable")][:most]
    columns = index, label, predicted, rows.max(axis=1), rows[np.arange(len(rows)), label]
    return [Mistake(*(column[row].item() for column in columns)) for row in order]


def mistakes(runs: Sequence[Run], album: Album) -> Section:
    """The pairs of classes that are confused most, and the most confident mistakes of each run."""
    title = "The worst confusions"
    evaluated = [(run, run.main) for run in runs if run.main is not None]
    if not evaluated:
        return Section("mistakes", title, missing=("There are no mistakes to show without an evaluation.",))
    charts: list[Chart] = []
    folded: list[Table] = []
    missing = [] if album.shown else [HIDDEN]
    without_predictions = False
    for run, main in evaluated:
        predictions = predictions_of(run, main)
        without_predictions |= predictions is None
        found = confident_mistakes(predictions) if predictions else []
        if not found:
            continue
        table = _mistakes_table(run, found)
        if album.shown and len(charts) < MOST_RUNS:
            try:
                charts.append(_mistakes_chart(run, main, found, album, table))
                continue
            except FerdistError as error:
                missing.append(left_out(run, len(runs) > 1, error))
        folded.append(table)
    if without_predictions:
        missing.append("No sample is named where the predictions of a run are missing.")
    return Section(
        "mistakes",
        title,
        text=(
            "The pairs of classes that were confused most often, and the samples that were missed with the "
            "highest probability of a wrong class. Where face and label disagree, the label may be wrong.",
        ),
        missing=missing,
        charts=charts,
        tables=(Table.of("Most frequent confusions", most_confused(evaluated, several=len(runs) > 1)),),
        folded_tables=folded,
    )


def _mistakes_chart(
    run: Run, main: Evaluation, mistakes: Sequence[Mistake], album: Album, table: Table
) -> Chart:
    images = album.faces(run, main).images(np.array([mistake.sample for mistake in mistakes]))
    names = [short(name, 12) for name in run.classes]
    tiles = [
        Tile(pixels, f"{names[m.true]}, said\n{names[m.predicted]} {percent(m.probability, 0)} %")
        for m, pixels in zip(mistakes, pixels_of(images), strict=True)
    ]
    spoken = "; ".join(tile.text.replace("\n", " ") for tile in tiles)
    return Chart(
        "mistakes",
        caption=f"{run.name} on {place(main)}: the mistakes with the highest probability. Above each face: "
        "its label and the prediction.",
        alt=f"{count(len(tiles), 'face')} with label, wrong prediction and its probability: {spoken}.",
        figure=tile_chart(in_rows(tiles)),
        table=table,
    )


def most_confused(evaluated: Sequence[tuple[Run, Evaluation]], *, several: bool) -> Iterator[Cells]:
    """The pairs of classes that were confused most often, a row each, most frequent first in each run."""
    for run, main in evaluated:
        confusion = main.confusion - np.diag(np.diag(main.confusion))
        for cell in np.argsort(-confusion, axis=None, kind="stable")[: 5 if several else 10]:
            true, predicted = divmod(int(cell), len(confusion))
            if number := int(confusion[true, predicted]):
                yield {
                    "Run": run.name if several else None,
                    "True class": run.classes[true],
                    "Mistaken for": run.classes[predicted],
                    "Samples": count(number),
                    "Of the class %": percent(number / main.confusion[true].sum()),
                }


def _mistakes_table(run: Run, mistakes: Sequence[Mistake]) -> Table:
    return Table.of(
        f"{run.name}: mistakes with the highest probability",
        (
            {
                "Sample": Number(mistake.sample),
                "True class": run.classes[mistake.true],
                "Mistaken for": run.classes[mistake.predicted],
                "Probability %": percent(mistake.probability),
                "Of the true class %": percent(mistake.of_true),
            }
            for mistake in mistakes
        ),
    )
