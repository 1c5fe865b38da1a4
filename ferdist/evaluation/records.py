"""Evaluations as records: what was measured (the key), the scores, and results.json, which holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, TypedDict

import msgspec
import numpy as np
from msgspec import Meta

from ferdist.config import check_plain
from ferdist.errors import RunError, reason_of
from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.metrics import Scores
from ferdist.io import read_json

SCHEMA: Final = 1
RATES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "ece")
OCCLUSION: Final = "occlusion"
"""Folder inside ``predictions/`` for those under the occlusion benchmark."""
CONDITIONS: Final = ("data", "beton_sha256", "split", "fold", "inner_fold", "tta", "checkpoint")
"""What all evaluations of one occlusion benchmark share; also the keys of its summary and comparisons."""
OF_SPLIT: Final = ("all", "no_copies", "majority")
"""Subsets of a split that are no published list's."""

Rate = Annotated[float, Meta(ge=0, le=1)] | None
Count = Annotated[int, Meta(ge=0, lt=2**53)]


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
    covered: Rate = field(default=None, compare=False)
    seen: str = field(default="", compare=False)
    checksum: str = field(default="", compare=False)

    @property
    def cell(self) -> Cell:
        """Of the benchmark."""
        return Cell(self.kind, self.severity, self.fill)


@dataclass(frozen=True)
class Listed:
    """The published list whose faces were scored.

    Attributes:
        data: the data set that it is of: ``ferplus``, ``rafdb`` or ``affectnet``.
        lines, names: how many it has; some appear twice.
        met: how many of the names have a face that was scored.
        labels: by which: ``list``, its own, as for the published scores; or ``data``.
    """

    data: str
    lines: Count
    names: Count
    met: Count
    labels: str


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
        subset: of the split's samples: one of ``OF_SPLIT``, or a published list's name.
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
        parts.append(self._checkpoint_name())
        listed = self.subset.removesuffix("_no_copies")
        parts += [] if listed in OF_SPLIT else [listed]
        return (f"{OCCLUSION}/" if self.occlusion else "") + "-".join(parts) + ".npz"

    def _checkpoint_name(self) -> str:
        """For a path its stem, and what tells it from another ``last.pt`` elsewhere."""
        path = Path(self.checkpoint)
        if self.checkpoint == path.stem:
            return self.checkpoint
        return f"{path.stem}-{hashlib.sha256(self.checkpoint.encode()).hexdigest()[:8]}"


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
        listed: the published list that the subset is of; None for other subsets and where it is not recorded.
        step: of the training, after which the weights were; None for models from elsewhere and where it is
            not recorded.
        precision: what the forward pass was computed in, as of `ScoredModel.precision`; "" where it is not
            recorded.
    """

    predictions: str = ""
    folds: int = 0
    seeds: int = 1
    listed: Listed | None = None
    step: int | None = None
    precision: str = ""

    def to_json(self) -> dict[str, Any]:
        """As in results.json."""
        key = {one.name: getattr(self, one.name) for one in fields(EvaluationKey)}
        occlusion = None if self.occlusion is None else vars(self.occlusion)
        listed = {} if self.listed is None else {"listed": vars(self.listed)}
        scores = Scores.to_json(self)
        step = {} if self.step is None else {"step": self.step}
        return {
            **key,
            "occlusion": occlusion,
            **scores,
            "predictions": self.predictions,
            **listed,
            **step,
            "precision": self.precision,
        }


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


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """An evaluation as results.json has it."""

    data: str
    split: str
    subset: str
    unit: str
    tta: str
    samples: Count
    accuracy: Rate
    balanced_accuracy: Rate
    macro_f1: Rate
    ece: Rate
    per_class_recall: tuple[Rate, ...]
    confusion: tuple[tuple[Count, ...], ...]
    accuracy_ci95: tuple[Rate, Rate] | None = None
    loss: float | None = None
    fold: int | None = None
    inner_fold: int | None = None
    occlusion: Damage | None = None
    listed: Listed | None = None
    # Entries of earlier versions lack some of these.
    beton_sha256: str | None = None
    checkpoint: str = ""
    predictions: str | None = None
    step: Count | None = None
    precision: str = ""


class _Environment(TypedDict, total=False):
    training: dict[str, Any] | None


class _Difference(TypedDict):
    corruption_error: float | None
    difference: float
    difference_ci95: tuple[float, float]


class _Comparison(TypedDict):
    """What is shown of a comparison (`robustness.compare_benchmarks`)."""

    reference: str
    cells: int
    mean_corruption_error: float | None
    difference: float
    difference_ci95: tuple[float, float]
    kinds: dict[str, _Difference]


@dataclass(frozen=True)
class _File:
    classes: tuple[str, ...]
    evaluations: tuple[_Entry, ...]
    config: dict[str, Any]
    environment: _Environment
    test_scorings: Count
    comparisons: tuple[_Comparison, ...] = ()


def read_results(path: Path) -> Results:
    """Read results.json. A rate that is not finite becomes None.

    Raises:
        RunError: if it is missing, is not JSON, has another schema or breaks the contract.
        ConfigError: if its config or environment is nested deeply.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file: run `ferdist evaluate {path.parent}` first") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not readable as JSON ({reason_of(error)}); evaluate the run again") from None
    if isinstance(content, dict) and content.get("schema") != SCHEMA:
        raise RunError(
            f"{path}: schema {content.get('schema')!r} is unknown, this version reads {SCHEMA}: "
            "use the ferdist that wrote it or evaluate the run again"
        )
    try:
        checked = msgspec.convert(content, _File)
        trained_on = str((checked.environment.get("training") or {}).get("beton_sha256", ""))
        evaluations = tuple(_evaluation(one, len(checked.classes), trained_on) for one in checked.evaluations)
    except ValueError as error:
        raise RunError(f"{path}: {error}; evaluate the run again") from None
    check_plain([content["config"], content["environment"]], str(path))
    return Results(
        content, evaluations, checked.classes, checked.config, content["environment"], checked.test_scorings
    )


def _evaluation(entry: _Entry, classes: int, trained_on: str) -> Evaluation:
    if {len(entry.per_class_recall), len(entry.confusion), *map(len, entry.confusion)} != {classes}:
        raise ValueError(
            f"recalls or confusion of an evaluation on {entry.data} are not of {classes} classes"
        )
    low, high = entry.accuracy_ci95 or (None, None)
    keys = {one.name: getattr(entry, one.name) for one in fields(EvaluationKey)}
    keys |= {"beton_sha256": entry.beton_sha256 or ""}
    keys |= {"occlusion": entry.occlusion and replace(entry.occlusion)}  # vars() has the defaults, too
    evaluation = Evaluation(
        **keys,
        **{name: getattr(entry, name) for name in ("samples", "loss", *RATES)},
        interval=None if low is None or high is None else (low, high),
        recall=entry.per_class_recall,
        confusion=np.asarray(entry.confusion, dtype=np.int64).reshape(classes, classes),
        listed=entry.listed,
        step=entry.step,
        precision=entry.precision,
    )
    # It follows from the key in entries that do not name the file.
    own_data = trained_on in ("", evaluation.beton_sha256) or not evaluation.beton_sha256
    return replace(
        evaluation, predictions=entry.predictions or evaluation.predictions_name(own_data=own_data)
    )
