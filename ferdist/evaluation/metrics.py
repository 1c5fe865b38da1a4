"""Every figure of an evaluation as a pure function of the saved predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from ferdist.data.record import Integers
from ferdist.errors import RunError
from ferdist.io import atomic_path

Probabilities = npt.NDArray[np.float32]

ECE_BINS = 15
BOOTSTRAP_RESAMPLES = 10_000
BOOTSTRAP_BATCH = 100


@dataclass(frozen=True)
class Predictions:
    """What a model says of each sample, once.

    Attributes:
        index: int64 (N,), sample numbers in the beton, ascending.
        label: int64 (N,).
        probabilities: float32 (N, K), rows sum to 1.
        beton_sha256: of the file that the samples came from.
    """

    index: Integers
    label: Integers
    probabilities: Probabilities
    beton_sha256: str

    def select(self, keep: npt.NDArray[np.bool_]) -> Predictions:
        """The samples where ``keep`` (N,) is true."""
        return Predictions(self.index[keep], self.label[keep], self.probabilities[keep], self.beton_sha256)

    def save(self, path: Path) -> None:
        """Write a compressed .npz."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                index=self.index,
                label=self.label,
                probabilities=self.probabilities,
                beton_sha256=np.array(self.beton_sha256),
            )

    @staticmethod
    def load(path: Path) -> Predictions:
        """Read what `save` wrote.

        Raises:
            RunError: if the file is missing or no predictions.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                return Predictions(
                    stored["index"], stored["label"], stored["probabilities"], str(stored["beton_sha256"])
                )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise RunError(f"{path}: no predictions that can be read: {error}") from None


def by_sequence(predictions: Predictions, sequence: Integers) -> Predictions:
    """One prediction per video sequence and label: the mean of its frames' probabilities.

    CK+'s eight classes take the neutral first frame from the sequence whose last frames show another
    expression: these are two things to recognise.

    Args:
        predictions: per frame.
        sequence: int64 (N,), the sequence of each prediction's sample.

    Returns:
        One row per sequence and label; ``index`` is that of its first frame.
    """
    pairs = np.column_stack([sequence, predictions.label])
    _, first, group = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), predictions.probabilities.shape[1]))
    np.add.at(sums, group, predictions.probabilities)
    means = (sums / np.bincount(group)[:, None]).astype(np.float32)
    return Predictions(predictions.index[first], predictions.label[first], means, predictions.beton_sha256)


def accuracy_interval(
    correct: npt.NDArray[np.bool_] | npt.NDArray[np.float64], cluster: Integers, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the accuracy, resampling whole clusters.

    Samples of one person, and copies of one image, are right or wrong together; resampling single samples
    would make the interval too narrow (Field and Welsh, Bootstrapping clustered data, JRSS B 2007).

    Args:
        correct: bool (N,), or float64 (N,): the share of several models that are right, or a difference of
            two such shares, which makes the interval that of a paired difference.
        cluster: int64 (N,), the subject or copy group of each sample.
        seed: of the resampling.

    Returns:
        Lower and upper end; both the accuracy itself where there is one cluster only.
    """
    return accuracy_intervals(correct[None], cluster, seed)[0]


def accuracy_intervals(
    correct: npt.NDArray[np.bool_] | npt.NDArray[np.float64], cluster: Integers, seed: int = 0
) -> list[tuple[float, float]]:
    """As `accuracy_interval` for M rows, ``correct`` (M, N), with the same resamples for all of them."""
    _, group = np.unique(cluster, return_inverse=True)
    sizes = np.bincount(group).astype(float)
    sums = np.array([np.bincount(group, weights=row) for row in correct])
    clusters = len(sizes)
    if clusters < 2:
        return [(float(mean), float(mean)) for mean in sums.sum(axis=1) / sizes.sum()]
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(BOOTSTRAP_RESAMPLES // BOOTSTRAP_BATCH):
        drawn = rng.integers(0, clusters, (BOOTSTRAP_BATCH, clusters))
        drawn += clusters * np.arange(BOOTSTRAP_BATCH)[:, None]
        times = np.bincount(drawn.ravel(), minlength=BOOTSTRAP_BATCH * clusters).reshape(-1, clusters)
        weights = times.astype(np.float64)
        means.append((weights @ sums.T) / (weights @ sizes)[:, None])
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def expected_calibration_error(probabilities: Probabilities, label: Integers) -> float:
    """Expected calibration error, 15 equal-width bins of confidence (Guo et al., ICML 2017, section 2)."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == label
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gap = np.bincount(bins, weights=confidence - correct, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / len(label))


def score(predictions: Predictions, cluster: Integers) -> dict[str, Any]:
    """All figures of one set of predictions.

    Args:
        predictions: at least one row.
        cluster: int64 (N,), what the interval resamples: subjects where there are subjects, else copy groups.

    Returns:
        samples, accuracy, accuracy_ci95, balanced_accuracy and macro_f1 (over the classes that occur among
        the labels), per_class_recall (None for a class that does not occur), confusion (rows: true class),
        ece, loss (mean negative log likelihood).
    """
    return score_all([predictions], cluster)[0]


def score_all(predictions: Sequence[Predictions], cluster: Integers) -> list[dict[str, Any]]:
    """As `score`, for several predictions of the same samples; the bootstrap's resamples are drawn once."""
    correct = np.stack([p.probabilities.argmax(axis=1) == p.label for p in predictions])
    intervals = accuracy_intervals(correct, cluster)
    return [_figures(p, interval) for p, interval in zip(predictions, intervals, strict=True)]


def _figures(predictions: Predictions, interval: tuple[float, float]) -> dict[str, Any]:
    label, probabilities = predictions.label, predictions.probabilities
    classes = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(axis=1)
    present = np.isin(classes, label)
    recall: Sequence[float] = recall_score(label, predicted, labels=classes, average=None, zero_division=0)
    return {
        "samples": len(label),
        "accuracy": float((predicted == label).mean()),
        "accuracy_ci95": list(interval),
        "balanced_accuracy": _balanced_accuracy(label, predicted),
        "macro_f1": float(
            f1_score(label, predicted, labels=classes[present], average="macro", zero_division=0)
        ),
        "per_class_recall": [float(r) if p else None for r, p in zip(recall, present, strict=True)],
        "confusion": confusion(predictions).tolist(),
        "ece": expected_calibration_error(probabilities, label),
        "loss": _loss(predictions),
    }


def quick_score(predictions: Predictions) -> dict[str, float]:
    """The few figures that are watched during training: accuracy, balanced accuracy, macro-F1, loss."""
    label, predicted = predictions.label, predictions.probabilities.argmax(axis=1)
    present = np.unique(label)
    return {
        "loss": _loss(predictions),
        "accuracy": float((predicted == label).mean()),
        "balanced_accuracy": _balanced_accuracy(label, predicted),
        "macro_f1": float(f1_score(label, predicted, labels=present, average="macro", zero_division=0)),
    }


def confusion(predictions: Predictions) -> Integers:
    """Confusion matrix, int64 (K, K): rows are true classes, columns predicted ones."""
    classes = np.arange(predictions.probabilities.shape[1])
    matrix = confusion_matrix(predictions.label, predictions.probabilities.argmax(axis=1), labels=classes)
    return np.asarray(matrix, dtype=np.int64)


def _balanced_accuracy(label: Integers, predicted: Integers) -> float:
    return float(recall_score(label, predicted, labels=np.unique(label), average="macro", zero_division=0))


def _loss(predictions: Predictions) -> float:
    """Mean negative log likelihood; a probability that float32 rounds to 0 counts as its smallest number."""
    chosen = predictions.probabilities[np.arange(len(predictions.label)), predictions.label]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean(dtype=np.float64))
