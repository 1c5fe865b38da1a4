"""Whether the probabilities can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.calibration import calibration_curve

from ferdist.charts import MARKERS, MUTED, PERCENT, SERIES, Floats, label_of, panel
from ferdist.data.record import Integers
from ferdist.evaluation.metrics import ECE_BINS
from ferdist.evaluation.predictions import Predictions
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run, predictions_of
from ferdist.reporting.page import Chart, Section
from ferdist.table import Table, count, percent, percent_interval

EDGES: Final = np.linspace(0.0, 1.0, ECE_BINS + 1)


class Bins(NamedTuple):
    """Samples by the probability of the predicted class: the F bins of the calibration error that hold any.

    A bin holds its upper bound. Guo et al., On calibration of modern neural networks, ICML 2017, section 2.

    Attributes:
        number: int64 (F,), from 0 to ``ECE_BINS`` - 1.
        samples: int64 (F,), how many.
        confidence, accuracy: float64 (F,), mean probability of the predicted class, fraction that is right.
    """

    number: Integers
    samples: Integers
    confidence: Floats
    accuracy: Floats


def calibrate(predictions: Predictions) -> Bins:
    """Group predictions by confidence."""
    confidence = predictions.probabilities.max(axis=1).clip(max=1)  # a mean of float32 may be just above
    right = predictions.probabilities.argmax(axis=1) == predictions.label
    accuracy, mean = calibration_curve(right, confidence, pos_label=True, n_bins=ECE_BINS)
    number, samples = np.unique(np.searchsorted(EDGES[1:-1], confidence), return_counts=True)
    return Bins(number, samples, mean, accuracy)


def calibration(runs: Sequence[Run], album: Album) -> Section:
    """Accuracy against confidence, on the predictions of the main evaluations."""
    several = len(runs) > 1
    found, missing, spoken = {}, [], []
    for run in runs:
        main = run.main
        predictions = predictions_of(run, main) if main else None
        if main is None or predictions is None:
            missing.append(f"{run.name}: " * several + "The predictions of the main evaluation are missing.")
        else:
            found[run.name] = calibrate(predictions)
            spoken.append(f"{run.name} {percent(main.ece)} %")
    if not found:
        return Section("calibration", "Calibration", missing=missing)
    error = f"Expected calibration error over {ECE_BINS} bins of equal width: {'; '.join(spoken)}."
    chart = Chart(
        "calibration",
        caption="Accuracy against confidence; on the dotted line they agree. Below: the share of samples.",
        alt=f"Reliability diagram. {error}",
        figure=reliability_chart(list(found), list(found.values())),
        table=Table.of(
            "Accuracy by confidence",
            (
                {
                    "Run": name if several else None,
                    "Confidence %": percent_interval(EDGES[number : number + 2]),
                    "Samples": count(int(samples)),
                    "Mean confidence %": percent(confidence),
                    "Accuracy %": percent(accuracy),
                }
                for name, bins in found.items()
                for number, samples, confidence, accuracy in zip(*bins, strict=True)
            ),
        ),
    )
    text = f"{error} Points below the dotted line are overconfident."
    return Section("calibration", "Calibration", text=(text,), charts=(chart,), missing=missing)


def reliability_chart(labels: Sequence[str], calibrations: Sequence[Bins]) -> Figure:
    """Accuracy against confidence of each run, with the share of samples in each bin below."""
    several = len(labels) > 1
    shown = [*map(label_of, labels)]
    with panel(4.4, shown, ratios=(4, 1)) as (figure, (upper, lower)):
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        for number, (label, bins) in enumerate(zip(shown, calibrations, strict=True)):
            colour, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)] + "-"
            upper.plot(
                bins.confidence,
                bins.accuracy,
                marker,
                color=colour,
                linewidth=1.3,
                label=label,
                clip_on=False,
            )
            share = np.bincount(bins.number, bins.samples, ECE_BINS) / bins.samples.sum()
            lower.stairs(share, EDGES, color=colour, fill=not several, alpha=0.9 if several else 0.6)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        lower.set(ylim=(0, None), xlabel="confidence (probability of the predicted class)", ylabel="samples")
        for axes in (upper, lower):
            axes.yaxis.set_major_formatter(PERCENT)
        lower.yaxis.set_major_locator(MaxNLocator(nbins=2))
        lower.xaxis.set_major_formatter(PERCENT)
    return figure
