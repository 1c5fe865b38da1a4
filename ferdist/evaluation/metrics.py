"""Every score of an evaluation as a pure function of the saved predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from ferdist.data.record import Integers
from ferdist.evaluation.predictions import Predictions, Probabilities

ECE_BINS = 15
TINY = np.finfo(np.float32).tiny
"""What a probability that float32 rounds to 0 counts as."""
RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 100
_JSON_NAMES = {"interval": "accuracy_ci95", "recall": "per_class_recall"}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What predictions amount to. Rates are fractions from 0 to 1; None where one is unknown.

    Attributes:
        samples: that were scored.
        accuracy: share of the samples that are recognised.
        interval: its 95 % interval.
        balanced_accuracy, macro_f1: over the classes that occur among the labels.
        recall: of each class; None for a class that does not occur.
        confusion: int64 (K, K): rows are the true classes, columns the predicted ones.
        ece: expected calibration error.
        loss: mean negative log likelihood.
    """

    samples: int
    accuracy: float | None
    interval: tuple[float, float] | None
    balanced_accuracy: float | None
    macro_f1: float | None
    recall: tuple[float | None, ...]
    confusion: Integers = field(compare=False)
    ece: float | None
    loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As in results.json and summary.json."""
        values = {_JSON_NAMES.get(one.name, one.name): getattr(self, one.name) for one in fields(Scores)}
        return values | {"confusion": self.confusion.tolist()}


def accuracy_interval(
    correct: npt.NDArray[np.bool_] | npt.NDArray[np.float64], cluster: Integers
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the accuracy, resampling whole clusters.

    Samples of one person, and copies of one image, are right or wrong together; resampling single samples
    would make the interval too narrow (Field and Welsh, Bootstrapping clustered data, JRSS B 2007).

    Args:
        correct: bool (N,), or float64 (N,): the share of several models that are right, or a difference of
            two such shares, which makes the interval that of a paired difference.
        cluster: int64 (N,), the subject or copy group of each sample.

    Returns:
        Lower and upper end; both the accuracy itself where there is one cluster only.
    """
    return accuracy_intervals(correct[None], cluster)[0]


def accuracy_intervals(
    correct: npt.NDArray[np.bool_] | npt.NDArray[np.float64], cluster: Integers
) -> list[tuple[float, float]]:
    """As `accuracy_interval` for M rows, ``correct`` (M, N), with the same resamples for all of them."""
    return _percentiles(_resampled_means(correct, cluster))


def seeds_intervals(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], cluster: Integers
) -> list[tuple[float, float]]:
    """95 % intervals of the differences of two networks that cover other seeds as well as other clusters.

    Clusters and, of each network, seeds are resampled independently (Owen, The pigeonhole bootstrap, Annals
    of Applied Statistics 1, 2007). Of n seeds n - 1 are drawn, so that the variance of their mean is unbiased
    (Rao and Wu, JASA 83, 1988). With as few seeds as trainings have, it is a rough interval.

    Args:
        first, second: float64 (S, M, N), S the number of seeds, 2 or more, which may differ: of each seed, M
            rows as for `accuracy_intervals`.
        cluster: int64 (N,), the subject or copy group of each sample.

    Returns:
        For each of the M rows, of the first network's mean over the seeds minus the second's.
    """
    rows = first.shape[1]
    together = np.concatenate([first, second]).reshape(-1, first.shape[2])
    means = _resampled_means(together, cluster).reshape(RESAMPLES, -1, rows)
    rng = np.random.default_rng(1)
    of_networks = []
    for of_network in np.split(means, [len(first)], axis=1):
        seeds = of_network.shape[1]
        drawn = rng.integers(0, seeds, (RESAMPLES, seeds - 1, 1))
        of_networks.append(np.take_along_axis(of_network, drawn, axis=1).mean(axis=1))
    return _percentiles(of_networks[0] - of_networks[1])


def _resampled_means(
    correct: npt.NDArray[np.bool_] | npt.NDArray[np.float64], cluster: Integers
) -> npt.NDArray[np.float64]:
    """Means of M rows over each of the bootstrap's resamples of the clusters, float64 (RESAMPLES, M)."""
    _, group = np.unique(cluster, return_inverse=True)
    sizes = np.bincount(group).astype(float)
    sums = np.array([np.bincount(group, weights=row) for row in correct])
    clusters = len(sizes)
    if clusters < 2:
        return np.tile(sums.sum(axis=1) / sizes.sum(), (RESAMPLES, 1))
    rng = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):
        drawn = rng.integers(0, clusters, (RESAMPLES_AT_ONCE, clusters))
        drawn += clusters * np.arange(RESAMPLES_AT_ONCE)[:, None]
        times = np.bincount(drawn.ravel(), minlength=RESAMPLES_AT_ONCE * clusters)
        weights = times.reshape(-1, clusters).astype(np.float64)
        means.append((weights @ sums.T) / (weights @ sizes)[:, None])
    return np.concatenate(means)


def _percentiles(means: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def expected_calibration_error(probabilities: Probabilities, label: Integers) -> float:
    """Expected calibration error, 15 equal-width bins of confidence (Guo et al., ICML 2017, section 2)."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == label
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gap = np.bincount(bins, weights=confidence - correct, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / len(label))


def best_temperature(probabilities: Probabilities, label: Integers) -> float:
    """The temperature, in [0.1, 10], by which logits are divided for the highest likelihood of the labels.

    Temperature scaling (Guo et al., ICML 2017, section 4.2): it changes no answer, only its probabilities.

    Args:
        probabilities: float32 (N, K), rows sum to 1; their logarithms are logits.
        label: int64 (N,).
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), TINY))
    own = logits[np.arange(len(label)), label]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float(np.mean(logsumexp(scale * logits, axis=1) - scale * own))

    limit = np.log(10.0)
    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x))


def score(predictions: Predictions, cluster: Integers) -> Scores:
    """All scores of one set of predictions.

    Args:
        predictions: at least one row, without cells.
        cluster: int64 (N,), what the interval resamples: subjects where there are subjects, else copy groups;
            with a single one there is no interval.
    """
    return score_all([predictions], cluster)[0]


def score_all(predictions: Sequence[Predictions], cluster: Integers) -> list[Scores]:
    """As `score`, for several predictions of the same samples; the bootstrap's resamples are drawn once."""
    if len(np.unique(cluster)) < 2:  # one person says nothing about others
        return [scores_of(one, None) for one in predictions]
    intervals = accuracy_intervals(np.stack([p.correct() for p in predictions]), cluster)
    return [scores_of(p, interval) for p, interval in zip(predictions, intervals, strict=True)]


def scores_of(predictions: Predictions, interval: tuple[float, float] | None) -> Scores:
    """All scores of predictions whose interval is known."""
    counts = confusion(predictions)
    hits, totals = np.diag(counts).tolist(), counts.sum(axis=1).tolist()
    return Scores(
        samples=len(predictions.label),
        interval=interval,
        recall=tuple(hit / total if total else None for hit, total in zip(hits, totals, strict=True)),
        confusion=counts,
        ece=expected_calibration_error(predictions.probabilities, predictions.label),
        **quick_score(predictions),
    )


def quick_score(predictions: Predictions) -> dict[str, float]:
    """The few scores that are watched during training: accuracy, balanced accuracy, macro-F1, loss."""
    label, rows = predictions.label, predictions.probabilities
    predicted, present = rows.argmax(axis=1), np.unique(label)
    likelihood = np.maximum(rows[np.arange(len(label)), label], TINY)
    balanced = recall_score(label, predicted, labels=present, average="macro", zero_division=0)
    return {
        "loss": float(-np.log(likelihood).mean(dtype=np.float64)),
        "accuracy": float((predicted == label).mean()),
        "balanced_accuracy": float(balanced),
        "macro_f1": float(f1_score(label, predicted, labels=present, average="macro", zero_division=0)),
    }


def confusion(predictions: Predictions) -> Integers:
    """Confusion matrix, int64 (K, K): rows are true classes, columns predicted ones."""
    classes = np.arange(predictions.probabilities.shape[1])
    matrix = confusion_matrix(predictions.label, predictions.probabilities.argmax(axis=1), labels=classes)
    return np.asarray(matrix, dtype=np.int64)
