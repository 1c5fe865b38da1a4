"""results.json: what is written comes back, each key once, and what breaks the contract is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ferdist.errors import RunError
from ferdist.evaluation.benchmark import Cell, grid
from ferdist.evaluation.records import Evaluation, Results, conditions_of, read_results
from ferdist.evaluation.results import add_evaluations, as_text, outdated
from ferdist.evaluation.robustness import compare_benchmarks
from ferdist.runtime.folder import RunFolder
from tests.evaluation.conftest import answers, evaluation

SQUARE = Cell("square", 1, "zero")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.json"


def add(path: Path, *evaluations: Evaluation, comparison: dict[str, Any] | None = None) -> Results:
    meta: dict[str, Any] = {"classes": ["a", "b"], "config": {"seed": 0}, "environment": {"torch": "2"}}
    return add_evaluations(path, evaluations, comparison=comparison, **meta)


def test_what_is_written_comes_back(path: Path) -> None:
    written = [evaluation(0.5, predictions="x.npz"), evaluation(0.4, SQUARE, fold=3, inner_fold=1)]
    results = add(path, written[0], replace(written[1], predictions="y.npz"))
    assert results.evaluations == (written[0], replace(written[1], predictions="y.npz"))
    again = json.loads(json.dumps([one.to_json() for one in results.evaluations]))
    assert again == results.content["evaluations"]
    assert results.evaluations[1].occlusion is not None
    assert results.evaluations[1].occlusion.checksum == f"sum of {SQUARE}"
    assert (results.classes, results.config["seed"], results.environment) == (("a", "b"), 0, {"torch": "2"})


def test_evaluating_again_replaces_the_entry_with_the_same_key(path: Path) -> None:
    add(path, evaluation(0.5), evaluation(0.6, subset="no_copies"))
    others = [{"tta": "flip"}, {"beton_sha256": "1" * 64}, {"inner_fold": 2}, {"checkpoint": "last"}]
    results = add(path, evaluation(0.7), evaluation(0.4, SQUARE), *(evaluation(0.8, **key) for key in others))
    assert [one.accuracy for one in results.evaluations] == [0.6, 0.7, 0.4, 0.8, 0.8, 0.8, 0.8]
    content = json.loads(path.read_text())
    content["evaluations"][0]["note"] = "kept as it stands"
    path.write_text(json.dumps(content))
    assert add(path, evaluation(0.9)).content["evaluations"][0]["note"] == "kept as it stands"


def test_what_is_told_of_a_cell_is_not_part_of_its_key(path: Path) -> None:
    add(path, evaluation(0.8), evaluation(0.4, SQUARE))
    again = add(path, evaluation(0.5, SQUARE, seen="unseen size"))
    assert [one.accuracy for one in again.evaluations] == [0.8, 0.5]
    (summary,) = again.content["robustness"]
    assert summary["accuracy"] == 0.5
    other = add(path, evaluation(0.5, replace(SQUARE, fill="mean")))
    assert other.content["robustness"][0]["cells"] == 2


def test_a_comparison_stays_until_its_cells_are_scored_again(path: Path) -> None:
    square = evaluation(0.4, SQUARE)
    difference = {"difference": 0.1, "difference_ci95": [0.0, 0.2]}
    compared = conditions_of(vars(square)) | {"reference": "runs/other", "cells": 1, **difference}
    compared |= {"mean_corruption_error": 0.9, "kinds": {"square": {"corruption_error": None, **difference}}}
    assert add(path, square, comparison=compared).content["comparisons"] == [compared]
    assert add(path, evaluation(0.5)).content["comparisons"] == [compared]
    assert add(path, square).content["comparisons"] == []


def test_what_weights_of_an_earlier_step_scored_goes(path: Path) -> None:
    early = [evaluation(0.3, step=3), evaluation(0.2, SQUARE, step=3), evaluation(0.3, step=3, split="test")]
    others = [evaluation(0.4, checkpoint="last", step=5), evaluation(0.5, tta="flip")]
    add(path, *early, *others)
    assert outdated(path, "best", 3) == []
    assert [one.key for one in outdated(path, "best", 9)] == [one.key for one in early]
    results = add(path, evaluation(0.9, step=9))
    assert [one.accuracy for one in results.evaluations] == [0.4, 0.5, 0.9], "others, and without a step"
    assert (results.content["robustness"], results.test_scorings) == ([], 1)


def test_a_name_in_results_json_removes_nothing_elsewhere(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    (folder.predictions / "occlusion").mkdir(parents=True)
    inside, outside = folder.predictions / "occlusion" / "a.npz", tmp_path / "kept.npz"
    for path in (inside, outside):
        path.touch()
    for name in ("../../kept.npz", str(outside), "occlusion", "absent.npz", "occlusion/a.npz"):
        folder.remove_predictions(name)
    assert outside.exists()
    assert not inside.exists()


def test_scores_of_later_weights_stay(path: Path) -> None:
    """An evaluation that began during the training may end after the run's own."""
    add(path, evaluation(0.9, step=9))
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"has scores of step 9, these are of step 3: evaluate the run again"):
        add(path, evaluation(0.3, tta="flip", step=3))
    assert path.read_bytes() == before


def test_evaluations_of_one_folder_wait_for_each_other(tmp_path: Path) -> None:
    folder, order = RunFolder(tmp_path), list[str]()

    def second() -> None:
        with folder.updating():
            order.append("second")

    other = threading.Thread(target=second)
    with folder.updating():
        other.start()
        other.join(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_every_scoring_of_test_is_counted(path: Path) -> None:
    for split, times in (("val", 0), ("test", 1), ("test", 2), ("val", 2)):
        assert add(path, evaluation(0.5, split=split)).test_scorings == times
    assert "test was scored 2 times" in as_text(read_results(path))


def test_the_text_of_a_split_leaves_out_the_others(path: Path) -> None:
    results = add(path, evaluation(0.8), evaluation(0.4, SQUARE), evaluation(0.6, split="test"))
    assert "|80.00|10.00–90.00|" in as_text(results).replace(" ", "")
    assert "60.00" in as_text(results) and "|square" in as_text(results)
    assert "80.00" not in as_text(results, "test") and "|square" not in as_text(results, "test")
    assert "60.00" in as_text(results, "test")


def test_the_text_of_a_benchmark_is_narrow_and_complete(path: Path) -> None:
    mask = (Cell("mask", 1, "drawn"),)
    own, reference = (answers([hits], mask, [0, 1, 2, 3]) for hits in ([1, 1, 1, 0], [1, 0, 0, 0]))
    comparison = compare_benchmarks([own], [reference]) | {"reference": "runs/plain"}
    entries = [evaluation(0.8), *(evaluation(0.5, cell) for cell in grid())]
    text = as_text(add(path, *entries, comparison=conditions_of(vars(entries[0])) | comparison))
    tables = text[text.index("synthetic val") :]
    assert max(map(len, tables.splitlines())) <= 46
    cells = tables.replace(" ", "")
    assert "|eyeband|50.0|–|–|–|–|50.0|" in cells
    assert "|relativetoclean|62.5|" in cells
    assert "|seen(74cells)|50.0|" in cells
    assert "|mask|33.3|+50.0|+0.0to+100.0|" in cells
    assert "|mean|33.3|" in cells


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ({}, "d-val-best.npz"),
        (
            {"fold": 3, "inner_fold": 1, "tta": "flip", "checkpoint": "a/b.pt"},
            "d-val-fold3-inner1-flip-b-5032bea4.npz",
        ),
        ({"subset": "no_copies", "unit": "sequence"}, "d-val-best.npz"),
        ({"subset": "occluded_no_copies", "split": "test"}, "d-test-best-occluded.npz"),
        ({"cell": SQUARE}, "occlusion/d-val-best.npz"),
    ],
)
def test_entries_without_the_name_of_their_predictions_get_it_by_the_rule(
    path: Path, key: dict[str, Any], name: str
) -> None:
    results = add(path, evaluation(0.5, data="d", **key))
    assert results.evaluations[0].predictions == name
    content = json.loads(path.read_text())
    content["environment"] = {"training": {"beton_sha256": "1" * 64}}
    path.write_text(json.dumps(content))
    assert read_results(path).evaluations[0].predictions == name.replace("d-", "d-00000000-", 1)


def test_values_that_are_not_there_are_none(path: Path) -> None:
    content = json.loads(json.dumps(add(path, evaluation(0.5)).content))
    (entry,) = content["evaluations"]
    entry |= {"accuracy_ci95": None, "ece": None, "macro_f1": float("nan")}
    del entry["beton_sha256"], entry["inner_fold"], entry["loss"]
    path.write_text(json.dumps(content))
    (found,) = read_results(path).evaluations
    assert (found.interval, found.ece, found.macro_f1, found.recall[1]) == (None, None, None, None)
    assert (found.beton_sha256, found.inner_fold, found.loss) == ("", None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 1,\n"classes": [}', r"not readable as JSON \(Expecting value: line 2"),
        (b"\xff\xfe\x00", r"not readable as JSON \('utf-8' codec"),
        ("[]", "Expected `object`, got `array`"),
        ("[" * 100_000, r"not readable as JSON \(nested too deeply\)"),
        (None, r"no such file: run `ferdist evaluate .*` first"),
    ],
)
def test_a_file_that_is_not_json_is_refused(path: Path, content: str | bytes | None, message: str) -> None:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=rf"results\.json: {message}"):
        read_results(path)


Edit = Callable[[dict[str, Any], dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file, _: file.update(schema=2), "schema 2 is unknown"),
        (lambda file, _: file.pop("schema"), "schema None is unknown"),
        (lambda file, _: file.pop("evaluations"), "missing required field `evaluations`"),
        (
            lambda file, _: file.update(test_scorings="1"),
            r"Expected `int`, got `str` - at `\$\.test_scorings`",
        ),
        (
            lambda file, _: file.update(environment=[]),
            r"Expected `object`, got `array` - at `\$\.environment`",
        ),
        (
            lambda file, _: file["evaluations"].append(3),
            r"Expected `object`, got `int` - at `\$\.evaluations\[1\]`",
        ),
        (
            lambda _, entry: entry.pop("accuracy"),
            r"missing required field `accuracy` - at `\$\.evaluations\[0\]`",
        ),
        (lambda _, entry: entry.update(accuracy=61.2), "Expected `float` <= 1.0 - at"),
        (lambda _, entry: entry.update(ece="low"), r"Expected `float \| null`, got `str`"),
        (lambda _, entry: entry.update(accuracy_ci95=[0.5]), "Expected `array` of length 2"),
        (lambda _, entry: entry["confusion"].pop(), "not of 2 classes"),
        (lambda _, entry: entry["confusion"][0].__setitem__(0, -1), "Expected `int` >= 0"),
        (lambda _, entry: entry["per_class_recall"].pop(), "not of 2 classes"),
        (lambda _, entry: entry.update(occlusion={"kind": "square"}), "missing required field `severity`"),
        (lambda _, entry: entry.update(split=3), "Expected `str`, got `int`"),
        (lambda file, _: file.update(environment={"training": []}), "Expected `object | null`, got `array`"),
        (lambda file, _: file.update(comparisons=[{"kinds": {}}]), "missing required field `reference`"),
        (lambda _, entry: entry.update(samples=10**400), "Expected `int`"),
    ],
)
def test_results_that_break_the_contract_are_refused_in_one_line(
    path: Path, change: Edit, message: str
) -> None:
    content = json.loads(json.dumps(add(path, evaluation(0.5)).content))
    change(content, content["evaluations"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=message) as caught:
        read_results(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
