"""Evaluations as records: what was measured (the key), the scores, and results.json, which holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from ferdist.data.record import Integers
from ferdist.errors import RunError
from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.metrics import Scores

SCHEMA: Final = 1
RATES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "ece")
OCCLUSION: Final = "occlusion"
"""Folder inside ``predictions/`` for those under the occlusion benchmark."""
CONDITIONS: Final = ("data", "beton_sha256", "split", "fold", "inner_fold", "tta", "checkpoint")
"""What all evaluations of one occlusion benchmark share; also the keys of its summary and comparisons."""

T = TypeVar("T")


@dataclass(frozen=True)
class Damage:
    """What covered the face in an evaluation: a cell of the benchmark and what is known of it.

    Attributes:
        kind, severity, fill: as of `benchmark.Cell`.
        covered: fraction of the image, 0 to 1; None where nothing is covered or the fraction is unknown.
        seen: whether training showed such occlusion: ``seen``, ``unseen size`` or ``unseen kind``; "" where
            it is not recorded.
        checksum: of the images; "" where it is not recorded.
    """

    kind: str
    severity: int
    fill: str
    covered: float | None = field(default=None, compare=False)
    seen: str = field(default="", compare=False)
    checksum: str = field(default="", compare=False)

    @property
    def cell(self) -> Cell:
        """Of the benchmark."""
        return Cell(self.kind, self.severity, self.fill)


@dataclass(frozen=True, kw_only=True)
class EvaluationKey:
    """What makes an evaluation the same as another: doing it again replaces the record.

    Attributes:
        data: name of the data that were scored.
        beton_sha256: theirs; "" where it is not recorded.
        split: of the data.
        fold, inner_fold: that the run held out, if it did.
        tta: views of each image.
        checkpoint: ``best``, ``last`` or a path.
        occlusion: what covered the faces; only its cell counts in comparisons.
        subset: of the split's samples: ``all``, ``no_copies``, or a published list's name.
        unit: ``image`` or ``sequence``.
    """

    data: str
    beton_sha256: str
    split: str
    fold: int | None = None
    inner_fold: int | None = None
    tta: str = "none"
    checkpoint: str
    occlusion: Damage | None = None
    subset: str = "all"
    unit: str = "image"

    @property
    def key(self) -> EvaluationKey:
        """The key alone, of a record."""
        return EvaluationKey(**{one.name: getattr(self, one.name) for one in fields(EvaluationKey)})

    @property
    def conditions(self) -> EvaluationKey:
        """The key of the same measurement of uncovered faces."""
        return replace(self.key, occlusion=None)

    def predictions_name(self, *, own_data: bool) -> str:
        """The file in a run's ``predictions/`` that holds what this is computed from.

        Args:
            own_data: whether the run was trained on these data.
        """
        parts = [self.data if own_data else f"{self.data}-{self.beton_sha256[:8]}", self.split]
        parts += [] if self.fold is None else [f"fold{self.fold}"]
        parts += [] if self.inner_fold is None else [f"inner{self.inner_fold}"]
        parts += [] if self.tta == "none" else [self.tta]
        parts.append(Path(self.checkpoint).stem)
        listed = self.subset.removesuffix("no_copies").removesuffix("_")
        parts += [] if listed in ("", "all") else [listed]
        return (f"{OCCLUSION}/" if self.occlusion else "") + "-".join(parts) + ".npz"


def conditions_of(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``CONDITIONS`` among those of a key, or of a summary or comparison of results.json."""
    return {name: mapping.get(name) for name in CONDITIONS}


@dataclass(frozen=True, kw_only=True)
class Evaluation(EvaluationKey, Scores):
    """One entry of results.json: what was measured, and its scores.

    Attributes:
        predictions: the file in the run's ``predictions/`` that it is computed from.
        folds: how many held-out folds are pooled in it; 0 where it is of one split or fold.
        seeds: over how many seeds the rates are means; the confusion matrix counts each sample once for each.
    """

    predictions: str = ""
    folds: int = 0
    seeds: int = 1

    def to_json(self) -> dict[str, Any]:
        """As in results.json."""
        key = {one.name: getattr(self, one.name) for one in fields(EvaluationKey)}
        occlusion = None if self.occlusion is None else vars(self.occlusion)
        return {**key, "occlusion": occlusion, **Scores.to_json(self), "predictions": self.predictions}


@dataclass(frozen=True)
class Results:
    """results.json, checked.

    Attributes:
        content: all of it, as it stands in the file.
        evaluations: its entries, in their order.
        classes: class names in label order.
        config: the run's, nested.
        environment: versions, hardware, date and git revision.
        test_scorings: how often the test split was scored.
    """

    content: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...]
    classes: tuple[str, ...]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    test_scorings: int


def read_results(path: Path) -> Results:
    """Read results.json. None and NaN among the rates become None.

    Raises:
        RunError: if it is missing, is not JSON, has another schema or breaks the contract.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise _fault(path, "not a JSON object")
    if content.get("schema") != SCHEMA:
        raise RunError(
            f"{path}: schema {content.get('schema')!r} is unknown, this version reads {SCHEMA}: "
            "use the ferdist that wrote it or evaluate the run again"
        )
    names = _typed(content, "classes", list, path)
    environment = _typed(content, "environment", dict, path)
    trained_on = str((environment.get("training") or {}).get("beton_sha256", ""))
    return Results(
        content,
        tuple(
            _evaluation(entry, len(names), trained_on, f"{path}: evaluations[{number}]")
            for number, entry in enumerate(_typed(content, "evaluations", list, path))
        ),
        tuple(map(str, names)),
        _typed(content, "config", dict, path),
        environment,
        _typed(content, "test_scorings", int, path),
    )


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        RunError: if it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file: run `ferdist evaluate {path.parent}` first") from None
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: line {error.lineno}: invalid JSON ({error.msg}); write it again") from None
    except UnicodeDecodeError:
        raise RunError(f"{path}: not a text file in UTF-8; write it again") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None


def _evaluation(entry: Any, classes: int, trained_on: str, where: str) -> Evaluation:
    if not isinstance(entry, dict):
        raise _fault(where, "not a JSON object")
    recall = _typed(entry, "per_class_recall", list, where)
    if len(recall) != classes:
        raise _fault(where, f"{len(recall)} recalls for {classes} classes")
    values: dict[str, Any] = {
        **{name: _typed(entry, name, str, where) for name in ("data", "split", "subset", "unit", "tta")},
        **{name: _fraction(_typed(entry, name, object, where), f"{where}: {name}") for name in RATES},
    }
    for name, kind in (("fold", int), ("inner_fold", int), ("loss", float)):
        values[name] = None if entry.get(name) is None else _typed(entry, name, kind, where)
    evaluation = Evaluation(
        **values,
        beton_sha256=str(entry.get("beton_sha256") or ""),
        checkpoint=str(entry.get("checkpoint", "")),
        occlusion=_occlusion(entry, where),
        samples=_typed(entry, "samples", int, where),
        interval=_interval(entry, where),
        recall=tuple(_fraction(value, f"{where}: per_class_recall") for value in recall),
        confusion=_confusion(entry, classes, where),
    )
    # Entries of versions that did not name the file: it follows from the key.
    own_data = trained_on in ("", evaluation.beton_sha256) or not evaluation.beton_sha256
    named = entry.get("predictions") or evaluation.predictions_name(own_data=own_data)
    return replace(evaluation, predictions=str(named))


def _fault(where: Path | str, fault: str) -> RunError:
    return RunError(f"{where}: {fault}; evaluate the run again")


def _typed(mapping: Mapping[str, Any], key: str, kind: type[T], where: Path | str) -> T:
    if key not in mapping:
        raise _fault(where, f"{key!r} is missing")
    value = mapping[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _fault(where, f"{key!r} is {type(value).__name__}, not {kind.__name__}")
    return value


def _confusion(entry: Mapping[str, Any], classes: int, where: str) -> Integers:
    rows = _typed(entry, "confusion", list, where)
    if len(rows) != classes or any(not isinstance(row, list) or len(row) != classes for row in rows):
        raise _fault(where, f"'confusion' is not {classes} rows of {classes} counts")
    if any(type(count) is not int or count < 0 for row in rows for count in row):
        raise _fault(where, "'confusion' holds something other than counts")
    return np.asarray(rows, dtype=np.int64).reshape(classes, classes)


def _occlusion(entry: Mapping[str, Any], where: str) -> Damage | None:
    if entry.get("occlusion") is None:
        return None
    occlusion, where = _typed(entry, "occlusion", dict, where), f"{where}: occlusion"
    return Damage(
        kind=_typed(occlusion, "kind", str, where),
        severity=_typed(occlusion, "severity", int, where),
        fill=str(occlusion.get("fill")),
        covered=_fraction(occlusion.get("covered"), f"{where}: covered"),
        seen=str(occlusion.get("seen", "")),
        checksum=str(occlusion.get("checksum", "")),
    )


def _interval(entry: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    bounds = entry.get("accuracy_ci95")
    if bounds is None:
        return None
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise _fault(where, "'accuracy_ci95' is not a pair of bounds")
    low, high = (_fraction(bound, f"{where}: accuracy_ci95") for bound in bounds)
    return None if low is None or high is None else (low, high)


def _fraction(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise _fault(where, f"{value!r} is not a fraction from 0 to 1")
    return float(value)
