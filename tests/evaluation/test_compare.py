"""Paired comparisons against enumeration, scipy, textbook examples and their own null distribution."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from ferdist.errors import RunError
from ferdist.evaluation.compare import compare_networks, holm, mcnemar, permutation_p
from ferdist.evaluation.metrics import accuracy_interval, seeds_intervals
from tests.evaluation.conftest import answers


def enumerated(sums: list[int]) -> float:
    """Share of all sign assignments whose sum is at least as far from 0."""
    signs = itertools.product((1, -1), repeat=len(sums))
    totals = [abs(sum(s * d for s, d in zip(sign, sums, strict=True))) for sign in signs]
    return sum(total >= abs(sum(sums)) for total in totals) / len(totals)


def test_a_case_worked_out_by_hand() -> None:
    # Cluster sums 3, 1, -1: of the 8 signed sums +-5, +-3 (twice), +-1, six reach the observed 3.
    p = permutation_p(np.array([2, 1, 1, -1]), np.array([7, 7, 4, 9]))
    assert p == pytest.approx(6 / 8)
    # All five clusters on one side: only the two assignments with equal signs reach the sum.
    assert permutation_p(np.ones(5, np.int64), np.arange(5)) == pytest.approx(2 / 2**5)
    assert permutation_p(np.array([1, -1, 0]), np.array([0, 0, 1])) == 1.0, "no cluster differs"
    assert permutation_p(np.array([2, -2]), np.array([0, 1])) == 1.0, "the observed sum is 0"


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_enumeration_of_all_signs(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    clusters = int(drawn.integers(1, 13))
    cluster = drawn.integers(0, clusters, 60)
    difference = drawn.integers(-3, 4, 60)
    sums = [int(difference[cluster == number].sum()) for number in np.unique(cluster)]
    assert permutation_p(difference, cluster) == pytest.approx(enumerated(sums), abs=1e-12)


def test_with_single_samples_and_one_seed_it_is_the_exact_mcnemar_test() -> None:
    drawn = np.random.default_rng(5)
    first, second = drawn.random(3589) < 0.70, drawn.random(3589) < 0.68
    p = permutation_p(first.astype(np.int64) - second, np.arange(3589))
    assert p == pytest.approx(mcnemar(answers(first), answers(second)).p, rel=1e-9)


def test_p_is_uniform_where_the_networks_do_not_differ() -> None:
    """Both draw from the same chance of recognising a subject's images, which differs by subject."""
    drawn = np.random.default_rng(11)
    cluster = np.repeat(np.arange(60), 9)
    values = []
    for _ in range(400):
        ease = np.repeat(drawn.beta(4, 1, 60), 9)
        hits = [(drawn.random((2, 540)) < ease).sum(axis=0) for _ in range(2)]
        values.append(permutation_p(hits[0] - hits[1], cluster))
    assert kstest(values, "uniform").pvalue > 0.01
    assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=0.025)


def test_holm_of_a_textbook_example() -> None:
    # Four tests, as in Holm's procedure: 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_mcnemar_of_a_case_worked_out_by_hand() -> None:
    # 1 against 5 discordant samples: p = 2 (C(6,0) + C(6,1)) / 2^6 = 14/64.
    first = answers([True, *[False] * 5, True, False])
    second = answers([False, *[True] * 5, True, False])
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (1, 5)
    assert result.p == pytest.approx(14 / 64)
    assert mcnemar(first, first).p == 1.0
    assert binomtest(1, 6).pvalue == pytest.approx(14 / 64)


def test_seeds_are_averaged_and_their_number_may_differ() -> None:
    first = [answers([1, 1, 0, 0]), answers([1, 0, 0, 0])]
    second = [answers(p) for p in ([1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 0, 0])]
    by_subject = np.array([0, 0, 1, 1])
    result = compare_networks(first, second, by_subject)
    # Shares 1, 1/2, 0, 0 against 2/3, 1, 1/3, 1/3.
    assert result.accuracy == pytest.approx((1.5 - 7 / 3) / 4)
    assert result.p == pytest.approx(enumerated([-1, -4])), "sixths: 6 - 4 + 3 - 6, 0 - 2 + 0 - 2"
    opposite = compare_networks(second, first, by_subject)
    assert opposite.accuracy == pytest.approx(-result.accuracy)
    assert opposite.p == result.p
    assert compare_networks(first[:1], second, by_subject).seeds_interval is None, "one seed has no spread"
    rows = [np.array([[p.correct()] for p in network], float) for network in (first, second)]
    assert result.seeds_interval == seeds_intervals(rows[0], rows[1], by_subject)[0]


def test_the_interval_is_the_bootstrap_of_the_difference() -> None:
    drawn = np.random.default_rng(2)
    first, second = (answers(drawn.random(400) < rate) for rate in (0.9, 0.7))
    result = compare_networks([first], [second], np.arange(400))
    difference = first.correct().astype(np.float64) - second.correct()
    assert result.interval == accuracy_interval(difference, np.arange(400))
    half = 1.96 * difference.std() / 20
    assert result.interval == pytest.approx((result.accuracy - half, result.accuracy + half), abs=0.01)


def test_different_data_and_different_samples_are_refused_in_a_line() -> None:
    one = answers([True, False, True])
    for other, message in (
        (replace(one, beton_sha256="b" * 64), r"different data .* 0{12} and b{12}"),
        (replace(one, index=one.index + 1), r"different samples \(3 and 3, 2 of them in common\)"),
        (replace(one, label=1 - one.label), "different labels"),
    ):
        for compare in (
            lambda other=other: compare_networks([one], [other], np.arange(3)),
            lambda other=other: compare_networks([one, other], [one], np.arange(3)),
            lambda other=other: mcnemar(one, other),
        ):
            with pytest.raises(RunError, match=message) as refused:
                compare()
            assert "\n" not in str(refused.value)
