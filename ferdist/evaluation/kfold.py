"""A k-fold experiment in figures: a pure function of the run folders and the beton."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ferdist.beton import Beton, labels_of
from ferdist.config import Config, differences, to_dict
from ferdist.datasets.record import Integers
from ferdist.errors import RunError
from ferdist.evaluation import metrics
from ferdist.evaluation.evaluate import has_copy, predictions_name
from ferdist.evaluation.metrics import Predictions
from ferdist.evaluation.model import default_checkpoint
from ferdist.training.folder import RunFolder

SCHEMA: Final = 1
FIGURES: Final = ("accuracy", "balanced_accuracy", "macro_f1")
"""The figures that are given per fold and as mean and standard deviation over the seeds."""

SeedFold = tuple[int, int]
"""What names a run of an experiment: its seed and the fold that it holds out."""


@dataclass(frozen=True)
class FoldRun:
    """A finished run with a fold held out, and what it says of that fold's samples."""

    folder: RunFolder
    config: Config
    fold: int
    seed: int

    def predictions(self, beton: Beton, tta: str) -> Predictions:
        """The saved predictions for the fold.

        Raises:
            RunError: if they are missing, or not one for each sample of the fold.
        """
        key = {
            "data": beton.manifest.name,
            "split": "val",
            "fold": self.fold,
            "inner_fold": None,
            "tta": tta,
            "occlusion": None,
            "checkpoint": default_checkpoint(self.config),
        }
        path = self.folder.predictions / predictions_name(key)
        found = Predictions.load(path)
        labels = labels_of(beton, self.config.data.labels)
        expected = labels.scorable(beton.indices("val", self.fold))
        if not np.array_equal(found.index, expected) or found.beton_sha256 != beton.manifest.sha256:
            raise RunError(
                f"{path}: not the predictions for fold {self.fold} of {beton.path}: train it again"
            )
        return found


def shared_config(config: Config) -> Config:
    """A run's config without what differs between the runs of an experiment: fold, seed and folder."""
    return replace(config, data=replace(config.data, fold=None), seed=0, run_dir="")


def summarise(runs: Sequence[Path], beton: Beton) -> dict[str, Any]:
    """The figures of a k-fold experiment, from the saved predictions.

    Every sample is predicted by the model that has not seen its fold; a seed's predictions are pooled over
    the folds and scored once. The figures of a seed count for mean and deviation only if all folds are there.

    Args:
        runs: finished runs, each with one fold held out.
        beton: that they were trained on.

    Returns:
        ``schema, data, beton_sha256, classes, folds, seeds, checkpoint, config`` (what all runs share),
        ``interval_over`` (subject or copy_group: what the intervals resample), ``subjects_in_several_folds``
        and ``evaluations``: one entry per ``tta``, ``subset`` (all; no_copies where there are copies) and
        ``unit`` (image; sequence where there are sequences), with

        - ``per_fold``: fold, seed, samples, subjects, accuracy, balanced_accuracy, macro_f1;
        - ``pooled``: per seed the figures of ``metrics.score``, with seed, folds and complete;
        - ``over_seeds``: seeds, mean and sd (None for one seed) of the figures, and accuracy_ci95, the 95 %
          interval of the mean accuracy, resampling subjects; None where no seed is complete.

    Raises:
        RunError: if two runs have the same fold and seed, or differ in config or beton, or a run has no
            predictions for its fold.
    """
    read = _read(runs, beton)
    subjects = beton.subject >= 0
    held = np.unique(np.column_stack([beton.subject, beton.fold])[subjects & (beton.fold >= 0)], axis=0)
    config = read[0].config if read else None
    views = ("none", config.train.tta) if config else ()
    return {
        "schema": SCHEMA,
        "data": beton.manifest.name,
        "beton_sha256": beton.manifest.sha256,
        "classes": list(labels_of(beton, config.data.labels).classes) if config else beton.manifest.classes,
        "folds": sorted(map(int, beton.manifest.folds)),
        "seeds": sorted({run.seed for run in read}),
        "checkpoint": default_checkpoint(config) if config else None,
        "config": _without_places(config) if config else None,
        "interval_over": "subject" if subjects[beton.fold >= 0].all() else "copy_group",
        "subjects_in_several_folds": int((np.unique(held[:, 0], return_counts=True)[1] > 1).sum()),
        "evaluations": [entry for tta in dict.fromkeys(views) for entry in _evaluations(read, beton, tta)],
    }


def _read(runs: Sequence[Path], beton: Beton) -> list[FoldRun]:
    """The runs in the order of seeds and folds; all of one experiment."""
    read: dict[tuple[int, int], FoldRun] = {}
    for path in runs:
        folder = RunFolder(path)
        config = folder.stored_config()
        fold = config.data.fold
        if fold is None:
            raise RunError(f"{path}: this run holds no fold out: train it with data.fold=0 and so on")
        if config.data.inner_fold is not None:
            raise RunError(f"{path}: this run was scored on an inner fold: it has no prediction for fold {fold}")
        if folder.stored_environment().get("beton_sha256") != beton.manifest.sha256:
            raise RunError(f"{path}: this run was trained on other data than {beton.path}")
        run = FoldRun(folder, config, fold, config.seed)
        known = read.setdefault((run.seed, fold), run)
        if known is not run:
            raise RunError(f"{path}: fold {fold} with seed {run.seed} is in {known.folder.path} too")
        first = next(iter(read.values()))
        if different := differences(shared_config(first.config), shared_config(config)):
            raise RunError(f"{path}: its config is not that of {first.folder.path} ({'; '.join(different)})")
    return [read[key] for key in sorted(read)]


def _without_places(config: Config) -> dict[str, Any]:
    values = to_dict(config)
    del values["seed"], values["run_dir"], values["data"]["fold"]
    return values


def _evaluations(runs: Sequence[FoldRun], beton: Beton, tta: str) -> Iterator[dict[str, Any]]:
    whole = {(run.seed, run.fold): run.predictions(beton, tta) for run in runs}
    copied = {key: has_copy(beton, part.index, "val", key[1]) for key, part in whole.items()}
    subsets = {"all": whole}
    if any(flags.any() for flags in copied.values()):
        subsets["no_copies"] = {key: part.select(~copied[key]) for key, part in whole.items()}
    sequences = all((beton.sequence[part.index] >= 0).all() for part in whole.values())
    for subset, parts in subsets.items():
        yield {"tta": tta, "subset": subset, "unit": "image", **_figures(parts, beton)}
        if sequences:
            joined = {
                key: metrics.by_sequence(part, beton.sequence[part.index]) for key, part in parts.items()
            }
            yield {"tta": tta, "subset": subset, "unit": "sequence", **_figures(joined, beton)}


def _figures(parts: Mapping[SeedFold, Predictions], beton: Beton) -> dict[str, Any]:
    """Per fold, pooled per seed, and over the seeds."""
    pooled, complete = [], []
    for seed in sorted({seed for seed, _ in parts}):
        of_seed = [part for key, part in parts.items() if key[0] == seed]
        together = _pool(of_seed)
        if not len(together.index):  # every sample has a copy in another fold
            continue
        whole = len(of_seed) == len(beton.manifest.folds)
        scores = metrics.score(together, _cluster(beton, together.index))
        pooled.append({"seed": seed, "folds": len(of_seed), "complete": whole, **scores})
        if whole:
            complete.append(together)
    return {
        "per_fold": [_fold_figures(key, part, beton) for key, part in parts.items() if len(part.index)],
        "pooled": pooled,
        "over_seeds": _over_seeds([p for p in pooled if p["complete"]], complete, beton),
    }


def _fold_figures(key: SeedFold, part: Predictions, beton: Beton) -> dict[str, Any]:
    subject = np.unique(beton.subject[part.index])
    scores = metrics.quick_score(part)
    return {
        "fold": key[1],
        "seed": key[0],
        "samples": len(part.index),
        "subjects": len(subject) if (subject >= 0).all() else None,
        **{name: scores[name] for name in FIGURES},
    }


def _over_seeds(
    pooled: Sequence[dict[str, Any]], predictions: Sequence[Predictions], beton: Beton
) -> dict[str, Any] | None:
    if not predictions:
        return None

    def spread(name: str) -> dict[str, float | None]:
        values = [entry[name] for entry in pooled]
        return {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        }

    hits = np.stack([p.probabilities.argmax(1) == p.label for p in predictions])
    right: npt.NDArray[np.float64] = hits.mean(axis=0)
    interval = metrics.accuracy_interval(right, _cluster(beton, predictions[0].index))
    return {
        "seeds": [entry["seed"] for entry in pooled],
        "samples": len(right),
        **{name: spread(name) for name in FIGURES},
        "accuracy_ci95": list(interval),
    }


def _pool(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several folds as one, by ascending index."""
    index = np.concatenate([part.index for part in parts])
    order = np.argsort(index)
    return Predictions(
        index[order],
        np.concatenate([part.label for part in parts])[order],
        np.concatenate([part.probabilities for part in parts])[order],
        parts[0].beton_sha256,
    )


def _cluster(beton: Beton, index: Integers) -> Integers:
    """What the intervals resample: subjects, or groups of copies where not every sample has a subject."""
    known = (beton.subject[beton.fold >= 0] >= 0).all()
    return (beton.subject if known else beton.copy_group)[index]
