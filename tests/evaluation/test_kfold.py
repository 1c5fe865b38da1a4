"""The summary of a k-fold experiment against scores computed from the predictions in another way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score

from ferdist.config import Config, load_config
from ferdist.data.beton import Beton, open_beton
from ferdist.data.folds import Holdout
from ferdist.errors import RunError
from ferdist.evaluation.kfold import kfold_summary
from ferdist.evaluation.predictions import Predictions
from ferdist.runtime.folder import RunFolder
from tests.conftest import ROOT

FOLDS, CLASSES = 10, 7


@pytest.fixture(scope="module")
def beton(beton_path: Path) -> Beton:
    """420 drawn faces with ten folds, subjects and sequences."""
    return open_beton(beton_path)


def config_of(beton: Beton, run_dir: Path, fold: int, seed: int, *overrides: str) -> Config:
    own = (f"data.path={beton.path}", f"run_dir={run_dir}", f"data.fold={fold}", f"seed={seed}")
    return load_config(ROOT / "configs" / "base.yaml", [*own, *overrides])


def write_run(beton: Beton, place: Path, fold: int, seed: int, *overrides: str, tta: str = "") -> Path:
    """A run folder as a training leaves it, with predictions that are right more often than not."""
    folder = RunFolder(place / f"fold-{fold:02d}-seed-{seed}{tta}")
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_config(
        config_of(beton, folder.path, fold, seed, *overrides), {"beton_sha256": beton.manifest.sha256}
    )
    index = beton.indices("val", Holdout(fold))
    drawn = np.random.default_rng([seed, fold])
    logits = drawn.normal(size=(len(index), CLASSES)) + 1.5 * np.eye(CLASSES)[beton.label[index]]
    probabilities = softmax(logits, axis=1).astype(np.float32)
    predictions = Predictions(index, beton.label[index], probabilities, beton.manifest.sha256)
    for name in ("", "-flip") if "train.tta=flip" in overrides else ("",):
        predictions.save(folder.predictions / f"synthetic-val-fold{fold}{name}-last.npz")
    return folder.path


def write_runs(
    beton: Beton, place: Path, seeds: Sequence[int], folds: Sequence[int] = range(FOLDS)
) -> list[Path]:
    return [write_run(beton, place, fold, seed) for seed in seeds for fold in folds]


def entry_of(summary: dict[str, Any], unit: str) -> dict[str, Any]:
    found = [e for e in summary["evaluations"] if (e["unit"], e["subset"], e["tta"]) == (unit, "all", "none")]
    assert len(found) == 1
    return dict(found[0])


def pooled_by_hand(beton: Beton, runs: Sequence[Path]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Probabilities (N, K) of all samples by index, straight from the files, and which were predicted."""
    probabilities = np.full((beton.manifest.samples, CLASSES), np.nan)
    for run in runs:
        for file in (run / "predictions").glob("*-last.npz"):
            with np.load(file) as stored:
                assert np.isnan(probabilities[stored["index"]]).all()
                probabilities[stored["index"]] = stored["probabilities"]
    return probabilities, ~np.isnan(probabilities).any(axis=1)


def test_pooled_scores_are_those_of_all_predictions_together(beton: Beton, tmp_path: Path) -> None:
    seeds = (0, 1, 2)
    runs = write_runs(beton, tmp_path, seeds)
    summary = kfold_summary(runs, beton)
    assert (summary["folds"], summary["seeds"]) == (list(range(FOLDS)), [0, 1, 2])
    assert (summary["checkpoint"], summary["interval_over"]) == ("last", "subject")
    assert summary["subjects_in_several_folds"] == 0
    entry = entry_of(summary, "image")
    accuracies, balanced = [], []
    for seed, pooled in zip(seeds, entry["pooled"], strict=True):
        probabilities, known = pooled_by_hand(beton, [r for r in runs if r.name.endswith(f"seed-{seed}")])
        assert known.all()
        predicted = probabilities.argmax(axis=1)
        accuracies.append((predicted == beton.label).mean())
        balanced.append(balanced_accuracy_score(beton.label, predicted))
        assert pooled["seed"] == seed
        assert (pooled["samples"], pooled["folds"], pooled["complete"]) == (len(known), FOLDS, True)
        assert pooled["accuracy"] == pytest.approx(accuracies[-1])
        assert pooled["balanced_accuracy"] == pytest.approx(balanced[-1])
        low, high = pooled["accuracy_ci95"]
        assert low < pooled["accuracy"] < high
    over = entry["over_seeds"]
    assert over["seeds"] == [0, 1, 2]
    for name, values in (("accuracy", accuracies), ("balanced_accuracy", balanced)):
        mean = sum(values) / 3
        sd = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
        assert over[name]["mean"] == pytest.approx(mean)
        assert over[name]["sd"] == pytest.approx(sd)
    low, high = over["accuracy_ci95"]
    assert low < over["accuracy"]["mean"] < high
    # The mean of three seeds varies less over subjects than one seed does.
    assert high - low < min(p["accuracy_ci95"][1] - p["accuracy_ci95"][0] for p in entry["pooled"])


def test_scores_per_fold_and_per_sequence(beton: Beton, tmp_path: Path) -> None:
    beton = replace(beton, sequence=beton.fold)  # as it is, each of these faces is a sequence by itself
    runs = write_runs(beton, tmp_path, [4])
    summary = kfold_summary(runs, beton)
    probabilities, _ = pooled_by_hand(beton, runs)
    right = probabilities.argmax(axis=1) == beton.label
    for part in entry_of(summary, "image")["per_fold"]:
        held_out = beton.fold == part["fold"]
        assert part["samples"] == held_out.sum()
        assert part["subjects"] == len(set(beton.subject[held_out]))
        assert part["accuracy"] == pytest.approx(right[held_out].mean())
    hits = []
    for pair in {*zip(beton.sequence.tolist(), beton.label.tolist(), strict=True)}:
        rows = (beton.sequence == pair[0]) & (beton.label == pair[1])
        hits.append(probabilities[rows].astype(np.float64).mean(axis=0).argmax() == pair[1])
    sequence = entry_of(summary, "sequence")
    assert sequence["pooled"][0]["samples"] == len(hits) < len(right)
    assert sequence["pooled"][0]["accuracy"] == pytest.approx(np.mean(hits))
    assert sequence["over_seeds"]["accuracy"]["sd"] is None, "one seed has no deviation"


def test_inner_folds_are_pooled_without_the_fold_that_was_left_out(beton: Beton, tmp_path: Path) -> None:
    runs = []
    for inner in range(FOLDS):
        if inner == 4:
            continue
        run = RunFolder(write_run(beton, tmp_path, inner, 0))
        own = ("data.fold=4", f"data.inner_fold={inner}")
        run.write_config(config_of(beton, run.path, 4, 0, *own), {"beton_sha256": beton.manifest.sha256})
        (run.predictions / f"synthetic-val-fold{inner}-last.npz").rename(
            run.predictions / f"synthetic-val-fold4-inner{inner}-last.npz"
        )
        runs.append(run.path)
    summary = kfold_summary(runs, beton)
    assert (summary["inner_of"], summary["folds"]) == (4, [0, 1, 2, 3, 5, 6, 7, 8, 9])
    over = entry_of(summary, "image")["over_seeds"]
    assert over["samples"] == (beton.fold != 4).sum()
    with pytest.raises(RunError, match="its config differs from that of"):
        kfold_summary([*runs, write_run(beton, tmp_path, 4, 0)], beton)


def test_a_seed_without_all_folds_does_not_count(beton: Beton, tmp_path: Path) -> None:
    runs = [*write_runs(beton, tmp_path, [0]), *write_runs(beton, tmp_path, [1], range(4))]
    entry = entry_of(kfold_summary(runs, beton), "image")
    assert [(p["seed"], p["folds"], p["complete"]) for p in entry["pooled"]] == [(0, 10, True), (1, 4, False)]
    assert entry["over_seeds"]["seeds"] == [0]
    assert entry["over_seeds"]["accuracy"]["mean"] == entry["pooled"][0]["accuracy"]
    assert entry_of(kfold_summary(runs[10:], beton), "image")["over_seeds"] is None


def test_without_runs_there_are_no_scores(beton: Beton) -> None:
    summary = kfold_summary([], beton)
    assert (summary["evaluations"], summary["seeds"], summary["config"]) == ([], [], None)
    assert summary["folds"] == list(range(FOLDS))


def test_the_runs_own_views_are_summarised_too(beton: Beton, tmp_path: Path) -> None:
    runs = [write_run(beton, tmp_path, fold, 0, "train.tta=flip") for fold in range(FOLDS)]
    assert {entry["tta"] for entry in kfold_summary(runs, beton)["evaluations"]} == {"none", "flip"}


def test_what_does_not_belong_together_is_refused(beton: Beton, tmp_path: Path) -> None:
    runs = write_runs(beton, tmp_path, [0], range(2))
    with pytest.raises(RunError, match=r"fold 1 with seed 0 is also in .*fold-01-seed-0"):
        kfold_summary([*runs, write_run(beton, tmp_path / "again", 1, 0)], beton)
    with pytest.raises(RunError, match=r"its config differs from that of .* \(train.lr: 0.1 -> 0.2\)"):
        kfold_summary([*runs, write_run(beton, tmp_path, 2, 0, "train.lr=0.2")], beton)
    other = replace(beton, manifest=replace(beton.manifest, sha256="0" * 64))
    with pytest.raises(RunError, match="was not trained on"):
        kfold_summary(runs, other)
    (plain,) = write_runs(beton, tmp_path / "plain", [0], [0])
    RunFolder(plain).write_config(
        load_config(ROOT / "configs" / "base.yaml"), {"beton_sha256": beton.manifest.sha256}
    )
    with pytest.raises(RunError, match="does not hold out a fold"):
        kfold_summary([plain], beton)


def test_predictions_of_another_fold_or_none_are_refused(beton: Beton, tmp_path: Path) -> None:
    (run,) = write_runs(beton, tmp_path, [0], [3])
    file = run / "predictions" / "synthetic-val-fold3-last.npz"
    index = beton.indices("val", Holdout(4))
    even = np.full((len(index), CLASSES), 1 / CLASSES, np.float32)
    Predictions(index, beton.label[index], even, beton.manifest.sha256).save(file)
    with pytest.raises(RunError, match="not the predictions for fold 3"):
        kfold_summary([run], beton)
    file.unlink()
    with pytest.raises(RunError, match="cannot be read as predictions: No such file"):
        kfold_summary([run], beton)
