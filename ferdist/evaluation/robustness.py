"""Figures of merit of the occlusion benchmark, as pure functions of its predictions and entries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ferdist.augment.kinds import KINDS, SEEN, UNSEEN_KIND, UNSEEN_SIZE, kind_label
from ferdist.data.record import Integers
from ferdist.errors import RunError
from ferdist.evaluation import metrics
from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.metrics import Predictions, Probabilities
from ferdist.io import atomic_path

CONDITIONS: Final = ("data", "beton_sha256", "split", "fold", "inner_fold", "tta", "checkpoint")
"""What the entries of one benchmark share."""
MARKS: Final = (SEEN, UNSEEN_SIZE, UNSEEN_KIND)

Entry = dict[str, Any]


@dataclass(frozen=True)
class GridPredictions:
    """What a model says of each sample under each cell of the benchmark: all its figures follow from this.

    Attributes:
        index: int64 (N,), sample numbers in the beton, ascending.
        label: int64 (N,).
        cluster: int64 (N,), what intervals resample: subjects, or groups of copies.
        cells: M cells.
        checksums: of the N images of each cell, M.
        probabilities: float32 (M, N, K).
        beton_sha256: of the file that the samples came from.
    """

    index: Integers
    label: Integers
    cluster: Integers
    cells: tuple[Cell, ...]
    checksums: tuple[str, ...]
    probabilities: Probabilities
    beton_sha256: str

    def correct(self) -> npt.NDArray[np.bool_]:
        """Which samples are recognised, bool (M, N)."""
        return np.asarray(self.probabilities.argmax(axis=2) == self.label)

    def predictions(self, number: int) -> Predictions:
        """Those of one cell."""
        return Predictions(self.index, self.label, self.probabilities[number], self.beton_sha256)

    def check_samples(self, index: Integers, label: Integers, beton_sha256: str) -> None:
        """Refuse to be compared with predictions for other samples, or with other labels.

        Raises:
            RunError: if they differ.
        """
        alike = self.beton_sha256 == beton_sha256 and np.array_equal(self.index, index)
        if not alike or not np.array_equal(self.label, label):
            raise RunError("the reference was not evaluated on the same samples with the same labels")

    def merged_into(self, path: Path) -> None:
        """Put these cells into a file, in place of the same ones in it.

        A file that is about other samples, or that cannot be read, is replaced.
        """
        try:
            older = GridPredictions.load(path)
        except RunError:
            older = self
        older._updated(self).save(path)

    def _updated(self, newer: GridPredictions) -> GridPredictions:
        if self.beton_sha256 != newer.beton_sha256 or not np.array_equal(self.index, newer.index):
            return newer
        kept = [number for number, cell in enumerate(self.cells) if cell not in newer.cells]
        cells = (*(self.cells[k] for k in kept), *newer.cells)
        order = sorted(range(len(cells)), key=lambda number: _place(cells[number]))
        checksums = (*(self.checksums[k] for k in kept), *newer.checksums)
        return replace(
            newer,
            cells=tuple(cells[k] for k in order),
            checksums=tuple(checksums[k] for k in order),
            probabilities=np.concatenate([self.probabilities[kept], newer.probabilities])[order],
        )

    def save(self, path: Path) -> None:
        """Write a compressed .npz, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                index=self.index,
                label=self.label,
                cluster=self.cluster,
                kind=np.array([cell.kind for cell in self.cells]),
                severity=np.array([cell.severity for cell in self.cells]),
                fill=np.array([cell.fill for cell in self.cells]),
                checksum=np.array(self.checksums),
                probabilities=self.probabilities,
                beton_sha256=np.array(self.beton_sha256),
            )

    @staticmethod
    def load(path: Path) -> GridPredictions:
        """Read what `save` wrote.

        Raises:
            RunError: if the file is missing or no predictions under occlusion.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                named = (stored["kind"].tolist(), stored["severity"].tolist(), stored["fill"].tolist())
                return GridPredictions(
                    stored["index"],
                    stored["label"],
                    stored["cluster"],
                    tuple(Cell(*cell) for cell in zip(*named, strict=True)),
                    tuple(stored["checksum"].tolist()),
                    stored["probabilities"],
                    str(stored["beton_sha256"]),
                )
        except FileNotFoundError:
            raise RunError(
                f"{path}: there is no such file: run `ferdist evaluate {path.parents[2]} --occlusion` first"
            ) from None
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise RunError(f"{path}: no predictions under occlusion that can be read: {error}") from None


def pool(grids: Sequence[GridPredictions]) -> GridPredictions:
    """The benchmark over several parts of the data, such as the folds of a k-fold experiment, as one.

    Args:
        grids: of the same cells and data, without a sample in common. A cell's checksum becomes the sha256 of
            the parts' checksums, in the order of their first samples.

    Raises:
        RunError: if cells or data differ or a sample is there twice.
    """
    parts = sorted(grids, key=lambda grid: int(grid.index[0]))
    first = parts[0]
    index = np.concatenate([part.index for part in parts])
    if any((part.cells, part.beton_sha256) != (first.cells, first.beton_sha256) for part in parts):
        raise RunError("predictions for other cells or data do not pool: evaluate all parts alike")
    if len(np.unique(index)) < len(index):
        raise RunError("predictions for the same samples do not pool: give each part once")
    order = np.argsort(index)
    return GridPredictions(
        index[order],
        np.concatenate([part.label for part in parts])[order],
        np.concatenate([part.cluster for part in parts])[order],
        first.cells,
        tuple(_joined(sums) for sums in zip(*(part.checksums for part in parts), strict=True)),
        np.concatenate([part.probabilities for part in parts], axis=1)[:, order],
        first.beton_sha256,
    )


def correct_share(seeds: Sequence[GridPredictions]) -> npt.NDArray[np.float64]:
    """In how many of the seeds each sample is recognised, as a fraction, float64 (M, N).

    Raises:
        RunError: if the seeds' cells or images differ.
    """
    first = seeds[0]
    if any((seed.cells, seed.checksums) != (first.cells, first.checksums) for seed in seeds):
        raise RunError("the seeds were not evaluated under the same occlusion: evaluate all of them alike")
    return np.asarray(np.mean([seed.correct() for seed in seeds], axis=0, dtype=float))


def mean_intervals(
    seeds: Sequence[GridPredictions], groups: Sequence[Sequence[Cell]]
) -> list[tuple[float, float]]:
    """95 % bootstrap interval of the mean accuracy over each of several groups of cells.

    Args:
        seeds: predictions for the same images, over which the accuracies are means too.
        groups: cells that the predictions have.

    Raises:
        RunError: if the seeds' cells or images differ.
    """
    share = correct_share(seeds)
    place = {cell: number for number, cell in enumerate(seeds[0].cells)}
    rows = [share[[place[cell] for cell in cells]].mean(axis=0) for cells in groups]
    return metrics.accuracy_intervals(np.array(rows), seeds[0].cluster)


def area_under_curve(covered: Sequence[float], accuracy: Sequence[float]) -> float:
    """Mean accuracy over the covered fraction from 0 to the largest one, by the trapezoid rule.

    Args:
        covered: fractions, starting with 0 for uncovered images, ascending.
        accuracy: fractions, at each of them.
    """
    return float(np.trapezoid(accuracy, covered) / covered[-1])


def corruption_error(errors: npt.ArrayLike, reference: npt.ArrayLike) -> float | None:
    """Sum of a model's error rates under a kind over that of the reference's; None where the latter is 0.

    Hendrycks and Dietterich, ICLR 2019, section 4: AlexNet is the reference there.
    """
    return float(np.sum(errors) / np.sum(reference)) if np.sum(reference) > 0 else None


def summarise(entries: Sequence[Entry]) -> list[Entry]:
    """The figures of each benchmark in a list of evaluations.

    Args:
        entries: of results.json.

    Returns:
        For each set of ``CONDITIONS`` with covered images: these, ``clean_accuracy`` (None where there is no
        such entry), ``kinds``, ``accuracy``, ``relative_robustness``, ``area_under_curve`` (over the graded
        kinds), ``macro_f1``, ``seen``, ``cells`` and ``checksum`` (of the cells' checksums).

        ``kinds`` holds for each kind ``cells``, ``accuracy`` and ``macro_f1`` (means over its severities and
        fills), ``by_severity`` (accuracies, means over the fills), ``covered`` (by severity, or None),
        ``relative_robustness`` (accuracy over the clean one) and ``area_under_curve`` (graded kinds only).
        The figures above the kinds are means over the kinds. ``seen`` has the number of cells and their mean
        accuracy for ``seen``, ``unseen size`` and ``unseen kind`` (`benchmark.seen_in_training`).
    """
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        if entry.get("subset") == "all" and entry.get("unit") == "image":
            groups.setdefault(conditions(entry), []).append(entry)
    return [_summary(group) for group in groups.values() if any(entry.get("occlusion") for entry in group)]


def conditions(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes entries part of the same benchmark."""
    return tuple(entry.get(name) for name in CONDITIONS)


def _summary(group: Sequence[Entry]) -> Entry:
    clean = next((entry["accuracy"] for entry in group if not entry.get("occlusion")), None)
    covered = sorted((e for e in group if e.get("occlusion")), key=lambda e: _place(_cell(e)))
    by_kind: dict[str, list[Entry]] = {}
    for entry in covered:
        by_kind.setdefault(entry["occlusion"]["kind"], []).append(entry)
    kinds = {kind: _kind_figures(members, clean) for kind, members in by_kind.items()}
    areas = [kind["area_under_curve"] for kind in kinds.values() if kind["area_under_curve"] is not None]
    accuracy = _mean(kind["accuracy"] for kind in kinds.values())
    return {
        **dict(zip(CONDITIONS, conditions(covered[0]), strict=True)),
        "samples": covered[0]["samples"],
        "clean_accuracy": clean,
        "accuracy": accuracy,
        "relative_robustness": accuracy / clean if clean else None,
        "area_under_curve": _mean(areas) if areas else None,
        "macro_f1": _mean(kind["macro_f1"] for kind in kinds.values()),
        "seen": _by_seen(covered),
        "kinds": kinds,
        "cells": len(covered),
        "checksum": _joined(str(entry["occlusion"].get("checksum")) for entry in covered),
    }


def _kind_figures(members: Sequence[Entry], clean: float | None) -> Entry:
    severities = sorted({entry["occlusion"]["severity"] for entry in members})
    rows = [[entry for entry in members if entry["occlusion"]["severity"] == s] for s in severities]
    by_severity = [_mean(entry["accuracy"] for entry in row) for row in rows]
    covered = [row[0]["occlusion"].get("covered") for row in rows]
    accuracy = _mean(entry["accuracy"] for entry in members)
    area = None
    kind = KINDS.get(members[0]["occlusion"]["kind"])
    if kind is not None and kind.graded and clean is not None and None not in covered:
        area = area_under_curve([0.0, *covered], [clean, *by_severity])
    return {
        "cells": len(members),
        "accuracy": accuracy,
        "macro_f1": _mean(entry["macro_f1"] for entry in members),
        "relative_robustness": accuracy / clean if clean else None,
        "area_under_curve": area,
        "severities": severities,
        "by_severity": by_severity,
        "covered": covered,
    }


def _by_seen(covered: Sequence[Entry]) -> Entry:
    groups: Entry = {}
    for name in MARKS:
        members = [entry["accuracy"] for entry in covered if entry["occlusion"].get("seen") == name]
        if members:
            groups[name] = {"cells": len(members), "accuracy": _mean(members)}
    return groups


def compare(owns: Sequence[GridPredictions], references: Sequence[GridPredictions]) -> Entry:
    """A model against a reference, over the cells that both have, each averaged over its seeds.

    Args:
        owns, references: predictions for the same images, of each seed.

    Returns:
        ``cells``; ``mean_corruption_error`` (the mean of the kinds' `corruption_error`, 1 where the two are
        alike, less where the model is better; None where one of them is), ``difference`` of the accuracies
        (own - reference, mean over the kinds) with its paired 95 % interval ``difference_ci95``; and
        ``kinds`` with ``cells``, ``corruption_error``, ``difference`` and ``difference_ci95`` of each. The
        interval resamples subjects or groups of copies, as that of an accuracy does.

    Raises:
        RunError: if samples, labels or images differ, or there is no common cell.
    """
    own, reference = owns[0], references[0]
    for other in (*owns, *references):
        other.check_samples(own.index, own.label, own.beton_sha256)
    pairs = [
        (number, reference.cells.index(cell))
        for number, cell in enumerate(own.cells)
        if cell in reference.cells
    ]
    if not pairs:
        raise RunError("the two runs have no cell of the benchmark in common")
    for mine, theirs in pairs:
        if own.checksums[mine] != reference.checksums[theirs]:
            cell = own.cells[mine]
            raise RunError(
                f"the images of {cell.kind} {cell.severity} {cell.fill} differ between the runs: evaluate "
                "both with this version; the fill mean is that of a run's training data, see --fills"
            )
    hits, reference_hits = correct_share(owns), correct_share(references)
    gains, errors = {}, {}
    for kind in dict.fromkeys(own.cells[mine].kind for mine, _ in pairs):
        of_kind = [pair for pair in pairs if own.cells[pair[0]].kind == kind]
        right = hits[[number for number, _ in of_kind]]
        reference_right = reference_hits[[number for _, number in of_kind]]
        gains[kind] = right.mean(axis=0) - reference_right.mean(axis=0)
        ce = corruption_error(1 - right.mean(axis=1), 1 - reference_right.mean(axis=1))
        errors[kind] = {"cells": len(of_kind), "corruption_error": ce}
    rows = np.array([*gains.values(), np.mean(list(gains.values()), axis=0)])
    intervals = metrics.accuracy_intervals(rows, own.cluster)
    differences = [
        {"difference": float(row.mean()), "difference_ci95": list(interval)}
        for row, interval in zip(rows, intervals, strict=True)
    ]
    all_errors = [
        kind["corruption_error"] for kind in errors.values() if kind["corruption_error"] is not None
    ]
    return {
        "cells": len(pairs),
        "mean_corruption_error": _mean(all_errors) if len(all_errors) == len(errors) else None,
        **differences[-1],
        "kinds": {
            kind: {**errors[kind], **difference}
            for kind, difference in zip(errors, differences[:-1], strict=True)
        },
    }


def as_text(summary: Mapping[str, Any]) -> str:
    """One of `summarise` for people: a Markdown table narrow enough for a phone, in percent."""
    fold = "" if summary["fold"] is None else f" fold {summary['fold']}"
    fold += "" if summary.get("inner_fold") is None else f"/{summary['inner_fold']}"
    lines = [
        f"{summary['data']} {summary['split']}{fold}, {summary['samples']:,} images, {summary['checkpoint']}",
        f"clean {_percent(summary['clean_accuracy'])} %; accuracy in %, by severity:",
        "",
        f"|{'kind':<10}|{'1':>4}|{'2':>4}|{'3':>4}|{'4':>4}|{'5':>4}|{'mean':>4}|",
        "|:---------|---:|---:|---:|---:|---:|---:|",
    ]
    for name, kind in summary["kinds"].items():
        at = dict(zip(kind["severities"], kind["by_severity"], strict=True))
        cells = [_percent(at.get(severity)) for severity in range(1, 6)]
        lines.append(
            f"|{kind_label(name):<10}|"
            + "".join(f"{cell:>4}|" for cell in [*cells, _percent(kind["accuracy"])])
        )
    lines += [
        "",
        f"mean over the kinds      {_percent(summary['accuracy']):>5} %",
        f"relative to clean        {_percent(summary['relative_robustness']):>5} %",
        f"area under the curve     {_percent(summary['area_under_curve']):>5} %",
        f"macro-F1                 {_percent(summary['macro_f1']):>5} %",
    ]
    for name, part in summary["seen"].items():
        said = f"{name} ({part['cells']} cells)"
        lines.append(f"{said:<25}{_percent(part['accuracy']):>5} %")
    lines.append(f"images sha256 {summary['checksum'][:16]}...")
    return "\n".join(lines)


def comparison_as_text(comparison: Mapping[str, Any]) -> str:
    """What `compare` gave, with the name of the ``reference``, for people."""
    lines = [
        f"against {comparison['reference']} ({comparison['cells']} cells):",
        f"mCE {_percent(comparison['mean_corruption_error'])} %; difference in points:",
        "",
        f"|{'kind':<10}|{'CE %':>5}|{'points':>6}|{'95 %':>13}|",
        "|:---------|----:|-----:|------------:|",
    ]
    rows = [*comparison["kinds"].items(), ("mean", comparison)]
    for name, row in rows:
        error = _percent(row["corruption_error" if name != "mean" else "mean_corruption_error"])
        points = f"{100 * row['difference']:+.1f}"
        interval = " ".join(f"{100 * bound:+.1f}" for bound in row["difference_ci95"])
        lines.append(f"|{kind_label(name):<10}|{error:>5}|{points:>6}|{interval:>13}|")
    return "\n".join(lines)


def _cell(entry: Mapping[str, Any]) -> Cell:
    damage = entry["occlusion"]
    return Cell(damage["kind"], damage["severity"], str(damage.get("fill")))


def _place(cell: Cell) -> tuple[int, str, str, int]:
    """Where a cell stands in the benchmark; kinds of other versions come last."""
    kinds = list(KINDS)
    if cell.kind not in kinds:
        return len(kinds), cell.kind, cell.fill, cell.severity
    fills = [fill.name for fill in KINDS[cell.kind].fills]
    at = fills.index(cell.fill) if cell.fill in fills else len(fills)
    return kinds.index(cell.kind), "", str(at), cell.severity


def _joined(checksums: Iterable[str]) -> str:
    """One sha256 (hex) for several."""
    return hashlib.sha256("".join(checksums).encode()).hexdigest()


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(np.array(list(values), dtype=float)))


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
