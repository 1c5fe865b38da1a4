"""The writer of results.json: all evaluations of a run, each key once; and its content for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ferdist.augment.kinds import kind_label
from ferdist.errors import RunError
from ferdist.evaluation.published import real_faces_table
from ferdist.evaluation.records import SCHEMA, Evaluation, Results, conditions_of, read_results
from ferdist.evaluation.robustness import benchmark_scores
from ferdist.io import write_json, writing
from ferdist.table import Table, count, percent, percent_interval, points, points_interval


def add_evaluations(
    path: Path,
    evaluations: Sequence[Evaluation],
    *,
    classes: Sequence[str],
    config: dict[str, Any],
    environment: dict[str, Any],
    comparison: dict[str, Any] | None = None,
) -> Results:
    """Put evaluations into results.json, in place of those with the same key and of `outdated` ones.

    A call with evaluations of the test split counts as one more scoring of test. ``robustness`` is computed
    anew from all of them. A comparison (`robustness.compare_benchmarks`, with its conditions and the
    ``reference``) is put into ``comparisons``; older ones about evaluations that are replaced go.
    """
    older = read_results(path) if path.exists() else None
    content: Mapping[str, Any] = older.content if older else {"evaluations": []}
    new = {one.key for one in evaluations}
    weights = {(one.checkpoint, one.step) for one in evaluations}
    old = [one for checkpoint, step in weights for one in outdated(path, checkpoint, step)]
    new |= {one.key for one in old}
    kept = [
        (one, entry)
        for one, entry in zip(older.evaluations if older else (), content["evaluations"], strict=True)
        if one.key not in new
    ]
    covered = [conditions_of(vars(one)) for one in (*evaluations, *old) if one.occlusion is not None]
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
    with writing(path):
        write_json(path, written)
    return read_results(path)


def outdated(path: Path, checkpoint: str, step: int | None) -> list[Evaluation]:
    """What a checkpoint scored at an earlier step: training has gone on since.

    Such scores would else stand beside, and be pooled with, those of the later weights.

    Raises:
        RunError: if it was scored at a later step: training has gone on while these weights were scored.
    """
    if step is None or not path.exists():
        return []
    scored = [
        one for one in read_results(path).evaluations if one.checkpoint == checkpoint and one.step is not None
    ]
    newest = max((one.step or 0 for one in scored), default=0)
    if newest > step:
        raise RunError(
            f"{path}: has scores of step {newest}, these are of step {step}: evaluate the run again, or "
            "remove this file if the run was begun anew"
        )
    return [one for one in scored if one.step != step]


def as_text(results: Results, split: str | None = None) -> str:
    """The evaluations of one split or all for a terminal, with tables of each occlusion benchmark."""
    plain = [one for one in results.evaluations if not one.occlusion and split in (None, one.split)]
    rows = [
        {
            "data": one.data,
            "split": one.split + _fold_label(one.fold, one.inner_fold),
            "subset": one.subset,
            "unit": one.unit,
            "views": one.tta,
            "checkpoint": one.checkpoint,
            "samples": count(one.samples),
            "accuracy %": percent(one.accuracy, 2),
            "95 % interval": percent_interval(one.interval, 2),
        }
        for one in plain
    ]
    parts = [Table.of("", rows).text()] if rows else []
    start = started_from(results.config)
    faces = real_faces_table(("this model", start, one) for one in plain)
    if faces.rows:
        parts.append(f"{faces.caption}\n{faces.text()}")
    parts.append(f"test was scored {count(results.test_scorings, 'time')}")
    for summary in results.content.get("robustness", []):
        if split in (None, summary["split"]):
            parts.append(_benchmark_text(summary))
            parts += [
                _comparison_text(comparison)
                for comparison in results.content.get("comparisons", [])
                if conditions_of(comparison) == conditions_of(summary)
            ]
    return "\n\n".join(parts)


def started_from(config: Mapping[str, Any]) -> str:
    """The weights that a run's training started from, in words; config is the run's, nested."""
    pretrained = config.get("model", {}).get("pretrained")
    return "random weights" if pretrained is None else Path(str(pretrained)).name


def _benchmark_text(summary: Mapping[str, Any]) -> str:
    """One of `benchmark_scores`: tables narrow enough for a phone, in percent."""
    kinds = []
    for name, kind in summary["kinds"].items():
        at = dict(zip(kind["severities"], kind["by_severity"], strict=True))
        severities = {str(severity): percent(at.get(severity)) for severity in range(1, 6)}
        kinds.append({"kind": kind_label(name), **severities, "mean": percent(kind["accuracy"])})
    means = {
        "mean over the kinds": summary["accuracy"],
        "relative to clean": summary["relative_robustness"],
        "area under the curve": summary["area_under_curve"],
        "macro-F1": summary["macro_f1"],
        **{
            f"{name} ({count(part['cells'], 'cell')})": part["accuracy"]
            for name, part in summary["seen"].items()
        },
    }
    place = summary["split"] + _fold_label(summary["fold"], summary.get("inner_fold"))
    return "\n".join(
        [
            f"{summary['data']} {place}, {count(summary['samples'], 'image')}, {summary['checkpoint']}",
            f"clean {percent(summary['clean_accuracy'])} %; accuracy in %, by severity:",
            "",
            Table.of("", kinds).text(),
            "",
            Table.of("", [{"score": name, "%": percent(value)} for name, value in means.items()]).text(),
            f"images sha256 {summary['checksum'][:16]}...",
        ]
    )


def _comparison_text(comparison: Mapping[str, Any]) -> str:
    """One of `compare_benchmarks`, with the name of the ``reference``."""
    mean = {**comparison, "corruption_error": comparison["mean_corruption_error"]}
    rows = [
        {
            "kind": kind_label(name),
            "CE %": percent(row["corruption_error"]),
            "points": points(row["difference"]),
            "95 % interval": points_interval(row["difference_ci95"]),
        }
        for name, row in (*comparison["kinds"].items(), ("mean", mean))
    ]
    head = f"against {comparison['reference']}, {count(comparison['cells'], 'cell')};\ndifference in points:"
    return f"{head}\n\n{Table.of('', rows).text()}"


def _fold_label(fold: int | None, inner_fold: int | None) -> str:
    """What follows a split's name where folds are held out; empty where none is."""
    inner = "" if inner_fold is None else f"/{inner_fold}"
    return "" if fold is None else f" fold {fold}{inner}"
