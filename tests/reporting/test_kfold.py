"""summary.md: what people read of a k-fold experiment."""

from __future__ import annotations

from typing import Any

from ferdist.reporting.kfold import kfold_markdown


def summary(**changes: Any) -> dict[str, Any]:
    """Two folds, two seeds; the second seed lacks fold 1."""
    scores = {"accuracy": 0.5, "balanced_accuracy": 0.25, "macro_f1": 0.125}
    parts = ((0, 0), (0, 1), (1, 0))
    folds = [{"seed": s, "fold": f, "samples": 20, "subjects": 3, **scores} for s, f in parts]
    pooled = [
        {"seed": 0, "folds": 2, "complete": True, "samples": 40, "accuracy_ci95": [0.4, 0.6], **scores},
        {"seed": 1, "folds": 1, "complete": False, "samples": 20, "accuracy_ci95": [0.3, 0.7], **scores},
    ]
    over = {
        "seeds": [0],
        "samples": 40,
        "accuracy_ci95": [0.4, 0.6],
        **{name: {"mean": value, "sd": None} for name, value in scores.items()},
    }
    entry = {
        "tta": "none",
        "subset": "all",
        "unit": "image",
        "per_fold": folds,
        "pooled": pooled,
        "over_seeds": over,
    }
    return {
        "data": "ckplus",
        "beton_sha256": "ab" * 32,
        "folds": [0, 1],
        "inner_of": None,
        "seeds": [0, 1],
        "checkpoint": "last",
        "interval_over": "subject",
        "subjects_in_several_folds": 0,
        "evaluations": [entry],
        "cells": [
            *({"name": f"fold-0{f}-seed-{s}", "state": "finished", "reason": None} for s, f in parts),
            {"name": "fold-01-seed-1", "state": "failed", "reason": "TIMEOUT, see run_a/`log`"},
        ],
        **changes,
    }


def test_it_shows_pooled_scores_folds_and_what_failed() -> None:
    lines = kfold_markdown(summary()).splitlines()
    assert lines[0] == "# ckplus, 2 folds"
    assert lines[2].startswith("3 of 4 runs finished; seeds 0, 1; beton abababababab")
    assert "| one view | image | all | 1 | 40 | 50.0 | 40.0–60.0 | 25.0 | 12.5 |" in lines
    assert "| one view | image | all | seed 1, 1 fold only | 20 | 50.0 | 30.0–70.0 | 25.0 | 12.5 |" in lines
    assert "| 0 | 20 | 3 | 50.0 | 50.0 |" in lines
    assert "| 1 | 20 | 3 | 50.0 | – |" in lines
    assert "- fold-01-seed-1: failed: `TIMEOUT, see run_a/'log'`" in lines
    assert "- No subject is in two folds." in lines


def test_deviations_are_shown_where_there_are_several_seeds() -> None:
    value = summary()
    value["evaluations"][0]["over_seeds"]["accuracy"]["sd"] = 0.0123
    assert "| 50.0 ± 1.2 |" in kfold_markdown(value)


def test_it_says_what_makes_the_scores_lean() -> None:
    changed = {"checkpoint": "best", "inner_of": 7, "subjects_in_several_folds": 2}
    text = kfold_markdown(summary(interval_over="copy_group", **changed))
    assert "chosen on the inner fold itself: the scores are biased upward" in text
    assert text.startswith("# ckplus, 2 folds without fold 7\n\nFor choosing settings: no run read fold 7")
    assert "The folds are not subject-independent: 2 subjects in several of them." in text
    assert "a bootstrap over groups of exact copies" in text


def test_without_scores_it_says_how_the_runs_stand() -> None:
    cells = [{"name": "fold-00-seed-0", "state": "pending", "reason": None}]
    text = kfold_markdown(summary(evaluations=[], seeds=[], checkpoint=None, cells=cells))
    assert "0 of 1 run finished; seeds –" in text
    assert "- fold-00-seed-0: pending\n" in text
    assert "Pooled" not in text
