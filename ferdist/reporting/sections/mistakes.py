"""What is mistaken for what, and the samples that were missed with the most confidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from ferdist.charts import short
from ferdist.errors import FerdistError
from ferdist.evaluation.predictions import Predictions, by_sequence
from ferdist.evaluation.records import Evaluation
from ferdist.reporting.album import HIDDEN, MOST_RUNS, Album, Tile, in_rows, left_out, pixels_of, tile_chart
from ferdist.reporting.load import Run, predictions_of
from ferdist.reporting.page import Chart, Section
from ferdist.reporting.words import place
from ferdist.table import Cells, Number, Table, count, percent

MISTAKES: Final = 12


def confident_mistakes(predictions: Predictions, most: int = MISTAKES) -> Predictions:
    """The samples that were not recognised with the highest probability of another class, highest first.

    Args:
        predictions: where a sample is in them several times (once for each seed), its mean counts.
        most: how many at most.
    """
    means = by_sequence(predictions, predictions.index)
    wrong = np.flatnonzero(~means.correct())
    order = np.argsort(-means.probabilities[wrong].max(axis=1), kind="stable")
    return means.select(wrong[order[:most]])


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
        found = confident_mistakes(predictions) if predictions else None
        if found is None or not len(found.index):
            continue
        if album.shown and len(charts) < MOST_RUNS:
            try:
                charts.append(_mistakes_chart(run, main, found, album))
                continue
            except FerdistError as error:
                missing.append(left_out(run, len(runs) > 1, error))
        folded.append(_mistakes_table(run, found))
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


def _mistakes_chart(run: Run, main: Evaluation, mistakes: Predictions, album: Album) -> Chart:
    images = pixels_of(album.faces(run, main).images(mistakes.index))
    names = [short(name, 12) for name in run.classes]
    tiles = [
        Tile(pixels, f"{names[true]}, said\n{names[row.argmax()]} {percent(row.max(), 0)} %")
        for true, row, pixels in zip(mistakes.label, mistakes.probabilities, images, strict=True)
    ]
    spoken = "; ".join(tile.text.replace("\n", " ") for tile in tiles)
    return Chart(
        "mistakes",
        caption=f"{run.name} on {place(main)}: the mistakes with the highest probability. Above each face: "
        "its label and the prediction.",
        alt=f"{count(len(tiles), 'face')} with label, wrong prediction and its probability: {spoken}.",
        figure=tile_chart(in_rows(tiles)),
        table=_mistakes_table(run, mistakes),
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
                    "% of the class": percent(number / main.confusion[true].sum()),
                }


def _mistakes_table(run: Run, mistakes: Predictions) -> Table:
    rows = zip(mistakes.index, mistakes.label, mistakes.probabilities, strict=True)
    return Table.of(
        f"{run.name}: mistakes with the highest probability",
        (
            {
                "Sample": Number(sample),
                "True class": run.classes[true],
                "Mistaken for": run.classes[row.argmax()],
                "Probability %": percent(row.max()),
                "Probability of the true class, %": percent(row[true]),
            }
            for sample, true, row in rows
        ),
    )
