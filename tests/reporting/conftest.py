"""Run folders with plausible scores of drawn predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferdist.config import Config, load_config, to_dict
from ferdist.data.beton import Manifest
from ferdist.evaluation.metrics import scores_of
from ferdist.evaluation.predictions import Predictions
from ferdist.evaluation.records import Damage, Evaluation, EvaluationKey
from ferdist.evaluation.results import add_evaluations
from ferdist.runtime.folder import RunFolder
from tests.conftest import ROOT

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
COUNTS = [467, 56, 496, 895, 653, 415, 607]
BETON = "5e" * 32
MakeRun = Callable[..., Path]


def draw_predictions(samples: int, skill: float, seed: int) -> Predictions:
    """Of seven classes; the higher the skill, the more are right."""
    generator = np.random.default_rng(seed)
    label = generator.choice(len(COUNTS), size=samples, p=np.array(COUNTS) / sum(COUNTS))
    label[: len(COUNTS)] = np.arange(len(COUNTS))
    # A fixed resemblance of the classes makes some mistakes more frequent than others.
    resemblance = np.random.default_rng(7).normal(size=(len(COUNTS), len(COUNTS)))
    logits = 1.3 * generator.normal(size=(samples, len(COUNTS))) + 0.9 * resemblance[label]
    logits[np.arange(samples), label] += skill
    odds = np.exp(1.4 * (logits - logits.max(axis=1, keepdims=True)))
    rows = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
    return Predictions(np.arange(samples), label, rows, BETON)


def record(key: EvaluationKey, predictions: Predictions) -> Evaluation:
    """The entry of results.json for predictions, with an interval as if samples were independent."""
    accuracy = float(predictions.correct().mean())
    half = 1.96 * float(np.sqrt(accuracy * (1 - accuracy) / len(predictions.index)))
    scores = scores_of(predictions, (max(0.0, accuracy - half), min(1.0, accuracy + half)))
    return Evaluation(**vars(key), **vars(scores), predictions=key.predictions_name(own_data=True))


def learning_curve(epochs: int) -> list[dict[str, float]]:
    """Lines of metrics.jsonl: six of training an epoch, and one of val."""
    lines: list[dict[str, float]] = []
    for number in range(1, 6 * epochs + 1):
        done, at = number / (6 * epochs), {"step": 10 * number, "epoch": number / 6, "time": 5.0 * number}
        loss, accuracy = 2 - done, 0.2 + 0.45 * done
        lines.append(at | {"train/loss": loss, "train/accuracy": accuracy, "train/lr": 0.1 * done})
        if number % 6 == 0:
            lines.append(at | {"val/loss": loss, "val/accuracy": accuracy, "val/balanced_accuracy": accuracy})
    return lines


def write_files(
    config: Config,
    environment: dict[str, Any],
    evaluations: Sequence[Evaluation],
    lines: Sequence[dict[str, float]],
    classes: Sequence[str] = CLASSES,
) -> RunFolder:
    """What a finished run leaves beside its predictions."""
    run = RunFolder(Path(config.run_dir))
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_config(config, environment)
    meta = {"config": to_dict(config), "environment": environment}
    add_evaluations(run.results, evaluations, classes=classes, **meta)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.set_status("finished")
    return run


def edit_results(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the content of a run's results.json."""
    results = json.loads((folder / "results.json").read_text())
    change(results)
    (folder / "results.json").write_text(json.dumps(results))


def evaluations_of(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's results.json."""
    return list(json.loads((folder / "results.json").read_text())["evaluations"])


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
        classes: seven names.
        skill: of the model.
        samples: in the evaluated split.
        test: whether test was scored too.
        occlusion: whether val was scored under squares and circles, with their predictions.
        fills: of the squares and circles; each is harder than the one before.
        manifest: whether the beton's manifest is there.
    """
    beton = folder.parent / "data" / "fer2013.beton"
    base = load_config(ROOT / "configs" / "base.yaml", ["data.path=x", "run_dir=x"])
    config = replace(
        base,
        data=replace(base.data, path=str(beton), fold=fold, batch_size=128),
        model=replace(base.model, name=model),
        train=replace(base.train, epochs=epochs),
        seed=seed,
        run_dir=str(folder),
    )
    which = "best" if fold is None else "last"
    key = EvaluationKey(data="fer2013", beton_sha256=BETON, split="val", fold=fold, checkpoint=which)
    evaluations, grid = [], []
    for number, split in enumerate(("val", "test") if test else ("val",)):
        predictions = draw_predictions(samples, skill, seed + 100 * number)
        evaluations.append(record(replace(key, split=split), predictions))
        predictions.save(folder / "predictions" / evaluations[-1].predictions)
    areas = enumerate((0.028, 0.111, 0.25, 0.444, 0.5625), start=1)
    grades = product(("square", "circle"), areas, enumerate(fills)) if occlusion else ()
    for kind, (severity, covered), (number, fill) in grades:
        weaker = skill * (1 - (1.1 if kind == "square" else 0.95) * covered - 0.1 * number)
        grid.append(draw_predictions(samples, weaker, seed))
        seen = "seen" if covered < 0.3 else "unseen size"
        damage = Damage(kind, severity, fill, covered, seen, f"{severity}" * 64)
        evaluations.append(record(replace(key, occlusion=damage), grid[-1]))
    if grid:
        covers = [one.occlusion for one in evaluations if one.occlusion]
        replace(
            grid[0],
            probabilities=np.stack([predictions.probabilities for predictions in grid]),
            cells=tuple(damage.cell for damage in covers),
            checksums=tuple(damage.checksum for damage in covers),
            cluster=grid[0].index,
        ).save(folder / "predictions" / evaluations[-1].predictions)
    environment = {"ferdist": "0.1.0", "world_size": 2, "git_revision": "05d845e"}
    write_files(config, environment, evaluations, learning_curve(epochs), classes)
    if manifest:
        write_manifest(beton.with_suffix(".json"), classes)
    return folder


def write_manifest(path: Path, classes: Sequence[str]) -> None:
    """A manifest as the beton writer leaves it."""
    manifest = Manifest(
        name="fer2013",
        samples=3589 * 2,
        image={"channels": 1, "height": 48, "width": 48},
        classes=list(classes),
        splits={name: {"samples": 3589, "per_class": COUNTS} for name in ("train", "val")},
        folds={},
        statistics={"without_fold": {}},
        sources={"fer2013.csv": "ab" * 32},
        bytes=1,
        sha256=BETON,
        samples_sha256="cd" * 32,
        audit={
            "unique_images": 7000,
            "copies": {"groups": 57, "samples": 118},
            "conflicting_labels": {"groups": 0, "samples": 0},
            "near_constant": {"samples": 2, "indices": [3, 9]},
            "equalised": False,
            "leaks": {"val_in_train": 0, "test_in_train_or_val": 0, "across_folds": 0},
        },
        created={"ferdist": "0.1.0"},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(manifest.to_json())


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``make_run(name, **options)``: a run's folder below tmp_path, options as in ``write_run``."""

    def make(name: str = "run", **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return make
