from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ferdist.errors import RunError
from ferdist.evaluation.records import Damage
from ferdist.reporting.load import (
    load_run,
    load_runs,
    occluded_entries,
    predictions_of,
    robustness_of,
    telling_ends,
)
from tests.reporting.conftest import BETON, MakeRun, edit_results, evaluations_of


def test_a_run_holds_what_its_files_say(make_run: MakeRun) -> None:
    folder = make_run("run", test=True, occlusion=True, manifest=True)
    run = load_run(folder)
    assert (run.name, run.model, run.data, run.test_scorings) == ("run", "resnet18_cbam", "fer2013", 1)
    assert (run.option("train.epochs"), run.option("train.nothing")) == (8, None)
    assert len(run.evaluations) == 12
    for evaluation, entry in zip(run.evaluations, evaluations_of(folder), strict=True):
        assert evaluation.accuracy == entry["accuracy"]
        assert evaluation.interval == tuple(entry["accuracy_ci95"])
        assert evaluation.confusion.tolist() == entry["confusion"]
    assert run.manifest is not None
    assert run.remarks == ()


def test_main_evaluation_is_test_of_whole_images_and_one_view(make_run: MakeRun) -> None:
    folder = make_run("run", test=True, occlusion=True)

    def add_flattering_entries(results: dict[str, Any]) -> None:
        test = results["evaluations"][1]
        flip = test | {"tta": "flip", "accuracy": 0.99}
        clean = test | {"subset": "no_copies", "accuracy": 0.98}
        sequence = test | {"unit": "sequence", "accuracy": 0.97}
        other = test | {"data": "easier", "accuracy": 0.96}
        last = test | {"checkpoint": "last", "accuracy": 0.95}
        results["evaluations"] = [flip, clean, sequence, other, last, *results["evaluations"]]

    edit_results(folder, add_flattering_entries)
    main = load_run(folder).main
    assert main is not None
    assert (main.split, main.subset, main.unit, main.tta) == ("test", "all", "image", "none")
    assert main.occlusion is None
    assert main.accuracy == evaluations_of(folder)[6]["accuracy"]


def test_main_evaluation_has_the_checkpoint_that_the_run_selects(make_run: MakeRun) -> None:
    folder = make_run("run", fold=0)

    def add_best(results: dict[str, Any]) -> None:
        results["evaluations"].insert(0, results["evaluations"][0] | {"checkpoint": "best", "accuracy": 1.0})

    edit_results(folder, add_best)
    for select, checkpoint in (("auto", "last"), ("best", "best")):
        edit_results(folder, lambda results, select=select: results["config"]["train"].update(select=select))
        main = load_run(folder).main
        assert main is not None
        assert main.checkpoint == checkpoint


def test_predictions_are_found_by_the_name_in_the_entry(make_run: MakeRun) -> None:
    folder = make_run("run", test=True)
    run = load_run(folder)
    for evaluation in run.evaluations:
        predictions = predictions_of(run, evaluation)
        assert predictions is not None
        assert predictions.correct().mean() == pytest.approx(evaluation.accuracy)
        assert predictions_of(run, replace(evaluation, beton_sha256="00")) is None
        assert predictions_of(run, replace(evaluation, samples=1)) is None
    file = folder / "predictions" / "fer2013-test-best.npz"
    file.rename(file.with_name("other.npz"))
    run = load_run(folder)
    assert predictions_of(run, run.evaluations[1]) is None
    edit_results(folder, lambda results: results["evaluations"][1].update(predictions="other.npz"))
    run = load_run(folder)
    assert predictions_of(run, run.evaluations[1]) is not None


def test_two_betons_of_one_name_are_two_data_sets(make_run: MakeRun) -> None:
    """The run's own and another one that is named alike: neither curves nor scores are mixed."""
    folder = make_run("run", occlusion=True)

    def add_other(results: dict[str, Any]) -> None:
        results["environment"]["training"] = {"beton_sha256": BETON}
        own = results["evaluations"]
        results["evaluations"] = [
            *(entry | {"beton_sha256": "6f" * 32, "accuracy": 0.01} for entry in own),
            *own,
        ]

    edit_results(folder, add_other)
    run = load_run(folder)
    assert run.main is not None
    assert run.main.beton_sha256 == BETON
    covered = occluded_entries(run)
    assert {one.beton_sha256 for one in covered} == {BETON}
    assert len(covered) == 10
    own, other = (robustness_of(run, run.evaluations[at]) for at in (-1, 1))
    assert own is not None and other is not None
    assert own["clean_accuracy"] == run.main.accuracy
    assert (other["clean_accuracy"], other["accuracy"]) == (0.01, pytest.approx(0.01))
    assert predictions_of(run, run.evaluations[0]) is None


def test_what_covered_the_face_may_be_unknown_but_for_its_cell(make_run: MakeRun) -> None:
    folder = make_run(occlusion=True)

    def forget(results: dict[str, Any]) -> None:
        results["evaluations"][6]["occlusion"] = {"kind": "circle", "severity": 1, "fill": "zero"}

    edit_results(folder, forget)
    damage = load_run(folder).evaluations[6].occlusion
    assert damage is not None
    assert vars(damage) == vars(Damage("circle", 1, "zero"))


def test_names_tell_runs_apart(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run("a/run"), make_run("b/run")]
    runs = load_runs([*folders, folders[0], tmp_path / "a" / ".." / "a" / "run"])
    assert [run.name for run in runs] == ["a/run", "b/run"]
    with pytest.raises(RunError, match="at least one"):
        load_runs([])
    assert [run.name for run in load_runs([make_run("resnet18/seed-0")])] == ["resnet18/seed-0"]
    assert telling_ends([tmp_path / "x" / "fold-03-seed-1"]) == ["x/fold-03-seed-1"]


def test_a_half_written_last_line_is_left_out_and_said(make_run: MakeRun) -> None:
    folder = make_run()
    whole = len(load_run(folder).history)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 500, "epo')
    run = load_run(folder)
    assert len(run.history) == whole
    assert any("incomplete" in remark for remark in run.remarks)


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(make_run: MakeRun) -> None:
    folder = make_run()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[4] = lines[4][:20]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 5: "):
        load_run(folder)


@pytest.mark.parametrize("text", ["NaN", "null", "Infinity", '"nan"'])
def test_a_loss_that_is_no_number_becomes_nan(make_run: MakeRun, text: str) -> None:
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": 490, "epoch": 8.1, "time": 1, "train/loss": {text}}}\n')
    epochs, values = load_run(folder).curve("train/loss")
    assert epochs[-1] == 8.1
    assert np.isnan(values[-1])
    assert np.isfinite(values[:-1]).all()


@pytest.mark.parametrize("epoch", ["NaN", '"1"', "-1", "1e9", "null"])
def test_a_line_without_a_place_on_the_axis_is_an_error_with_its_number(
    make_run: MakeRun, epoch: str
) -> None:
    folder = make_run()
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(f'{{"epoch": {epoch}}}\n{lines}')
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 1: not a JSON object with an epoch"):
        load_run(folder)


def test_values_that_cannot_be_drawn_are_gaps(make_run: MakeRun) -> None:
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        for value in ("1e300", "1" * 400, "-1e31", "[1]"):
            file.write(f'{{"epoch": 8.5, "train/loss": {value}}}\n')
    assert np.isnan(load_run(folder).curve("train/loss")[1][-4:]).all()


def test_files_that_are_none_are_remarks(make_run: MakeRun) -> None:
    """Pipes would hang, devices never end, and a file of the right name may hold anything."""
    folder = make_run()
    for name in ("metrics.jsonl", "status.json", "config.yaml"):
        (folder / name).unlink()
    os.mkfifo(folder / "metrics.jsonl")
    os.mkfifo(folder / "predictions" / "pipe.npz")
    (folder / "config.yaml").symlink_to("/dev/zero")
    (folder / "status.json").write_text("[" * 100_000)
    run = load_run(folder)
    assert (run.history, run.status) == ((), {})
    for word in ("metrics.jsonl cannot be read (not a regular", "status.json", "config.yaml", "pipe.npz"):
        assert any(word in remark for remark in run.remarks), word
    for odd in ("3", '{"state": []}', '{"state": "finished", "step": "x"}'):
        (folder / "status.json").write_text(odd)
        assert load_run(folder).status == {}
    (folder / "results.json").unlink()
    os.mkfifo(folder / "results.json")
    with pytest.raises(RunError, match=r"results\.json: not readable as JSON \(not a regular file\)"):
        load_run(folder)


def test_missing_files_are_remarks(make_run: MakeRun) -> None:
    folder = make_run()
    for name in ("metrics.jsonl", "status.json", "config.yaml"):
        (folder / name).unlink()
    (folder / "predictions" / "fer2013-val-best.npz").write_bytes(b"PK\x03\x04 cut off")
    run = load_run(folder)
    assert (run.history, run.predictions, run.manifest) == ((), {}, None)
    assert yaml.safe_load(run.config_text) == run.config
    for word in ("metrics.jsonl", "status.json", "config.yaml", "fer2013-val-best.npz", "manifest"):
        assert any(word in remark for remark in run.remarks), word


def test_another_beton_than_the_predicted_one_is_a_remark(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(manifest=True)
    path = tmp_path / "data" / "fer2013.json"
    path.write_text(path.read_text().replace(BETON, "6f" * 32))
    assert any("checksum" in remark for remark in load_run(folder).remarks)


def test_folders_that_are_no_evaluated_runs(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        load_run(tmp_path / "absent")
    with pytest.raises(RunError, match="not a run folder"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(RunError, match=f"results.json: no such file: run `ferdist evaluate {tmp_path}`"):
        load_run(tmp_path)
