"""Whether the probabilities can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Calibration:
    """Samples grouped by the probability of the predicted class, in B bins of equal width from 0 to 1.

    Attributes:
        count: int64 (B,), samples in each bin; a bin holds its upper bound.
        confidence: float64 (F,), their mean probability of the predicted class, F bins that are not empty.
        accuracy: float64 (F,), fraction of them that is right.
    """

    count: Integers
    confidence: Floats
    accuracy: Floats

    @property
    def edges(self) -> Floats:
        """Bounds of the bins, float64 (B + 1,)."""
        return np.linspace(0.0, 1.0, len(self.count) + 1)


def calibrate(predictions: Predictions) -> Calibration:
    """Group predictions by confidence (Guo et al., ICML 2017, section 2), over the bins of the ECE."""
    confidence = predictions.probabilities.max(axis=1).clip(max=1)  # a mean of float32 may be just above
    right = predictions.probabilities.argmax(axis=1) == predictions.label
    accuracy, mean = calibration_curve(right, confidence, pos_label=True, n_bins=ECE_BINS)
    edges = np.linspace(0.0, 1.0, ECE_BINS + 1)
    number = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=ECE_BINS)
    return Calibration(number, mean, accuracy)


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
                    "Confidence %": percent_interval(groups.edges[place : place + 2]),
                    "Samples": count(int(groups.count[place])),
                    "Mean confidence %": percent(groups.confidence[row]),
                    "Accuracy %": percent(groups.accuracy[row]),
                }
                for name, groups in found.items()
                for row, place in enumerate(np.flatnonzero(groups.count))
            ),
        ),
    )
    text = f"{error} Points below the dotted line are overconfident."
    return Section("calibration", "Calibration", text=(text,), charts=(chart,), missing=missing)


def reliability_chart(labels: Sequence[str], calibrations: Sequence[Calibration]) -> Figure:
    """Accuracy against confidence of each run, with the share of samples in each bin below."""
    several = len(labels) > 1
    shown = [*map(label_of, labels)]
    with panel(4.4, shown, ratios=(4, 1)) as (figure, (upper, lower)):
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        for number, (label, groups) in enumerate(zip(shown, calibrations, strict=True)):
            colour, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)] + "-"
            at = groups.confidence, groups.accuracy
            upper.plot(*at, marker, color=colour, linewidth=1.3, label=label, clip_on=False)
            share = groups.count / max(groups.count.sum(), 1)
            lower.stairs(share, groups.edges, color=colour, fill=not several, alpha=0.9 if several else 0.6)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        lower.set(ylim=(0, None), xlabel="confidence (probability of the predicted class)", ylabel="samples")
        for axes in (upper, lower):
            axes.yaxis.set_major_formatter(PERCENT)
        lower.yaxis.set_major_locator(MaxNLocator(nbins=2))
        lower.xaxis.set_major_formatter(PERCENT)
    return figure
