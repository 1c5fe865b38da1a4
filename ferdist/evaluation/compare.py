"""Two networks on the same samples: differences, intervals and paired tests from their saved predictions.

A network is what its seeds are on average: what is compared is how many of its models recognise a sample.
Samples of one person, or copies of one image, are not independent evidence: intervals and tests take them
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from ferdist.data.record import Integers
from ferdist.evaluation.metrics import accuracy_interval, seeds_intervals
from ferdist.evaluation.predictions import Predictions, check_same_samples


@dataclass(frozen=True)
class Difference:
    """The first network against the second.

    Attributes:
        accuracy: difference of the accuracies, each the mean over the network's seeds; -1 to 1.
        interval: 95 % interval of it, a bootstrap over the clusters: these models on other samples.
        seeds_interval: that of `metrics.seeds_intervals`: other seeds, too; None unless both have several.
        p: of the paired permutation test, see `permutation_p`.
    """

    accuracy: float
    interval: tuple[float, float]
    seeds_interval: tuple[float, float] | None
    p: float


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test: samples that only the first or only the second model recognises, and p."""

    only_first: int
    only_second: int
    p: float


def compare_networks(
    first: Sequence[Predictions], second: Sequence[Predictions], cluster: Integers
) -> Difference:
    """Compare two networks on the samples that both were scored on.

    Args:
        first, second: the predictions of each network's models, one per seed; their numbers may differ.
        cluster: int64 (N,), the subject or copy group of each sample.

    Raises:
        RunError: if they were scored on different data or samples, or by different labels.
    """
    for other in (*first, *second):
        check_same_samples(first[0], other)
    correct = [np.stack([p.correct() for p in network]) for network in (first, second)]
    hits = [of_network.sum(axis=0) for of_network in correct]
    # A common denominator keeps the differences whole, and the test exact.
    difference: Integers = hits[0] * len(second) - hits[1] * len(first)
    share = difference / (len(first) * len(second))
    several = min(len(first), len(second)) > 1
    rows = [of_network[:, None].astype(np.float64) for of_network in correct]
    return Difference(
        accuracy=float(share.mean()),
        interval=accuracy_interval(share, cluster),
        seeds_interval=seeds_intervals(rows[0], rows[1], cluster)[0] if several else None,
        p=permutation_p(difference, cluster),
    )


def permutation_p(difference: Integers, cluster: Integers) -> float:
    """Exact two-sided p of the paired permutation test by cluster.

    If the networks were exchangeable, each of the 2^C assignments of signs to the clusters' differences would
    be equally likely (Fisher, The Design of Experiments, 1935, section 21; Good, Permutation, Parametric and
    Bootstrap Tests, 2005, section 3.5). Differences are whole numbers, so the distribution of their signed
    sum is a convolution of C two-point distributions: it is computed in full, without drawing.

    Args:
        difference: int64 (N,), hits of the first network minus those of the second, on a common scale.
        cluster: int64 (N,), the subject or copy group of each sample.
    """
    _, group = np.unique(cluster, return_inverse=True)
    sums = np.zeros(group.max(initial=-1) + 1, dtype=np.int64)
    np.add.at(sums, group, difference)
    sizes = np.abs(sums[sums != 0])
    sizes //= np.gcd.reduce(sizes, initial=0) or 1
    observed, bound = abs(int(np.sign(sums[sums != 0]) @ sizes)), int(sizes.sum())
    probability = np.zeros(2 * bound + 1)  # of the sums -bound to bound
    probability[bound] = 1.0
    for size in sizes.tolist():
        moved = np.zeros_like(probability)
        moved[size:] += probability[: len(probability) - size] / 2
        moved[: len(probability) - size] += probability[size:] / 2
        probability = moved
    return min(1.0, float(probability[np.abs(np.arange(-bound, bound + 1)) >= observed].sum()))


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order given.

    Rejecting where the adjusted value is at most alpha keeps the probability of any false rejection at or
    below alpha, however the tests depend on each other (Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    stepped = np.minimum(1.0, np.maximum.accumulate(np.asarray(p, dtype=np.float64)[order] * factors))
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def mcnemar(first: Predictions, second: Predictions) -> McNemar:
    """Exact McNemar test of two models, one of each network (Dietterich, Neural Computation 10, 1998).

    It takes the samples as independent and two single models as they are: it knows nothing of people, copies
    or seeds. For FER2013, where there are no subjects.

    Raises:
        RunError: if they are of different data or samples.
    """
    check_same_samples(first, second)
    right = [p.correct() for p in (first, second)]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p)
