from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ferdist.errors import RunError
from ferdist.evaluation import robustness
from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.robustness import benchmark_scores, compare_benchmarks
from tests.evaluation.conftest import answers, evaluation


def test_scores_worked_out_by_hand() -> None:
    squares = [Cell("square", severity, fill) for fill in ("zero", "mean") for severity in (2, 3)]
    mask = Cell("mask", 1, "drawn")
    entries = [
        evaluation(0.8),
        *(evaluation(a, cell) for a, cell in zip((0.6, 0.4, 0.8, 0.6), squares, strict=True)),
        evaluation(0.2, mask, seen="unseen kind"),
        evaluation(0.1, subset="no_copies"),
        evaluation(0.1, unit="sequence"),
        evaluation(0.9, tta="flip"),
    ]
    (summary,) = benchmark_scores(entries)
    assert summary["clean_accuracy"] == 0.8
    assert summary["cells"] == 5
    square = summary["kinds"]["square"]
    assert square["severities"] == [2, 3]
    assert square["by_severity"] == pytest.approx([0.7, 0.5])
    assert square["accuracy"] == pytest.approx(0.6)
    assert square["macro_f1"] == pytest.approx(0.3)
    assert square["relative_robustness"] == pytest.approx(0.75)
    ninth, quarter = 1 / 9, 1 / 4
    area = (ninth * 0.75 + (quarter - ninth) * 0.6) / quarter
    assert square["area_under_curve"] == pytest.approx(area)
    assert summary["kinds"]["mask"]["area_under_curve"] is None
    assert summary["accuracy"] == pytest.approx((0.6 + 0.2) / 2)
    assert summary["relative_robustness"] == pytest.approx(0.4 / 0.8)
    assert summary["area_under_curve"] == pytest.approx(area)
    assert summary["seen"] == {
        "seen": {"cells": 4, "accuracy": pytest.approx(0.6)},
        "unseen kind": {"cells": 1, "accuracy": pytest.approx(0.2)},
    }
    assert summary["checksum"] == benchmark_scores(entries[::-1])[0]["checksum"], (
        "whatever the entries' order"
    )


def test_there_is_a_summary_for_each_set_of_conditions() -> None:
    cell = Cell("mask", 1, "drawn")
    entries = [
        evaluation(0.5, cell),
        evaluation(0.5, cell, tta="flip"),
        evaluation(0.9),
        evaluation(0.9, split="test"),
    ]
    summaries = benchmark_scores(entries)
    assert [(s["tta"], s["clean_accuracy"]) for s in summaries] == [("none", 0.9), ("flip", None)]
    assert summaries[1]["relative_robustness"] is None


def test_a_comparison_worked_out_by_hand() -> None:
    cells = (Cell("square", 1, "zero"), Cell("square", 2, "zero"), Cell("mask", 1, "drawn"))
    own = answers([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], cells, [0, 0, 1, 1])
    reference = answers([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], cells, [0, 0, 1, 1])
    found = compare_benchmarks([own], [reference])
    square, mask = found["kinds"]["square"], found["kinds"]["mask"]
    assert square["corruption_error"] == pytest.approx((0 + 0.5) / (0.25 + 0.75))
    assert mask["corruption_error"] == pytest.approx(0.75 / 0.5)
    assert found["mean_corruption_error"] == pytest.approx((0.5 + 1.5) / 2)
    assert square["difference"] == pytest.approx(0.25)
    assert mask["difference"] == pytest.approx(-0.25)
    assert found["difference"] == pytest.approx(0.0)
    # Two clusters: the mean of the mask's difference is -0.5 in one and 0 in the other.
    assert mask["difference_ci95"] == pytest.approx([-0.5, 0.0])
    assert found["cells"] == 3


@pytest.mark.parametrize(("reference", "error"), [([1, 1, 0, 0], 1), ([1, 1, 1, 1], None)])
def test_the_corruption_error_is_relative_to_the_reference(reference: list[int], error: int | None) -> None:
    """1 against itself; unknown where the reference makes no error."""
    mask = (Cell("mask", 1, "drawn"),)
    own, other = (answers([hits], mask, [0, 1, 2, 3]) for hits in ([1, 1, 0, 0], reference))
    found = compare_benchmarks([own], [other])
    assert found["mean_corruption_error"] == error
    assert (found["difference"] == 0) == (error == 1)


def test_a_paired_interval_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    cells, clusters = (Cell("mask", 1, "drawn"),), list(range(2000))
    easy = rng.random(2000) < 0.6
    own = answers([easy.tolist()], cells, clusters)
    reference = answers([np.where(rng.random(2000) < 0.03, ~easy, easy).tolist()], cells, clusters)
    low, high = compare_benchmarks([own], [reference])["difference_ci95"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.03 / 2000), rel=0.15)


def test_what_cannot_be_compared_is_refused() -> None:
    cell = Cell("mask", 1, "drawn")
    own = answers([[1, 0]], (cell,), [0, 1])
    with pytest.raises(RunError, match="different samples"):
        compare_benchmarks([own], [replace(own, index=own.index + 1)])
    with pytest.raises(RunError, match="images of mask 1 drawn differ between the runs"):
        compare_benchmarks([own], [replace(own, checksums=("other",))])
    with pytest.raises(RunError, match="share no cell of the benchmark"):
        compare_benchmarks([own], [replace(own, cells=(Cell("glasses", 1, "drawn"),))])


def test_seeds_are_averaged_before_they_are_compared() -> None:
    cells = (Cell("mask", 1, "drawn"),)
    seeds = [answers([row], cells, [0, 1, 2, 3]) for row in ([1, 0, 1, 1], [1, 1, 0, 1])]
    other = answers([[1, 0, 0, 0]], cells, [0, 1, 2, 3])
    assert robustness.correct_share(seeds).tolist() == [[1, 0.5, 0.5, 1]]
    found = compare_benchmarks(seeds, [other])
    assert found["difference"] == pytest.approx(0.5)
    assert "seeds_ci95" not in found, "the reference has one seed"
    low, high = compare_benchmarks(seeds, [other, other])["kinds"]["mask"]["seeds_ci95"]
    assert low < found["difference_ci95"][0] < 0.5 < found["difference_ci95"][1] <= high
    with pytest.raises(RunError, match="the seeds were evaluated under different occlusion"):
        compare_benchmarks([seeds[0], replace(seeds[1], checksums=("other",))], [other])
