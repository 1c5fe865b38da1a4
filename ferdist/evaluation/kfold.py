"""A k-fold experiment in scores: a pure function of the run folders and the beton."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ferdist.config import Config, to_dict
from ferdist.data.beton import Beton, labels_of
from ferdist.errors import RunError
from ferdist.evaluation import metrics
from ferdist.evaluation.model import default_checkpoint
from ferdist.evaluation.pool import SCORES, Pool, SeedFold, folds_of, pools, read_runs
from ferdist.evaluation.predict import cluster_of
from ferdist.evaluation.predictions import Predictions, join

SCHEMA: Final = 1


def kfold_summary(runs: Sequence[Path], beton: Beton) -> dict[str, Any]:
    """The scores of a k-fold experiment, from the saved predictions.

    Every sample is predicted by the model that has not seen its fold; a seed's predictions are pooled over
    the folds and scored once.

    Args:
        runs: finished runs, each with one fold held out.
        beton: that they were trained on.

    Returns:
        What the runs share (``inner_of`` is the fold that is left out where these are inner folds,
        ``interval_over`` what the intervals resample) and ``evaluations``, one of each `pool.Pool`:
        ``per_fold``; ``pooled``, for each seed the scores of `metrics.score`; and ``over_seeds``, see
        `pool.over_seeds`, of the seeds that have all folds.

    Raises:
        RunError: if two runs have the same fold and seed, or differ in config or beton, or a run has no
            predictions for its fold.
    """
    read = read_runs(runs, beton)
    for run in read:
        if run.config.data.fold is None:
            raise RunError(
                f"{run.folder.path}: this run does not hold out a fold: train it with data.fold=0 and so on"
            )
    subjects = beton.subject >= 0
    held = np.unique(np.column_stack([beton.subject, beton.fold])[subjects & (beton.fold >= 0)], axis=0)
    config = read[0].config if read else None
    views = ("none", config.train.tta) if config else ()
    return {
        "schema": SCHEMA,
        "data": beton.manifest.name,
        "beton_sha256": beton.manifest.sha256,
        "classes": list(labels_of(beton, config.data.labels).classes) if config else beton.manifest.classes,
        "folds": folds_of(beton, config) if config else sorted(map(int, beton.manifest.folds)),
        "inner_of": config.data.fold if config and config.data.inner_fold is not None else None,
        "seeds": sorted({run.config.seed for run in read}),
        "checkpoint": default_checkpoint(config) if config else None,
        "config": _without_places(config) if config else None,
        "interval_over": "subject" if subjects[beton.fold >= 0].all() else "copy_group",
        "subjects_in_several_folds": int((np.unique(held[:, 0], return_counts=True)[1] > 1).sum()),
        "evaluations": [
            {"tta": tta, "subset": pool.subset, "unit": pool.unit, **_scores(pool, beton)}
            for tta in dict.fromkeys(views)
            for pool in pools(read, beton, "val", tta)
        ],
    }


def _without_places(config: Config) -> dict[str, Any]:
    values = to_dict(config)
    del values["seed"], values["run_dir"], values["data"]["fold"]
    return values


def _scores(pool: Pool, beton: Beton) -> dict[str, Any]:
    """Per fold, pooled per seed, and over the seeds."""
    pooled = []
    for seed, parts in pool.by_seed().items():
        together = join(parts)
        if len(together.index):  # else every sample has a copy in another fold
            scores = metrics.score(together, cluster_of(beton, together.index)).to_json()
            complete = len(parts) == pool.seed_runs
            pooled.append({"seed": seed, "folds": len(parts), "complete": complete, **scores})
    return {
        "per_fold": [_fold_scores(key, part, beton) for key, part in pool.parts.items() if len(part.index)],
        "pooled": pooled,
        "over_seeds": pool.scores,
    }


def _fold_scores(key: SeedFold, part: Predictions, beton: Beton) -> dict[str, Any]:
    subject = np.unique(beton.subject[part.index])
    scores = metrics.quick_score(part)
    return {
        "fold": key[1],
        "seed": key[0],
        "samples": len(part.index),
        "subjects": len(subject) if (subject >= 0).all() else None,
        **{name: scores[name] for name in SCORES},
    }
