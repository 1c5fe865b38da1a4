from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ferdist.errors import RunError
from ferdist.evaluation.results import add_evaluations, as_text, read_results

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


def test_every_scoring_of_test_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for split, count in (("val", 0), ("test", 1), ("test", 2), ("val", 2)):
        assert add_evaluations(path, [entry(0.5, split=split)], **META)["test_scorings"] == count
    assert "test was scored 2 times" in as_text(read_results(path))
    assert "50.00 % (95 % 10.00-90.00)" in as_text(read_results(path))


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"schema": 2})])
def test_another_file_is_no_results_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(RunError, match=r"results\.json: "):
        read_results(path)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run `ferdist evaluate"):
        read_results(tmp_path / "results.json")
