"""Scores under the occlusion benchmark, as pure functions of its predictions and evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ferdist.augment.kinds import KINDS, SEEN, UNSEEN_KIND, UNSEEN_SIZE
from ferdist.data.record import Integers
from ferdist.errors import RunError
from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.metrics import accuracy_intervals, seeds_intervals
from ferdist.evaluation.predictions import Predictions, check_same_samples, joined_checksum, place_of
from ferdist.evaluation.records import Damage, Evaluation, EvaluationKey, conditions_of

MARKS: Final = (SEEN, UNSEEN_SIZE, UNSEEN_KIND)

Summary = dict[str, Any]


def correct_share(seeds: Sequence[Predictions]) -> npt.NDArray[np.float64]:
    """In how many of the seeds each sample is recognised, as a fraction, float64 (M, N).

    Raises:
        RunError: if the seeds' samples, cells or images differ.
    """
    return np.asarray(_correct(seeds).mean(axis=0))


def _correct(seeds: Sequence[Predictions]) -> npt.NDArray[np.float64]:
    """Whether each seed recognises each sample under each cell, float64 (S, M, N)."""
    first = seeds[0]
    for seed in seeds[1:]:
        check_same_samples(first, seed)
        if (seed.cells, seed.checksums) != (first.cells, first.checksums):
            raise RunError("the seeds were evaluated under different occlusion: evaluate all of them alike")
    return np.array([seed.correct() for seed in seeds], dtype=float)


def mean_intervals(
    seeds: Sequence[Predictions], groups: Sequence[Sequence[Cell]]
) -> list[tuple[float, float]]:
    """95 % bootstrap interval of the mean accuracy over each of several groups of cells, and over the seeds.

    Raises:
        RunError: if the seeds' samples, cells or images differ.
    """
    share = correct_share(seeds)
    place = {cell: number for number, cell in enumerate(seeds[0].cells)}
    rows = [share[[place[cell] for cell in cells]].mean(axis=0) for cells in groups]
    return accuracy_intervals(np.array(rows), _cluster(seeds[0]))


def corruption_error(errors: npt.ArrayLike, reference: npt.ArrayLike) -> float | None:
    """Sum of a model's error rates under a kind over that of the reference's; None where the latter is 0.

    Hendrycks and Dietterich, ICLR 2019, section 4: AlexNet is the reference there.
    """
    return float(np.sum(errors) / np.sum(reference)) if np.sum(reference) > 0 else None


def benchmark_scores(evaluations: Iterable[Evaluation]) -> list[Summary]:
    """The scores of each occlusion benchmark among evaluations.

    Returns:
        For each set of `records.CONDITIONS` with covered images: these, ``samples``, ``clean_accuracy`` (None
        where the same samples were not scored uncovered), ``cells``, ``checksum`` (of the cells' checksums),
        ``kinds`` with the scores of each, and the means over the kinds. docs/occlusion.md defines the scores.
    """
    groups: dict[EvaluationKey, list[Evaluation]] = {}
    for one in evaluations:
        if (one.subset, one.unit) == ("all", "image"):
            groups.setdefault(one.conditions, []).append(one)
    return [_summary(group) for group in groups.values() if any(one.occlusion for one in group)]


def _summary(group: Sequence[Evaluation]) -> Summary:
    pairs = [(one.occlusion, one) for one in group if one.occlusion]
    covered = sorted(pairs, key=lambda pair: place_of(pair[0].cell))
    samples = covered[0][1].samples
    clean = next((one.accuracy for one in group if not one.occlusion and one.samples == samples), None)
    members: dict[str, list[tuple[Damage, Evaluation]]] = {}
    for pair in covered:
        members.setdefault(pair[0].kind, []).append(pair)
    kinds = {name: _kind_scores(name, of_kind, clean) for name, of_kind in members.items()}
    areas = [kind["area_under_curve"] for kind in kinds.values() if kind["area_under_curve"] is not None]
    accuracy = _mean(kind["accuracy"] for kind in kinds.values())
    seen = {name: [one.accuracy for damage, one in covered if damage.seen == name] for name in MARKS}
    return {
        **conditions_of(vars(covered[0][1])),
        "samples": samples,
        "clean_accuracy": clean,
        "accuracy": accuracy,
        "relative_robustness": accuracy / clean if clean else None,
        "area_under_curve": _mean(areas) if areas else None,
        "macro_f1": _mean(kind["macro_f1"] for kind in kinds.values()),
        "seen": {
            name: {"cells": len(found), "accuracy": _mean(found)} for name, found in seen.items() if found
        },
        "kinds": kinds,
        "cells": len(covered),
        "checksum": joined_checksum(damage.checksum for damage, _ in covered),
    }


def _kind_scores(kind: str, members: Sequence[tuple[Damage, Evaluation]], clean: float | None) -> Summary:
    rows: dict[int, list[Evaluation]] = {}
    shares: dict[int, float | None] = {}
    for damage, one in sorted(members, key=lambda pair: pair[0].severity):
        rows.setdefault(damage.severity, []).append(one)
        shares.setdefault(damage.severity, damage.covered)
    by_severity = [_mean(one.accuracy for one in row) for row in rows.values()]
    known = [share for share in shares.values() if share is not None]
    accuracy = _mean(one.accuracy for _, one in members)
    area = None
    if kind in KINDS and KINDS[kind].graded and clean is not None and len(known) == len(shares):
        area = float(np.trapezoid([clean, *by_severity], [0.0, *known]) / known[-1])
    return {
        "cells": len(members),
        "accuracy": accuracy,
        "macro_f1": _mean(one.macro_f1 for _, one in members),
        "relative_robustness": accuracy / clean if clean else None,
        "area_under_curve": area,
        "severities": list(rows),
        "by_severity": by_severity,
        "covered": list(shares.values()),
    }


def compare_benchmarks(owns: Sequence[Predictions], references: Sequence[Predictions]) -> Summary:
    """A model against a reference, over the cells that both have, each averaged over its seeds.

    Args:
        owns, references: predictions for the same images, of each seed.

    Returns:
        ``cells``; ``mean_corruption_error`` (the mean of the kinds' `corruption_error`, 1 where the two are
        alike, less where the model is better; None where one of them is), ``difference`` of the accuracies
        (own - reference, mean over the kinds) with its paired 95 % interval ``difference_ci95`` and, where
        both have several seeds, ``seeds_ci95`` of `metrics.seeds_intervals`; and ``kinds`` with ``cells``,
        ``corruption_error``, ``difference`` and its intervals of each.

    Raises:
        RunError: if samples, labels or images differ, or there is no common cell.
    """
    own, reference = owns[0], references[0]
    check_same_samples(own, reference)
    cells = [cell for cell in own.cells if cell in reference.cells]
    if not cells:
        raise RunError(
            "the two runs share no cell of the benchmark: evaluate both with the same --kinds and --fills"
        )
    mine, theirs = ([one.cells.index(cell) for cell in cells] for one in (own, reference))
    for cell, at, reference_at in zip(cells, mine, theirs, strict=True):
        if own.checksums[at] != reference.checksums[reference_at]:
            raise RunError(
                f"the images of {cell.kind} {cell.severity} {cell.fill} differ between the runs: evaluate "
                "both with this version; the fill mean is that of a run's training data, see --fills"
            )
    hits = _correct(owns)[:, mine], _correct(references)[:, theirs]
    by_kind: list[list[npt.NDArray[np.float64]]] = [[], []]
    kinds: dict[str, Summary] = {}
    for kind in dict.fromkeys(cell.kind for cell in cells):
        of_kind = [rows[:, [cell.kind == kind for cell in cells]] for rows in hits]
        errors = [1 - rows.mean(axis=(0, 2)) for rows in of_kind]
        kinds[kind] = {"cells": len(errors[0]), "corruption_error": corruption_error(*errors)}
        for known, rows in zip(by_kind, of_kind, strict=True):
            known.append(rows.mean(axis=1))
    ratios = [kind["corruption_error"] for kind in kinds.values()]
    total: Summary = {"cells": len(cells), "mean_corruption_error": None if None in ratios else _mean(ratios)}
    shares = [np.stack([*rows, np.mean(rows, axis=0)], axis=1) for rows in by_kind]
    gains = shares[0].mean(axis=0) - shares[1].mean(axis=0)
    intervals = accuracy_intervals(gains, _cluster(own))
    for found, gain, interval in zip((*kinds.values(), total), gains, intervals, strict=True):
        found |= {"difference": float(gain.mean()), "difference_ci95": list(interval)}
    if min(len(owns), len(references)) > 1:
        wider = seeds_intervals(shares[0], shares[1], _cluster(own))
        for found, interval in zip((*kinds.values(), total), wider, strict=True):
            found["seeds_ci95"] = list(interval)
    return {**total, "kinds": kinds}


def _cluster(predictions: Predictions) -> Integers:
    assert predictions.cluster is not None  # of predictions with cells
    return predictions.cluster


def _mean(values: Iterable[float | None]) -> float:
    return float(np.mean(np.array(list(values), dtype=float)))
