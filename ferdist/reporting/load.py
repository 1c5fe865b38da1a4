"""Run folders as plain records: what a report needs of the files in them."""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ferdist.errors import RunError
from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.metrics import Predictions, expected_calibration_error
from ferdist.evaluation.results import SCHEMA
from ferdist.evaluation.robustness import GridPredictions, summarise

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class Occlusion:
    """What covered the face in an evaluation.

    Attributes:
        kind: shape, e.g. ``square``.
        severity: 1 (least) to 5 (most).
        fill: what the covered pixels were replaced by.
        covered: fraction of the image, 0 to 1; None where nothing is covered or the fraction is unknown.
        seen: whether training showed such occlusion: ``seen``, ``unseen size`` or ``unseen kind``; "" where
            it is not recorded.
        checksum: of the images; "" where it is not recorded.
    """

    kind: str
    severity: int
    fill: str
    covered: float | None = None
    seen: str = ""
    checksum: str = ""

    @property
    def cell(self) -> Cell:
        """Of the benchmark."""
        return Cell(self.kind, self.severity, self.fill)


@dataclass(frozen=True)
class Evaluation:
    """One entry of results.json. Rates are fractions from 0 to 1; None and NaN in the file become None."""

    data: str
    """Name of the data that were scored."""
    split: str
    fold: int | None
    inner_fold: int | None
    subset: str
    unit: str
    tta: str
    checkpoint: str
    occlusion: Occlusion | None
    samples: int
    accuracy: float | None
    interval: tuple[float, float] | None
    balanced_accuracy: float | None
    macro_f1: float | None
    ece: float | None
    recall: tuple[float | None, ...]
    confusion: Integers
    """int64 (K, K): rows are the true classes, columns the predicted ones."""
    folds: int = 0
    """How many held-out folds are pooled in it; 0 where it is of one split or fold."""
    seeds: int = 1
    """Over how many seeds the rates are means; the confusion matrix counts each sample once for each."""
    beton_sha256: str = ""
    """Of the data that were scored; "" where it is not recorded."""

    @property
    def conditions(self) -> tuple[str | int | None, ...]:
        """All that defines the measurement except the occlusion."""
        folds = self.fold, self.inner_fold
        return self.data, self.split, *folds, self.subset, self.unit, self.tta, self.checkpoint


@dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Attributes:
        folder: the run's folder.
        name: what the report calls it; unique among the runs of one report.
        config: the resolved configuration, nested.
        config_text: config.yaml as it stands, or None where the file is missing.
        environment: versions, hardware, date and git revision.
        classes: class names in label order.
        test_scorings: how often the test split was scored.
        evaluations: the entries of results.json, in their order.
        history: the lines of metrics.jsonl, in their order; empty where there are none.
        status: status.json; empty where there is none.
        predictions: the readable files of predictions/, in the order of their names.
        robustness: the figures of each occlusion benchmark, as ``robustness.summarise`` gives them.
        grids: the readable files of predictions/occlusion/, in the order of their names.
        manifest: the manifest of the run's beton; None where it cannot be read here.
        remarks: what was missing or broken, in sentences for the reader.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    config_text: str | None
    environment: Mapping[str, Any]
    classes: tuple[str, ...]
    test_scorings: int
    evaluations: tuple[Evaluation, ...]
    history: tuple[Mapping[str, Any], ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    predictions: tuple[Predictions, ...] = ()
    robustness: tuple[Mapping[str, Any], ...] = ()
    grids: tuple[GridPredictions, ...] = ()
    manifest: Mapping[str, Any] | None = None
    remarks: tuple[str, ...] = ()

    def option(self, key: str, default: Any = None) -> Any:
        """The value of a dotted configuration key such as ``model.name``, or the default if it is not set."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    def curve(self, key: str) -> tuple[Floats, Floats]:
        """A metric over the run.

        Args:
            key: name of the metric in metrics.jsonl, e.g. ``val/loss``.

        Returns:
            Epochs and values, float64 (P,) each, in the order of the file; a value that is not finite is NaN.
        """
        lines = [line for line in self.history if key in line]
        values = [line[key] if isinstance(line[key], int | float) else math.nan for line in lines]
        curve = np.array(values, float)
        return np.array([line["epoch"] for line in lines], float), np.where(np.isfinite(curve), curve, np.nan)

    @property
    def model(self) -> str:
        """Name of the model, as configured."""
        return str(self.option("model.name", "unnamed model"))

    @property
    def data(self) -> str:
        """Name of the data that the run was trained on."""
        if self.manifest is not None and "name" in self.manifest:
            return str(self.manifest["name"])
        path = self.option("data.path")
        return Path(str(path)).stem if path else "unnamed data"

    @property
    def main(self) -> Evaluation | None:
        """The evaluation that the headline quotes, or None where there is none.

        The run's own data before others, test before val, all samples before subsets, images before
        sequences, one view before several, the checkpoint that the configuration selects before others: so
        that no figure is picked for being the highest. Never an occluded one.
        """
        clean = [evaluation for evaluation in self.evaluations if evaluation.occlusion is None]
        return min(clean, key=self._precedence, default=None)

    def _precedence(self, evaluation: Evaluation) -> tuple[int, ...]:
        selected = self.option("train.select", "auto")
        if selected == "auto":
            selected = "best" if self.option("data.fold") is None else "last"

        def rank(value: str, *order: str) -> int:
            return order.index(value) if value in order else len(order)

        return (
            rank(evaluation.data, self.data),
            rank(evaluation.split, "test", "val"),
            rank(evaluation.subset, "all"),
            rank(evaluation.unit, "image"),
            rank(evaluation.tta, "none", "flip"),
            rank(evaluation.checkpoint, selected),
        )


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders, in the order given; a folder that is given twice is read once.

    Args:
        folders: run folders, each with a results.json.

    Returns:
        The runs, with names that differ from each other.

    Raises:
        RunError: if there is no folder, or one cannot be read as a run.
    """
    unique = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    if not unique:
        raise RunError("no run to report on: give at least one run folder")
    runs = [load_run(folder) for folder in unique]
    return [replace(run, name=name) for run, name in zip(runs, telling_ends(unique), strict=True)]


def load_run(folder: Path) -> Run:
    """Read one run folder.

    Args:
        folder: a folder that holds results.json. What else there should be (metrics.jsonl, status.json,
            config.yaml, predictions/*.npz, the beton's manifest) is noted in ``Run.remarks`` if it is not.

    Returns:
        The run, named by its folder.

    Raises:
        RunError: if the folder is no run folder, was never evaluated, or holds a broken file.
    """
    results_path = folder / "results.json"
    results = _read_results(folder)
    classes = _class_names(results, results_path)
    evaluations = tuple(
        _evaluation(entry, len(classes) if classes else None, f"{results_path}: evaluations[{number}]")
        for number, entry in enumerate(_typed(results, "evaluations", list, results_path))
    )
    if not classes:
        classes = tuple(str(label) for label in range(len(evaluations[0].confusion) if evaluations else 0))
    remarks: list[str] = []
    if "classes" not in results:
        remarks.append("results.json names no classes: they are shown by their numbers.")
    config = _typed(results, "config", dict, results_path)
    run = Run(
        folder=folder,
        name=folder.name,
        config=config,
        config_text=_read_config(folder, remarks),
        environment=_typed(results, "environment", dict, results_path),
        classes=classes,
        test_scorings=_typed(results, "test_scorings", int, results_path),
        evaluations=evaluations,
        history=_read_history(folder / "metrics.jsonl", remarks),
        status=_read_status(folder / "status.json", remarks),
        predictions=_read_predictions(folder / "predictions", remarks),
        robustness=tuple(summarise(results["evaluations"])),
        grids=_read_grids(folder / "predictions" / "occlusion", remarks),
    )
    run = replace(run, manifest=_read_manifest(run, remarks))
    own = [replace(entry, data=entry.data or run.data) for entry in run.evaluations]
    return replace(run, evaluations=tuple(own), remarks=tuple(remarks))


def predictions_of(run: Run, evaluation: Evaluation) -> Predictions | None:
    """The predictions that an evaluation was computed from: those that give its figures again.

    Args:
        run: the run with its predictions.
        evaluation: an entry of ``run.evaluations``.

    Returns:
        The predictions, or None where no file agrees with the evaluation.
    """
    classes = len(evaluation.confusion)
    for predictions in run.predictions:
        if predictions.probabilities.shape[1] != classes or evaluation.ece is None:
            continue
        cells = predictions.label * classes + predictions.probabilities.argmax(axis=1)
        confusion = np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
        error = expected_calibration_error(predictions.probabilities, predictions.label)
        if np.array_equal(confusion, evaluation.confusion) and abs(error - evaluation.ece) < 1e-6:
            return predictions
    return None


def occluded_entries(run: Run) -> list[Evaluation]:
    """The evaluations under occlusion that share one set of conditions, the headline's where it can."""
    entries = [e for e in run.evaluations if e.occlusion is not None]
    main = run.main
    if main is not None and any(entry.conditions == main.conditions for entry in entries):
        return [entry for entry in entries if entry.conditions == main.conditions]
    return [entry for entry in entries if entry.conditions == entries[0].conditions]


def robustness_of(run: Run, evaluation: Evaluation) -> Mapping[str, Any] | None:
    """The figures of the benchmark that an evaluation is part of, or None where there are none."""
    for summary in run.robustness:
        here = (
            summary["data"] or run.data,
            *(summary[name] for name in ("split", "fold", "tta", "checkpoint")),
        )
        if here == (
            evaluation.data,
            evaluation.split,
            evaluation.fold,
            evaluation.tta,
            evaluation.checkpoint,
        ):
            return summary
    return None


def grids_of(run: Run, covered: Sequence[Evaluation]) -> tuple[GridPredictions, ...]:
    """The predictions of each seed that evaluations under occlusion were computed from.

    Empty where no file agrees with them.
    """
    if not covered:
        return ()
    several = covered[0].seeds > 1
    for grids in [run.grids] if several else [(grid,) for grid in run.grids]:
        hits: Counter[tuple[Cell, str]] = Counter()
        for grid in grids:
            counts = grid.correct().sum(axis=1).tolist()
            hits.update(dict(zip(zip(grid.cells, grid.checksums, strict=True), counts, strict=True)))
        if all(
            hits.get((o.cell, o.checksum)) == entry.confusion.trace()
            for entry in covered
            if (o := entry.occlusion) is not None
        ):
            return grids
    return ()


def telling_ends(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of distinct paths that tell them apart, all of as many parts."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("distinct paths have distinct names")


def _read_results(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder")
    path = folder / "results.json"
    if not path.is_file():
        if not any((folder / name).exists() for name in ("config.yaml", "status.json", "checkpoints")):
            raise RunError(
                f"{folder}: not a run folder: it holds neither config.yaml, status.json nor checkpoints"
            )
        raise RunError(f"{folder}: no results.json: run `ferdist evaluate {folder}` first")
    results = _read_json(path)
    if not isinstance(results, dict):
        raise RunError(f"{path}: holds no object; evaluate the run again")
    if results.get("schema") != SCHEMA:
        raise RunError(
            f"{path}: schema {results.get('schema')!r} is unknown, this version reads {SCHEMA}: "
            "use the ferdist that wrote it or evaluate the run again"
        )
    return results


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: line {error.lineno}: malformed JSON ({error.msg}); write it again") from None
    except UnicodeDecodeError:
        raise RunError(f"{path}: not a text file in UTF-8; write it again") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None


def _typed(mapping: Mapping[str, Any], key: str, kind: type[T], where: Path | str) -> T:
    if key not in mapping:
        raise RunError(f"{where}: no {key!r} in it; evaluate the run again")
    value = mapping[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RunError(
            f"{where}: {key!r} is {type(value).__name__}, not {kind.__name__}; evaluate the run again"
        )
    return value


def _class_names(results: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    if "classes" not in results:
        return ()
    return tuple(str(name) for name in _typed(results, "classes", list, path))


def _evaluation(entry: Any, classes: int | None, where: str) -> Evaluation:
    if not isinstance(entry, dict):
        raise RunError(f"{where}: no object; evaluate the run again")
    confusion = _confusion(entry, classes, where)
    recall = _typed(entry, "per_class_recall", list, where)
    if len(recall) != len(confusion):
        raise RunError(f"{where}: {len(recall)} recalls for {len(confusion)} classes; evaluate the run again")
    fold, inner_fold = (
        None if entry.get(key) is None else _typed(entry, key, int, where) for key in ("fold", "inner_fold")
    )
    return Evaluation(
        data=str(entry.get("data", "")),
        split=_typed(entry, "split", str, where),
        fold=fold,
        inner_fold=inner_fold,
        subset=_typed(entry, "subset", str, where),
        unit=_typed(entry, "unit", str, where),
        tta=_typed(entry, "tta", str, where),
        checkpoint=str(entry.get("checkpoint", "")),
        occlusion=_occlusion(entry, where),
        samples=_typed(entry, "samples", int, where),
        accuracy=_rate(entry, "accuracy", where),
        interval=_interval(entry, where),
        balanced_accuracy=_rate(entry, "balanced_accuracy", where),
        macro_f1=_rate(entry, "macro_f1", where),
        ece=_rate(entry, "ece", where),
        recall=tuple(_fraction(value, f"{where}: per_class_recall") for value in recall),
        confusion=confusion,
        beton_sha256=str(entry.get("beton_sha256", "")),
    )


def _confusion(entry: Mapping[str, Any], classes: int | None, where: str) -> Integers:
    rows = _typed(entry, "confusion", list, where)
    width = len(rows) if classes is None else classes
    if len(rows) != width or any(not isinstance(row, list) or len(row) != width for row in rows):
        raise RunError(f"{where}: 'confusion' is not {width} rows of {width} counts; evaluate the run again")
    counts = [count for row in rows for count in row]
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in counts):
        raise RunError(f"{where}: 'confusion' holds something other than counts; evaluate the run again")
    return np.asarray(rows, dtype=np.int64).reshape(width, width)


def _occlusion(entry: Mapping[str, Any], where: str) -> Occlusion | None:
    if entry.get("occlusion") is None:
        return None
    occlusion = _typed(entry, "occlusion", dict, where)
    return Occlusion(
        kind=_typed(occlusion, "kind", str, f"{where}: occlusion"),
        severity=_typed(occlusion, "severity", int, f"{where}: occlusion"),
        fill=str(occlusion.get("fill")),
        covered=_fraction(occlusion.get("covered"), f"{where}: occlusion: covered"),
        seen=str(occlusion.get("seen", "")),
        checksum=str(occlusion.get("checksum", "")),
    )


def _interval(entry: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    bounds = entry.get("accuracy_ci95")
    if bounds is None:
        return None
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise RunError(f"{where}: 'accuracy_ci95' is no pair of bounds; evaluate the run again")
    low, high = (_fraction(bound, f"{where}: accuracy_ci95") for bound in bounds)
    return None if low is None or high is None else (low, high)


def _rate(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    if key not in entry:
        raise RunError(f"{where}: no {key!r} in it; evaluate the run again")
    return _fraction(entry[key], f"{where}: {key}")


def _fraction(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise RunError(f"{where}: {value!r} is no fraction from 0 to 1; evaluate the run again")
    return float(value)


def _read_history(path: Path, remarks: list[str]) -> tuple[Mapping[str, Any], ...]:
    """The lines of metrics.jsonl; the last one may be half written, as a killed run leaves it."""
    if not path.is_file():
        remarks.append("metrics.jsonl is missing: there are no learning curves.")
        return ()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    history: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("epoch"), int | float):
            history.append(entry)
        elif number == len(lines):
            remarks.append(f"The last line of metrics.jsonl (line {number}) is half written and left out.")
        else:
            raise RunError(
                f"{path}: line {number}: not a JSON object with an epoch; remove that line or train again"
            )
    if not history:
        remarks.append("metrics.jsonl is empty: there are no learning curves.")
    return tuple(history)


def _read_status(path: Path, remarks: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        remarks.append("status.json is missing: whether training finished is unknown.")
        return {}
    status = _read_json(path)
    if not isinstance(status, dict):
        raise RunError(f"{path}: holds no object; remove it")
    return status


def _read_config(folder: Path, remarks: list[str]) -> str | None:
    try:
        return (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        remarks.append(
            "config.yaml is missing: the configuration shown is the one that results.json repeats."
        )
        return None


def _read_predictions(folder: Path, remarks: list[str]) -> tuple[Predictions, ...]:
    predictions = []
    for path in sorted(folder.glob("*.npz")):
        try:
            stored = Predictions.load(path)
        except (RunError, EOFError, zipfile.BadZipFile):
            remarks.append(f"predictions/{path.name} cannot be read and is left out.")
            continue
        if stored.probabilities.ndim == 2 and stored.label.shape == stored.probabilities.shape[:1]:
            predictions.append(stored)
        else:
            remarks.append(
                f"predictions/{path.name} has labels and probabilities that do not match; left out."
            )
    return tuple(predictions)


def _read_grids(folder: Path, remarks: list[str]) -> tuple[GridPredictions, ...]:
    grids = []
    for path in sorted(folder.glob("*.npz")):
        try:
            grids.append(GridPredictions.load(path))
        except RunError:
            remarks.append(f"predictions/occlusion/{path.name} cannot be read and is left out.")
    return tuple(grids)


def _read_manifest(run: Run, remarks: list[str]) -> Mapping[str, Any] | None:
    path = run.option("data.path")
    if not path:
        remarks.append("The configuration names no data.path: the data are not described.")
        return None
    try:
        manifest = json.loads(Path(str(path)).with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or "samples" not in manifest:
        remarks.append(f"The manifest beside {path} cannot be read here: the data are not described.")
        return None
    checksums = {predictions.beton_sha256 for predictions in run.predictions}
    if checksums and manifest.get("sha256") not in checksums:
        remarks.append(f"{path} has changed since the predictions were made: its checksum is another.")
    return manifest
