"""Run folders with plausible scores, computed by scikit-learn from drawn predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.metrics import expected_calibration_error
from ferdist.evaluation.predictions import Predictions

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
SHARES = np.array([467, 56, 496, 895, 653, 415, 607]) / 3589
MakeRun = Callable[..., Path]


def draw_predictions(samples: int, skill: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 (N,) and probabilities float32 (N, K); the higher the skill, the more are right."""
    generator = np.random.default_rng(seed)
    label = generator.choice(len(SHARES), size=samples, p=SHARES)
    label[: len(SHARES)] = np.arange(len(SHARES))
    # A fixed resemblance of the classes makes some mistakes more frequent than others.
    resemblance = np.random.default_rng(7).normal(size=(len(SHARES), len(SHARES)))
    logits = 1.3 * generator.normal(size=(samples, len(SHARES))) + 0.9 * resemblance[label]
    logits[np.arange(samples), label] += skill
    odds = np.exp(1.4 * (logits - logits.max(axis=1, keepdims=True)))
    return label, (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


def measure(label: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """The scores of results.json, by scikit-learn."""
    predicted = probabilities.argmax(axis=1)
    accuracy = float(accuracy_score(label, predicted))
    half = 1.96 * float(np.sqrt(accuracy * (1 - accuracy) / len(label)))
    return {
        "samples": len(label),
        "accuracy": accuracy,
        "accuracy_ci95": [max(0.0, accuracy - half), min(1.0, accuracy + half)],
        "balanced_accuracy": float(balanced_accuracy_score(label, predicted)),
        "macro_f1": float(f1_score(label, predicted, average="macro")),
        "per_class_recall": recall_score(label, predicted, average=None).tolist(),
        "confusion": confusion_matrix(label, predicted).tolist(),
        "ece": expected_calibration_error(probabilities, label),
    }


def learning_curve(epochs: int, seed: int) -> list[dict[str, float]]:
    """Lines of metrics.jsonl: six of training an epoch, and one of val."""
    noise = np.random.default_rng(seed)
    lines: list[dict[str, float]] = []
    for number in range(1, 6 * epochs + 1):
        done, at = number / (6 * epochs), {"step": 10 * number, "epoch": number / 6, "time": 5.0 * number}
        rise = 1 - np.exp(-4 * done)
        scores = {"loss": 2 - rise + 0.05 * noise.normal(), "accuracy": 0.2 + 0.45 * rise}
        lines.append(
            at | {f"train/{name}": value for name, value in scores.items()} | {"train/lr": 0.1 * done}
        )
        if number % 6 == 0:
            scores |= {"balanced_accuracy": 0.15 + 0.4 * rise, "macro_f1": 0.15 + 0.4 * rise}
            lines.append(at | {f"val/{name}": value for name, value in scores.items()})
    return lines


def write_run(
    folder: Path,
    *,
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
    skill: float = 2.6,
    samples: int = 700,
    epochs: int = 8,
    test: bool = False,
    occlusion: bool = False,
    fills: Sequence[str] = ("zero",),
    fold: int | None = None,
    manifest: bool = False,
    model: str = "resnet18_cbam",
) -> Path:
    """A finished run's folder, as training and evaluation leave it.

    Args:
        folder: to be made.
        classes: seven names.
        seed: of the predictions.
        skill: of the model.
        samples: in the evaluated split.
        epochs: in metrics.jsonl.
        test: whether test was scored too.
        occlusion: whether val was scored under squares and circles, with their predictions.
        fills: of the squares and circles; each is harder than the one before.
        fold: held-out fold, or None for splits.
        manifest: whether the beton's manifest is there.
        model: its name.
    """
    (folder / "predictions").mkdir(parents=True)
    data = folder.parent / "data" / "fer2013.beton"
    which = "best" if fold is None else f"fold{fold}-last"
    conditions = {
        "data": "fer2013",
        "fold": fold,
        "subset": "all",
        "unit": "image",
        "tta": "none",
        "checkpoint": "last" if fold is not None else "best",
    }
    evaluations = []
    for number, split in enumerate(("val", "test") if test else ("val",)):
        label, probabilities = draw_predictions(samples, skill, seed + 100 * number)
        predictions = Predictions(np.arange(samples), label, probabilities, "5e" * 32)
        predictions.save(folder / "predictions" / f"fer2013-{split}-{which}.npz")
        evaluations.append({"split": split, **conditions, "occlusion": None, **measure(label, probabilities)})
    cells, grid = [], []
    areas = enumerate((0.028, 0.111, 0.25, 0.444, 0.5625), start=1)
    grades = product(("square", "circle"), areas, enumerate(fills)) if occlusion else ()
    for kind, (severity, covered), (number, fill) in grades:
        weaker = skill * (1 - (1.1 if kind == "square" else 0.95) * covered - 0.1 * number)
        label, probabilities = draw_predictions(samples, weaker, seed)
        entry = {
            "kind": kind,
            "severity": severity,
            "fill": fill,
            "covered": covered,
            "seen": "seen" if covered < 0.3 else "unseen size",
            "checksum": f"{severity}" * 64,
        }
        evaluations.append(
            {"split": "val", **conditions, "occlusion": entry, **measure(label, probabilities)}
        )
        cells.append(Cell(kind, severity, fill))
        grid.append(probabilities)
    if occlusion:
        Predictions(
            np.arange(samples),
            label,
            np.stack(grid),
            "5e" * 32,
            tuple(cells),
            tuple(str(cell.severity) * 64 for cell in cells),
            np.arange(samples),
        ).merged_into(folder / "predictions" / "occlusion" / f"fer2013-val-{which}.npz")
    config = {
        "data": {"path": str(data), "fold": fold, "batch_size": 128},
        "model": {"name": model, "stem": "stride2", "placement": "after"},
        "train": {"epochs": epochs, "lr": 0.1, "select": "auto"},
        "seed": seed,
        "run_dir": str(folder),
    }
    environment = {"ferdist": "0.1.0", "world_size": 2, "git_revision": "05d845e"}
    results = {
        "schema": 1,
        "classes": list(classes),
        "config": config,
        "environment": environment,
        "test_scorings": int(test),
        "evaluations": evaluations,
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "reason": None}))
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "environment": environment}))
    lines = learning_curve(epochs, seed)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if manifest:
        write_manifest(data.with_suffix(".json"), classes)
    return folder


def write_manifest(path: Path, classes: Sequence[str]) -> None:
    """A manifest as the beton writer leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = [467, 56, 496, 895, 653, 415, 607]
    manifest = {
        "schema": 1,
        "name": "fer2013",
        "samples": 3589 * 2,
        "image": {"channels": 1, "height": 48, "width": 48},
        "classes": list(classes),
        "splits": {name: {"samples": 3589, "per_class": counts} for name in ("train", "val")},
        "folds": {},
        "statistics": {"without_fold": {}},
        "sources": {"fer2013.csv": "ab" * 32},
        "bytes": 1,
        "samples_sha256": "cd" * 32,
        "sha256": "5e" * 32,
        "audit": {"unique": 7000, "copies": {"across_splits": 118, "conflicting": [3, 9]}, "constant": []},
        "created": {"ferdist": "0.1.0"},
    }
    path.write_text(json.dumps(manifest))


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``make_run(name, **options)``: a run's folder below tmp_path, options as in ``write_run``."""

    def make(name: str = "run", **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return make
