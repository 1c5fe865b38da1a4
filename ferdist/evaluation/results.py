"""The writer of results.json: all evaluations of a run, each key once; and its content for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ferdist.evaluation import robustness
from ferdist.evaluation.records import SCHEMA, Evaluation, Results, conditions_of, read_results
from ferdist.evaluation.robustness import benchmark_scores, fold_label
from ferdist.io import write_json


def add_evaluations(
    path: Path,
    evaluations: Sequence[Evaluation],
    *,
    classes: Sequence[str],
    config: dict[str, Any],
    environment: dict[str, Any],
    comparison: dict[str, Any] | None = None,
) -> Results:
    """Put evaluations into results.json, in place of those with the same key.

    A call with evaluations of the test split counts as one more scoring of test. ``robustness`` is computed
    anew from all of them. A comparison (`robustness.compare_benchmarks`, with its conditions and the
    ``reference``) is put into ``comparisons``; older ones about evaluations that are replaced go.
    """
    older = read_results(path) if path.exists() else None
    content: Mapping[str, Any] = older.content if older else {"evaluations": []}
    new = {one.key for one in evaluations}
    kept = [
        (one, entry)
        for one, entry in zip(older.evaluations if older else (), content["evaluations"], strict=True)
        if one.key not in new
    ]
    covered = [one.conditions_json() for one in evaluations if one.occlusion is not None]
    comparisons = [c for c in content.get("comparisons", []) if conditions_of(c) not in covered]
    written = {
        "schema": SCHEMA,
        "config": config,
        "environment": environment,
        "classes": list(classes),
        "test_scorings": (older.test_scorings if older else 0)
        + any(one.split == "test" for one in evaluations),
        "evaluations": [*(entry for _, entry in kept), *(one.to_json() for one in evaluations)],
        "robustness": benchmark_scores([*(one for one, _ in kept), *evaluations]),
        "comparisons": comparisons + ([comparison] if comparison else []),
    }
    write_json(path, written)
    return read_results(path)


def as_text(results: Results, split: str | None = None) -> str:
    """The evaluations for people, of one split or all: a line each, a table for each occlusion benchmark."""

    lines = [f"{'data':<12}{'split':<12}{'subset':<20}{'unit':<10}{'tta':<10}{'n':>7}  accuracy"]
    for one in results.evaluations:
        if one.occlusion is not None or split not in (None, one.split):
            continue
        low, high = one.interval or (math.nan, math.nan)
        lines.append(
            f"{one.data:<12}{one.split + fold_label(one.fold, one.inner_fold):<12}{one.subset:<20}"
            f"{one.unit:<10}{one.tta:<10}{one.samples:>7}  "
            f"{100 * (one.accuracy or 0):.2f} % (95 % {100 * low:.2f}-{100 * high:.2f}), {one.checkpoint}"
        )
    times = results.test_scorings
    lines.append(f"test was scored {times} time{'' if times == 1 else 's'}")
    for summary in results.content.get("robustness", []):
        if split in (None, summary["split"]):
            lines += ["", robustness.as_text(summary)]
            for comparison in results.content.get("comparisons", []):
                if conditions_of(comparison) == conditions_of(summary):
                    lines += ["", robustness.comparison_as_text(comparison)]
    return "\n".join(lines)
