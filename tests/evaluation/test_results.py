from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ferdist.errors import RunError
from ferdist.evaluation.results import add_evaluations, as_text, read_results
from ferdist.evaluation.robustness import CONDITIONS

META: dict[str, Any] = {"classes": ["a", "b"], "config": {"seed": 0}, "environment": {"torch": "2"}}


def entry(accuracy: float, **key: Any) -> dict[str, Any]:
    return {
        "data": "synthetic",
        "split": "val",
        "fold": None,
        "subset": "all",
        "unit": "image",
        "tta": "none",
        "occlusion": None,
        "checkpoint": "best",
        "samples": 10,
        "accuracy": accuracy,
        "accuracy_ci95": [0.1, 0.9],
        "macro_f1": accuracy,
        **key,
    }


def test_evaluating_again_replaces_the_entry_with_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    add_evaluations(path, [entry(0.5), entry(0.6, subset="no_copies")], **META)
    square = {"kind": "square", "severity": 1, "fill": "zero"}
    add_evaluations(path, [entry(0.7), entry(0.4, occlusion=square), entry(0.8, tta="flip")], **META)
    results = read_results(path)
    assert sorted(e["accuracy"] for e in results["evaluations"]) == [0.4, 0.6, 0.7, 0.8]
    assert results["schema"] == 1


def test_what_is_told_of_a_cell_is_no_part_of_its_key(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    square = {"kind": "square", "severity": 1, "fill": "zero"}
    add_evaluations(path, [entry(0.8), entry(0.4, occlusion=square)], **META)
    again = add_evaluations(path, [entry(0.5, occlusion={**square, "checksum": "x"})], **META)
    assert [e["accuracy"] for e in again["evaluations"]] == [0.8, 0.5]
    (summary,) = again["robustness"]
    assert summary["accuracy"] == 0.5
    assert "|square    |50.0|   -|" in as_text(again)
    other = add_evaluations(path, [entry(0.5, occlusion={**square, "fill": "mean"})], **META)
    assert other["robustness"][0]["cells"] == 2


def test_a_comparison_stays_until_its_cells_are_scored_again(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    square = entry(0.4, occlusion={"kind": "square", "severity": 1, "fill": "zero"})
    compared = {name: square.get(name) for name in CONDITIONS} | {"reference": "runs/other"}
    assert add_evaluations(path, [square], comparison=compared, **META)["comparisons"] == [compared]
    assert add_evaluations(path, [entry(0.5)], **META)["comparisons"] == [compared]
    assert add_evaluations(path, [square], **META)["comparisons"] == []


def test_every_scoring_of_test_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for split, count in (("val", 0), ("test", 1), ("test", 2), ("val", 2)):
        assert add_evaluations(path, [entry(0.5, split=split)], **META)["test_scorings"] == count
    assert "test was scored 2 times" in as_text(read_results(path))
    assert "50.00 % (95 % 10.00-90.00)" in as_text(read_results(path))


def test_the_text_of_a_split_leaves_out_the_others(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    square = entry(0.4, occlusion={"kind": "square", "severity": 1, "fill": "zero"})
    add_evaluations(path, [entry(0.8), square, entry(0.6, split="test")], **META)
    results = read_results(path)
    assert "80.00 %" in as_text(results) and "60.00 %" in as_text(results) and "|square" in as_text(results)
    assert "80.00 %" not in as_text(results, "test") and "|square" not in as_text(results, "test")
    assert "60.00 %" in as_text(results, "test")


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"schema": 2})])
def test_another_file_is_no_results_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(RunError, match=r"results\.json: "):
        read_results(path)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run `ferdist evaluate"):
        read_results(tmp_path / "results.json")
