from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from ferdist.evaluation import metrics
from ferdist.evaluation.predictions import Predictions


def predictions(label: list[int], probabilities: list[list[float]]) -> Predictions:
    n = len(label)
    return Predictions(
        np.arange(n), np.array(label, dtype=np.int64), np.array(probabilities, dtype=np.float32), "0" * 64
    )


def hard(label: list[int], predicted: list[int], classes: int) -> Predictions:
    return predictions(label, np.eye(classes)[predicted].tolist())


def test_scores_of_a_case_worked_out_by_hand() -> None:
    #          true 0: 3 of 4 right; true 1: 1 of 2 right; true 2: none there
    p = hard([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 2], classes=3)
    scores = metrics.score(p, cluster=np.arange(6))
    assert scores.samples == 6
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert scores.recall == (0.75, 0.5, None)
    assert scores.confusion.tolist() == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]
    # precision 1 and 1/2, recall 3/4 and 1/2
    assert scores.macro_f1 == pytest.approx((2 * 0.75 / 1.75 + 0.5) / 2)


def test_calibration_error_of_a_case_worked_out_by_hand() -> None:
    # Two at 0.9, one right: gap 0.4 each; two at 0.6, both right: gap 0.4 each the other way.
    p = predictions([0, 1, 0, 0], [[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    ece = metrics.expected_calibration_error(p.probabilities, p.label)
    assert ece == pytest.approx(0.4, abs=1e-6)
    sure = predictions([0, 1], [[1.0, 0.0], [0.0, 1.0]])
    assert metrics.expected_calibration_error(sure.probabilities, sure.label) == 0.0


def test_loss_is_the_negative_log_likelihood_and_never_infinite() -> None:
    p = predictions([0, 1], [[0.5, 0.5], [0.75, 0.25]])
    assert metrics.quick_score(p)["loss"] == pytest.approx(-(np.log(0.5) + np.log(0.25)) / 2)
    assert np.isfinite(metrics.quick_score(predictions([0], [[0.0, 1.0]]))["loss"])


def test_the_interval_of_samples_in_clusters_is_wider() -> None:
    """With all samples of a cluster alike there are only as many observations as clusters."""
    by_cluster = np.random.default_rng(0).random(100) < 0.8
    correct, cluster = np.repeat(by_cluster, 9), np.repeat(np.arange(100), 9)
    low, high = metrics.accuracy_interval(correct, cluster)
    narrow_low, narrow_high = metrics.accuracy_interval(correct, np.arange(900))
    assert (high - low) / (narrow_high - narrow_low) == pytest.approx(3.0, rel=0.1)
    assert metrics.accuracy_interval(correct, cluster) == (low, high), "the same seed, the same interval"


def test_the_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    correct, cluster = rng.random((4, 500)) < 0.6, rng.integers(0, 90, 500)
    sizes = np.bincount(cluster).astype(float)
    hits = np.bincount(cluster, weights=correct[2])
    expected = bootstrap(
        (hits, sizes),
        lambda hits, sizes, axis=-1: hits.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    rows = metrics.accuracy_intervals(correct, cluster)
    assert rows[2] == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert rows[2] == metrics.accuracy_interval(correct[2], cluster), "rows do not depend on each other"


def test_several_predictions_are_scored_as_one_by_one() -> None:
    a, b = hard([0, 1, 1, 0], [0, 1, 0, 0], 2), hard([0, 1, 1, 0], [1, 1, 1, 0], 2)
    cluster = np.array([0, 0, 1, 2])
    assert metrics.score_all([a, b], cluster) == [metrics.score(p, cluster) for p in (a, b)]


def test_one_cluster_gives_no_spread() -> None:
    assert metrics.accuracy_interval(np.array([True, False]), np.array([7, 7])) == (0.5, 0.5)


def test_an_interval_with_seeds_has_the_variance_of_both() -> None:
    """Where each sample's and each seed's effect are known and add up."""
    drawn = np.random.default_rng(0)
    cluster = np.arange(400)
    of_samples = drawn.normal(0, 1, 400)
    seeds = [drawn.normal(0, 0.2, (12, 1, 1)), drawn.normal(0, 0.1, (8, 1, 1))]
    first, second = 0.3 + of_samples + seeds[0], seeds[1] + np.zeros(400)
    ((low, high),) = metrics.seeds_intervals(first, second, cluster)
    variance = of_samples.var() / 400 + sum(of.var(ddof=1) / len(of) for of in seeds)
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.04)
    assert (low + high) / 2 == pytest.approx(first.mean() - second.mean(), abs=0.01)


def test_seeds_that_agree_leave_the_interval_over_samples() -> None:
    drawn = np.random.default_rng(0)
    cluster = np.repeat(np.arange(50), 4)
    rows = drawn.random((2, 3, 200))
    first, second = (np.repeat(row[None], 3, axis=0) for row in rows)
    expected = np.array(metrics.accuracy_intervals(rows[0] - rows[1], cluster))
    np.testing.assert_allclose(metrics.seeds_intervals(first, second, cluster), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("seeds", "share", "with_seeds", "without"),
    [(2, 3.0, 0.82, 0.46), (3, 1.0, 0.93, 0.83), (3, 3.0, 0.88, 0.46), (5, 3.0, 0.92, 0.46)],
)
def test_how_often_an_interval_covers_the_difference_of_two_methods(
    seeds: int, share: float, with_seeds: float, without: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two methods that are equal, in 400 made-up experiments; the expected figures are those of 1,500.

    Args:
        share: the seeds' part of the difference's standard deviation over the samples' part.
        with_seeds, without: how often the interval with seeds, and that over samples alone, has 0 in it.
    """
    monkeypatch.setattr(metrics, "RESAMPLES", 1000)
    drawn = np.random.default_rng(0)
    samples, experiments = 200, 400
    cluster = np.arange(samples)
    of_seed = share * np.sqrt(seeds / (2 * samples))
    covering = np.zeros(2)
    for _ in range(experiments):
        effects = drawn.normal(0, of_seed, (2, seeds, 1, 1))
        first, second = drawn.normal(0, 1, samples) + effects[0], np.zeros(samples) + effects[1]
        intervals = (
            metrics.seeds_intervals(first, second, cluster)[0],
            metrics.accuracy_interval((first - second).mean(axis=(0, 1)), cluster),
        )
        covering += [low < 0 < high for low, high in intervals]
    assert covering / experiments == pytest.approx([with_seeds, without], abs=0.05)
