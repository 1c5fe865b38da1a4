"""results.json: all evaluations of a run, each key once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from ferdist.errors import RunError
from ferdist.evaluation import robustness
from ferdist.io import write_json

SCHEMA: Final = 1
KEY: Final = (
    "data",
    "beton_sha256",
    "split",
    "fold",
    "inner_fold",
    "subset",
    "unit",
    "tta",
    "occlusion",
    "checkpoint",
)
"""What makes an evaluation the same as another: doing it again replaces the entry."""


def read_results(path: Path) -> dict[str, Any]:
    """Read results.json.

    Raises:
        RunError: if it is missing, no JSON or of another schema.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: there is no such file: run `ferdist evaluate {path.parent}`") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: it cannot be read: {error}") from None
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise RunError(f"{path}: not a results file of schema {SCHEMA}: evaluate again with this version")
    return results


def add_evaluations(
    path: Path,
    entries: list[dict[str, Any]],
    *,
    classes: list[str],
    config: dict[str, Any],
    environment: dict[str, Any],
    comparison: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Put entries into results.json, in place of those with the same key.

    A call with entries of the test split counts as one more scoring of test. ``robustness`` is computed anew
    from all entries. A comparison (`robustness.compare`, with its conditions and the ``reference``) is put
    into ``comparisons``; older ones that are about entries that are replaced go.
    """
    results: dict[str, Any] = {"test_scorings": 0, "evaluations": []}
    if path.exists():
        results = read_results(path)
    new = {_key(entry) for entry in entries}
    kept = [entry for entry in results["evaluations"] if _key(entry) not in new]
    evaluations = kept + entries
    covered = {robustness.conditions(entry) for entry in entries if entry["occlusion"] is not None}
    comparisons = [c for c in results.get("comparisons", []) if robustness.conditions(c) not in covered]
    scored_test = any(entry["split"] == "test" for entry in entries)
    results = {
        "schema": SCHEMA,
        "config": config,
        "environment": environment,
        "classes": classes,
        "test_scorings": results["test_scorings"] + int(scored_test),
        "evaluations": evaluations,
        "robustness": robustness.summarise(evaluations),
        "comparisons": comparisons + ([comparison] if comparison else []),
    }
    write_json(path, results)
    return results


def as_text(results: dict[str, Any], split: str | None = None) -> str:
    """The evaluations for people, of one split or all: a line each, a table for each occlusion benchmark."""

    def wanted(entry: dict[str, Any]) -> bool:
        return split in (None, entry["split"])

    lines = [f"{'data':<12}{'split':<12}{'subset':<20}{'unit':<10}{'tta':<10}{'n':>7}  accuracy"]
    for entry in filter(wanted, results["evaluations"]):
        if entry["occlusion"] is not None:
            continue
        fold = "" if entry["fold"] is None else f" fold {entry['fold']}"
        fold += "" if entry.get("inner_fold") is None else f"/{entry['inner_fold']}"
        low, high = entry["accuracy_ci95"]
        lines.append(
            f"{entry['data']:<12}{entry['split'] + fold:<12}{entry['subset']:<20}{entry['unit']:<10}"
            f"{entry['tta']:<10}{entry['samples']:>7}  "
            f"{100 * entry['accuracy']:.2f} % (95 % {100 * low:.2f}-{100 * high:.2f}), {entry['checkpoint']}"
        )
    times = results["test_scorings"]
    lines.append(f"test was scored {times} time{'' if times == 1 else 's'}")
    for summary in filter(wanted, results.get("robustness", [])):
        lines += ["", robustness.as_text(summary)]
        for comparison in results.get("comparisons", []):
            if robustness.conditions(comparison) == robustness.conditions(summary):
                lines += ["", robustness.comparison_as_text(comparison)]
    return "\n".join(lines)


def _key(entry: dict[str, Any]) -> str:
    named = dict(entry)
    if entry["occlusion"] is not None:
        named["occlusion"] = [entry["occlusion"][name] for name in ("kind", "severity", "fill")]
    return json.dumps([named.get(name) for name in KEY])
