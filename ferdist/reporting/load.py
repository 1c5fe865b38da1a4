"""Run folders as plain records: what a report needs of the files in them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt
import yaml

from ferdist.config import flatten
from ferdist.data.beton import Manifest
from ferdist.errors import DataError, RunError, reason_of
from ferdist.evaluation.predictions import Predictions, side_by_side
from ferdist.evaluation.records import Evaluation, EvaluationKey, Results, read_results
from ferdist.evaluation.robustness import benchmark_scores
from ferdist.io import MIB, read_untrusted
from ferdist.runtime.folder import RunFolder

Floats = npt.NDArray[np.float64]

_SEED: Final = re.compile(r"(fold-\d+-)?seed-\d+")
_FIRST: Final = {"test": 0, "val": 1, "none": 0, "all": 0, "image": 0}


def precedence(key: EvaluationKey) -> tuple[int, ...]:
    """Sorts test before val, one view before several, all samples before subsets, images before sequences."""
    return tuple(_FIRST.get(value, 2) for value in (key.split, key.tta, key.subset, key.unit))


@dataclass(frozen=True, kw_only=True)
class Run(Results):
    """A run's folder, read: its results.json and what is beside it.

    Attributes:
        folder: the run's folder.
        name: what the report calls it; unique among the runs of one report.
        pooled: how many runs of a network it stands for; folder, config.yaml and status are the first one's.
        config_text: config.yaml as it stands; where it is missing, the copy in results.json.
        history: the lines of metrics.jsonl, in their order; empty where there are none.
        status: status.json; empty where there is none.
        predictions: the readable files of predictions/ by their names in it: one for each seed where
            several runs are pooled, else one.
        manifest: of the run's beton; None where it cannot be read here.
        remarks: what was missing or broken, in sentences for the reader.
    """

    folder: Path
    name: str
    config_text: str
    pooled: int = 1
    history: tuple[Mapping[str, Any], ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    predictions: Mapping[str, tuple[Predictions, ...]] = field(default_factory=dict)
    manifest: Manifest | None = None
    remarks: tuple[str, ...] = ()

    def option(self, key: str) -> Any:
        """The value of a dotted configuration key such as ``model.name``, None if it is not set."""
        return flatten(self.config).get(key)

    def curve(self, key: str) -> tuple[Floats, Floats]:
        """A metric such as ``val/loss`` over the run.

        Returns:
            Epochs and values, float64 (P,) each, in the order of the file; a value that is not finite, or too
            large to draw, is NaN.
        """
        lines = [line for line in self.history if key in line]
        values = [value if _is_plottable(value := line[key]) else math.nan for line in lines]
        return np.array([line["epoch"] for line in lines], float), np.array(values, float)

    def epoch_means(self, key: str) -> dict[int, float]:
        """Mean of a metric's values in each epoch, from 1, that has any."""
        at, values = self.curve(key)
        epoch = np.ceil(at)
        return {int(number): float(values[epoch == number].mean()) for number in np.unique(epoch)}

    @property
    def model(self) -> str:
        """Name of the model, as configured."""
        return str(self.option("model.name"))

    @property
    def data(self) -> str:
        """Name of the data that the run was trained on."""
        return self.manifest.name if self.manifest else Path(str(self.option("data.path"))).stem

    def is_own(self, evaluation: Evaluation) -> bool:
        """Whether an evaluation is on the data that the run was trained on."""
        trained_on = (self.environment.get("training") or {}).get("beton_sha256")
        same = evaluation.beton_sha256 in ("", trained_on) or trained_on is None
        return evaluation.data == self.data and same

    @property
    def main(self) -> Evaluation | None:
        """The evaluation that the headline quotes, or None where there is none.

        The run's own data before others, then by `precedence`, then the checkpoint that the configuration
        selects: so that no score is picked for being the highest. Never an occluded one.
        """
        selected = self.option("train.select")
        if selected == "auto":
            selected = "best" if self.option("data.fold") is None else "last"
        return min(
            (one for one in self.evaluations if one.occlusion is None),
            key=lambda one: (not self.is_own(one), *precedence(one), one.checkpoint != selected),
            default=None,
        )


def _is_plottable(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e30


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
    return [
        replace(load_run(path), name=name) for path, name in zip(unique, telling_ends(unique), strict=True)
    ]


def load_run(folder: Path) -> Run:
    """Read one run folder.

    Args:
        folder: a folder that holds results.json. What else there should be (metrics.jsonl, status.json,
            config.yaml, predictions/*.npz, the beton's manifest) is noted in ``Run.remarks`` if it is not.

    Returns:
        The run, named by its folder.

    Raises:
        RunError: if the folder is not a run folder, was never evaluated, or holds a broken file.
    """
    files = RunFolder(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder")
    if not any(path.exists() for path in (files.results, files.config, files.status, files.checkpoints)):
        raise RunError(f"{folder}: not a run folder: it has neither config.yaml, status.json nor checkpoints")
    results = read_results(files.results)
    remarks: list[str] = []
    try:
        config_text = read_untrusted(files.config, MIB).decode("utf-8", errors="replace")
    except OSError:
        config_text = yaml.safe_dump(results.config, sort_keys=False)
        remarks.append(
            "config.yaml is missing or unreadable: the configuration shown is the copy in results.json."
        )
    history = _read_history(files.metrics, remarks)
    status = files.stored_status()
    if not status:
        remarks.append("status.json is missing or unreadable, so it is unknown whether training finished.")
    run = Run(
        **vars(results),
        folder=folder,
        name=folder.name,
        config_text=config_text,
        history=history,
        status=status,
        predictions=_read_predictions(files.predictions, remarks),
    )
    return replace(run, manifest=_read_manifest(run, remarks), remarks=tuple(remarks))


def predictions_of(run: Run, evaluation: Evaluation) -> Predictions | None:
    """The predictions that an evaluation was computed from, those of several seeds side by side.

    None where the file is missing or is about other samples, as it is for a subset.
    """
    seeds = run.predictions.get(evaluation.predictions, ())
    if not seeds or evaluation.beton_sha256 not in ("", seeds[0].beton_sha256):
        return None
    together = side_by_side(seeds)
    return together if len(together.index) == len(seeds) * evaluation.samples else None


def occluded_entries(run: Run) -> list[Evaluation]:
    """The evaluations under occlusion that share one set of conditions, the headline's where it can."""
    found = [one for one in run.evaluations if one.occlusion is not None]
    main = run.main
    if main is not None and any(one.conditions == main.conditions for one in found):
        return [one for one in found if one.conditions == main.conditions]
    return [one for one in found if one.conditions == found[0].conditions]


def robustness_of(run: Run, evaluation: Evaluation) -> Mapping[str, Any] | None:
    """The scores of the benchmark that an evaluation is part of, or None where there are none."""
    same = (one for one in run.evaluations if one.conditions == evaluation.conditions)
    return next(iter(benchmark_scores(same)), None)


def grids_of(run: Run, covered: Sequence[Evaluation]) -> tuple[Predictions, ...]:
    """The predictions of each seed that evaluations under occlusion were computed from.

    Empty where the file is missing or is about other images.
    """
    seeds = run.predictions.get(covered[0].predictions, ()) if covered else ()
    known = set(zip(seeds[0].cells, seeds[0].checksums, strict=True)) if seeds else set()
    same = all((o.cell, o.checksum) in known for one in covered if (o := one.occlusion) is not None)
    return seeds if same else ()


def telling_ends(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of distinct paths that tell them apart, all of as many parts.

    The folder of a seed says nothing without the one that it is in.
    """
    first = 2 if any(_SEED.fullmatch(folder.name) for folder in folders) else 1
    for depth in range(first, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("distinct paths have distinct names")


class _Line(TypedDict):
    """What a line of metrics.jsonl must have."""

    epoch: Annotated[float, msgspec.Meta(ge=0, le=1e6)]


def _read_history(path: Path, remarks: list[str]) -> tuple[Mapping[str, Any], ...]:
    """The lines of metrics.jsonl; the last one may be half written, as a killed run leaves it."""
    try:
        lines = read_untrusted(path).decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        remarks.append("metrics.jsonl is missing, so there are no learning curves.")
        return ()
    except OSError as error:
        remarks.append(f"metrics.jsonl cannot be read ({reason_of(error)}), so there are no learning curves.")
        return ()
    history: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            checked = msgspec.convert(entry, _Line)  # before all that only a mapping can do
            history.append({**entry, **checked})
        except (ValueError, RecursionError):
            if number < len(lines):
                raise RunError(
                    f"{path}: line {number}: not a JSON object with an epoch; remove that line or train again"
                ) from None
            remarks.append(f"The last line of metrics.jsonl (line {number}) is incomplete and left out.")
    if not history:
        remarks.append("metrics.jsonl is empty, so there are no learning curves.")
    return tuple(history)


def _read_predictions(folder: Path, remarks: list[str]) -> dict[str, tuple[Predictions, ...]]:
    found: dict[str, tuple[Predictions, ...]] = {}
    for path in [*sorted(folder.glob("*.npz")), *sorted(folder.glob("*/*.npz"))]:
        name = path.relative_to(folder).as_posix()
        try:
            found[name] = (Predictions.load(path),)
        except RunError:
            remarks.append(f"predictions/{name} cannot be read and is left out.")
    return found


def _read_manifest(run: Run, remarks: list[str]) -> Manifest | None:
    path = Path(str(run.option("data.path")))
    try:
        manifest = Manifest.load(path.with_suffix(".json"))
    except (DataError, ValueError):  # it may be no path at all
        remarks.append(f"The manifest beside {path} cannot be read, so the data are not described.")
        return None
    checksums = {seeds[0].beton_sha256 for seeds in run.predictions.values()}
    if checksums and manifest.sha256 not in checksums:
        remarks.append(f"{path} has changed since the predictions were made: its checksum differs.")
    return manifest
