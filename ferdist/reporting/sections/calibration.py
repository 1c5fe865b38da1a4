"""Whether the probabilities can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ferdist.charts import MARKERS, MUTED, PERCENT, SERIES, label_of, panel
from ferdist.evaluation.metrics import ECE_BINS
from ferdist.evaluation.predictions import Predictions
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run, predictions_of
from ferdist.reporting.page import Chart, Section
from ferdist.table import Table, count, percent, percent_interval

EDGES: Final = np.linspace(0.0, 1.0, ECE_BINS + 1)


def calibrate(predictions: Predictions) -> pd.DataFrame:
    """Samples by the probability of the predicted class, in the bins of the calibration error.

    A bin holds its upper bound. Guo et al., On calibration of modern neural networks, ICML 2017, section 2.

    Returns:
        A row for each bin that holds any, by its number from 0 to ``ECE_BINS`` - 1: how many ``samples``, the
        mean ``confidence`` (probability of the predicted class), and the ``accuracy``.
    """
    confidence = predictions.probabilities.max(axis=1).astype(float)
    samples = pd.DataFrame({"confidence": confidence, "accuracy": predictions.correct().astype(float)})
    bins = samples.groupby(np.searchsorted(EDGES[1:-1], confidence))
    return bins.mean().assign(samples=bins.size())


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
                for number, confidence, accuracy, samples in bins.itertuples()
            ),
        ),
    )
    text = f"{error} Points below the dotted line are overconfident."
    return Section("calibration", "Calibration", text=(text,), charts=(chart,), missing=missing)


def reliability_chart(labels: Sequence[str], calibrations: Sequence[pd.DataFrame]) -> Figure:
    """Accuracy against confidence of each run, with the share of samples in each bin below."""
    several = len(labels) > 1
    shown = [*map(label_of, labels)]
    with panel(4.4, shown, ratios=(4, 1)) as (figure, (upper, lower)):
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        for number, (label, bins) in enumerate(zip(shown, calibrations, strict=True)):
            colour, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)] + "-"
            upper.plot(
                bins["confidence"],
                bins["accuracy"],
                marker,
                color=colour,
                linewidth=1.3,
                label=label,
                clip_on=False,
            )
            share = bins["samples"].reindex(range(ECE_BINS), fill_value=0) / bins["samples"].sum()
            lower.stairs(share, EDGES, color=colour, fill=not several, alpha=0.9 if several else 0.6)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        lower.set(ylim=(0, None), xlabel="confidence (probability of the predicted class)", ylabel="samples")
        for axes in (upper, lower):
            axes.yaxis.set_major_formatter(PERCENT)
        lower.yaxis.set_major_locator(MaxNLocator(nbins=2))
        lower.xaxis.set_major_formatter(PERCENT)
    return figure
