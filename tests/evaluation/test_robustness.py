from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferdist.errors import RunError
from ferdist.evaluation import robustness
from ferdist.evaluation.benchmark import Cell, covered_fraction, grid
from ferdist.evaluation.robustness import GridPredictions, compare, summarise


def entry(accuracy: float, cell: Cell | None = None, seen: str = "seen", **key: Any) -> dict[str, Any]:
    damage = None
    if cell is not None:
        covered = covered_fraction(cell)
        damage = {**cell.to_json(), "covered": covered, "seen": seen, "checksum": f"{hash(cell)}"}
    return {
        **{"data": "d", "beton_sha256": "0", "split": "val", "fold": None, "tta": "none"},
        **{"checkpoint": "best", "subset": "all", "unit": "image", "samples": 10},
        "occlusion": damage,
        "accuracy": accuracy,
        "macro_f1": accuracy / 2,
        **key,
    }


def predictions(hits: list[list[int]], cells: tuple[Cell, ...], cluster: list[int]) -> GridPredictions:
    """Of two classes; ``hits`` (M, N) says which answers are right."""
    right = np.array(hits, dtype=bool)
    label = np.arange(right.shape[1]) % 2
    answer = np.where(right, label, 1 - label)
    return GridPredictions(
        np.arange(len(label)),
        label,
        np.array(cluster),
        cells,
        tuple(f"sum of {cell}" for cell in cells),
        np.eye(2, dtype=np.float32)[answer],
        "0" * 64,
    )


# The figures


def test_the_area_under_a_line_is_its_middle() -> None:
    assert robustness.area_under_curve([0, 0.5], [0.8, 0.4]) == pytest.approx(0.6)
    assert robustness.area_under_curve([0, 0.1, 0.5], [0.8, 0.8, 0.0]) == pytest.approx(
        (0.1 * 0.8 + 0.4 * 0.4) / 0.5
    )


def test_figures_worked_out_by_hand() -> None:
    squares = [Cell("square", severity, fill) for fill in ("zero", "mean") for severity in (2, 3)]
    mask = Cell("mask", 1, "drawn")
    entries = [
        entry(0.8),
        *(entry(a, cell) for a, cell in zip((0.6, 0.4, 0.8, 0.6), squares, strict=True)),
        entry(0.2, mask, seen="unseen kind"),
        entry(0.1, subset="no_copies"),
        entry(0.1, unit="sequence"),
        entry(0.9, tta="flip"),
    ]
    (summary,) = summarise(entries)
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
    assert summary["checksum"] == summarise(entries[::-1])[0]["checksum"], "whatever the entries' order"


def test_there_is_a_summary_for_each_set_of_conditions() -> None:
    cell = Cell("mask", 1, "drawn")
    entries = [entry(0.5, cell), entry(0.5, cell, tta="flip"), entry(0.9), entry(0.9, split="test")]
    summaries = summarise(entries)
    assert [(s["tta"], s["clean_accuracy"]) for s in summaries] == [("none", 0.9), ("flip", None)]
    assert summaries[1]["relative_robustness"] is None


def test_the_text_is_narrow_and_says_everything() -> None:
    entries = [entry(0.8), *(entry(0.5, cell) for cell in grid())]
    (summary,) = summarise(entries)
    text = robustness.as_text(summary)
    assert max(map(len, text.splitlines())) <= 46
    assert "|eye band  |50.0|   -|   -|   -|   -|50.0|" in text
    assert "relative to clean         62.5 %" in text
    assert "seen (74 cells)           50.0 %" in text
    own = predictions([[1, 1, 1, 0]], (Cell("mask", 1, "drawn"),), [0, 1, 2, 3])
    reference = predictions([[1, 0, 0, 0]], own.cells, [0, 1, 2, 3])
    said = robustness.comparison_as_text({"reference": "runs/plain", **compare([own], [reference])})
    assert max(map(len, said.splitlines())) <= 46
    assert "mCE 33.3 %" in said
    assert "|mask      | 33.3| +50.0|    +0.0 +100.0|"[:24] in said


# Against a reference


def test_a_comparison_worked_out_by_hand() -> None:
    cells = (Cell("square", 1, "zero"), Cell("square", 2, "zero"), Cell("mask", 1, "drawn"))
    own = predictions([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], cells, [0, 0, 1, 1])
    reference = predictions([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], cells, [0, 0, 1, 1])
    found = compare([own], [reference])
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


def test_a_model_against_itself() -> None:
    own = predictions([[1, 1, 0, 0]], (Cell("mask", 1, "drawn"),), [0, 1, 2, 3])
    found = compare([own], [own])
    assert found["mean_corruption_error"] == 1
    assert (found["difference"], found["difference_ci95"]) == (0, [0, 0])


def test_a_paired_interval_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    cells, clusters = (Cell("mask", 1, "drawn"),), list(range(2000))
    easy = rng.random(2000) < 0.6
    own = predictions([easy.tolist()], cells, clusters)
    reference = predictions([np.where(rng.random(2000) < 0.03, ~easy, easy).tolist()], cells, clusters)
    low, high = compare([own], [reference])["difference_ci95"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.03 / 2000), rel=0.15)


def test_a_reference_without_errors_gives_no_corruption_error() -> None:
    cells = (Cell("mask", 1, "drawn"),)
    found = compare([predictions([[1, 0]], cells, [0, 1])], [predictions([[1, 1]], cells, [0, 1])])
    assert found["mean_corruption_error"] is None
    assert "mCE - %" in robustness.comparison_as_text({"reference": "r", **found})


def test_what_cannot_be_compared_is_refused() -> None:
    cell = Cell("mask", 1, "drawn")
    own = predictions([[1, 0]], (cell,), [0, 1])
    for other in (
        replace(own, index=own.index + 1),
        replace(own, label=1 - own.label),
        replace(own, beton_sha256="1"),
    ):
        with pytest.raises(RunError, match="not evaluated on the same samples with the same labels"):
            compare([own], [other])
    with pytest.raises(RunError, match="images of mask 1 drawn differ between the runs"):
        compare([own], [replace(own, checksums=("other",))])
    with pytest.raises(RunError, match="no cell of the benchmark in common"):
        compare([own], [replace(own, cells=(Cell("glasses", 1, "drawn"),))])


def test_seeds_are_averaged_before_they_are_compared() -> None:
    cells = (Cell("mask", 1, "drawn"),)
    seeds = [predictions([row], cells, [0, 1, 2, 3]) for row in ([1, 0, 1, 1], [1, 1, 0, 1])]
    other = predictions([[1, 0, 0, 0]], cells, [0, 1, 2, 3])
    assert robustness.correct_share(seeds).tolist() == [[1, 0.5, 0.5, 1]]
    assert compare(seeds, [other])["difference"] == pytest.approx(0.5)
    with pytest.raises(RunError, match="the seeds were not evaluated under the same occlusion"):
        compare([seeds[0], replace(seeds[1], checksums=("other",))], [other])


def test_folds_are_pooled() -> None:
    cells = (Cell("mask", 1, "drawn"), Cell("glasses", 1, "drawn"))
    whole = predictions([[1, 0, 1, 1], [0, 0, 1, 0]], cells, [4, 5, 4, 6])

    def part(rows: list[int]) -> GridPredictions:
        return replace(
            whole,
            index=whole.index[rows],
            label=whole.label[rows],
            cluster=whole.cluster[rows],
            probabilities=whole.probabilities[:, rows],
        )

    folds = [part([1, 3]), part([0, 2])]
    pooled = robustness.pool(folds)
    assert np.array_equal(pooled.index, whole.index)
    assert np.array_equal(pooled.cluster, whole.cluster)
    assert np.array_equal(pooled.correct(), whole.correct())
    assert pooled.checksums == robustness.pool(folds[::-1]).checksums
    assert compare([pooled], [pooled])["difference"] == 0
    with pytest.raises(RunError, match="the same samples do not pool"):
        robustness.pool([folds[0], folds[0]])
    with pytest.raises(RunError, match="other cells or data do not pool"):
        robustness.pool([folds[0], replace(folds[1], beton_sha256="1")])


# The file


def test_a_file_keeps_the_cells_of_earlier_evaluations(tmp_path: Path) -> None:
    path = tmp_path / "predictions" / "occlusion" / "d.npz"
    mask, square = Cell("mask", 1, "drawn"), Cell("square", 2, "mean")
    predictions([[1, 0], [1, 1]], (mask, Cell("glasses", 1, "drawn")), [3, 4]).merged_into(path)
    newer = predictions([[0, 0], [0, 1]], (square, mask), [3, 4])
    newer.merged_into(path)
    stored = GridPredictions.load(path)
    assert stored.cells == (square, Cell("glasses", 1, "drawn"), mask), "in the order of the benchmark"
    assert stored.correct().tolist() == [[False, False], [True, True], [False, True]]
    assert stored.checksums == tuple(f"sum of {cell}" for cell in stored.cells)
    assert stored.cluster.tolist() == [3, 4]
    assert stored.probabilities.dtype == np.float32
    replace(newer, index=newer.index + 1).merged_into(path)
    assert GridPredictions.load(path).cells == (square, mask), "other samples: another evaluation"


def test_files_that_are_no_predictions(tmp_path: Path) -> None:
    path = tmp_path / "run" / "predictions" / "occlusion" / "d.npz"
    with pytest.raises(RunError, match=r"run `ferdist evaluate .*/run --occlusion` first"):
        GridPredictions.load(path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(RunError, match="no predictions under occlusion that can be read"):
        GridPredictions.load(path)
    predictions([[1, 0]], (Cell("mask", 1, "drawn"),), [0, 1]).merged_into(path)
    assert len(GridPredictions.load(path).cells) == 1
