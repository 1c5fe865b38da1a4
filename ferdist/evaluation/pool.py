"""The runs of one config together: their saved predictions by seed, pooled over folds that are held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ferdist.config import Config, differences
from ferdist.data.beton import Beton, labels_of
from ferdist.errors import RunError
from ferdist.evaluation import metrics
from ferdist.evaluation.data import has_copy, key_of, ways
from ferdist.evaluation.model import default_checkpoint
from ferdist.evaluation.predict import cluster_of
from ferdist.evaluation.predictions import Predictions, join
from ferdist.evaluation.records import EvaluationKey
from ferdist.runtime.folder import RunFolder

SCORES: Final = ("accuracy", "balanced_accuracy", "macro_f1")
"""The scores that are given as mean and standard deviation over the seeds."""

SeedFold = tuple[int, int | None]
"""What names a run among those of one config: its seed and the fold that it holds out, if it does."""


@dataclass(frozen=True)
class SavedRun:
    """A finished run."""

    folder: RunFolder
    config: Config

    @property
    def seed_fold(self) -> SeedFold:
        """Its seed, and the fold that it is scored on."""
        return self.config.seed, self.config.data.holdout.scored_fold

    def key(self, beton: Beton, split: str, tta: str) -> EvaluationKey:
        """Of the run's evaluation on a split of its data."""
        return key_of(beton, split, self.config.data.holdout, tta, default_checkpoint(self.config))

    def path(self, beton: Beton, split: str, tta: str) -> Path:
        """Where the run's predictions are, or would be."""
        return self.folder.predictions / self.key(beton, split, tta).predictions_name(own_data=True)

    def predictions(self, beton: Beton, split: str, tta: str) -> Predictions:
        """The saved predictions for a split, which is the fold's samples where a fold is held out.

        Raises:
            RunError: if they are missing, or not one for each sample.
        """
        path, data = self.path(beton, split, tta), self.config.data
        found = Predictions.load(path)
        expected = labels_of(beton, data.labels).scorable(beton.indices(split, data.holdout))
        if not np.array_equal(found.index, expected) or found.beton_sha256 != beton.manifest.sha256:
            _, fold = self.seed_fold
            part = split if fold is None else f"fold {fold}"
            raise RunError(f"{path}: not the predictions for {part} of {beton.path}: train it again")
        return found


@dataclass(frozen=True, kw_only=True)
class Pool(EvaluationKey):
    """What the runs of one config say of the same samples, pooled over the folds that are held out.

    Attributes:
        parts: the predictions of each run.
        seed_runs: how many runs a seed has when it is complete.
        scores: of the complete seeds, see `over_seeds`; None where no seed is complete.
    """

    parts: Mapping[SeedFold, Predictions] = field(compare=False)
    seed_runs: int
    scores: dict[str, Any] | None = field(default=None, compare=False)

    def by_seed(self) -> dict[int, list[Predictions]]:
        """The predictions of each seed's runs."""
        seeds: dict[int, list[Predictions]] = {}
        for (seed, _), part in self.parts.items():
            seeds.setdefault(seed, []).append(part)
        return seeds

    def complete(self) -> dict[int, Predictions]:
        """The pooled predictions of each seed that has all its runs."""
        pooled = {seed: join(parts) for seed, parts in self.by_seed().items() if len(parts) == self.seed_runs}
        return {seed: whole for seed, whole in pooled.items() if len(whole.index)}


def shared_config(config: Config) -> Config:
    """A run's config without what differs between the runs of one config: seed, folder and held-out fold."""
    inner = config.data.inner_fold is not None
    data = replace(config.data, inner_fold=None) if inner else replace(config.data, fold=None)
    return replace(config, data=data, seed=0, run_dir="")


def folds_of(beton: Beton, config: Config) -> list[int]:
    """The folds that runs of a config hold out in turn; none where they go by the data's own splits."""
    fold, inner_fold = config.data.fold, config.data.inner_fold
    if fold is None:
        return []
    return [
        number for number in sorted(map(int, beton.manifest.folds)) if inner_fold is None or number != fold
    ]


def read_runs(runs: Sequence[Path], beton: Beton) -> list[SavedRun]:
    """Finished runs in the order of seeds and folds.

    Raises:
        RunError: if two have the same fold and seed, or they differ in config or beton.
    """
    read: dict[SeedFold, SavedRun] = {}
    for path in runs:
        folder = RunFolder(path)
        run = SavedRun(folder, folder.stored_config())
        if folder.stored_environment().get("beton_sha256") != beton.manifest.sha256:
            raise RunError(f"{path}: this run was not trained on {beton.path}")
        known = read.setdefault(run.seed_fold, run)
        if known is not run:
            seed, fold = run.seed_fold
            part = "the run" if fold is None else f"fold {fold}"
            raise RunError(f"{path}: {part} with seed {seed} is also in {known.folder.path}")
        first = next(iter(read.values()))
        different = differences(shared_config(first.config), shared_config(run.config))
        if (first.seed_fold[1] is None) != (run.seed_fold[1] is None):
            different.append("only one of them holds out a fold")
        if different:
            raise RunError(
                f"{path}: its config differs from that of {first.folder.path} ({'; '.join(different)})"
            )
    return [run for _, run in sorted(read.items(), key=lambda item: (item[0][0], item[0][1] or 0))]


def pools(runs: Sequence[SavedRun], beton: Beton, split: str, tta: str) -> Iterator[Pool]:
    """What runs of one config say of a split, in all `data.ways`; without copies only where there are any.

    Raises:
        RunError: if a run has no predictions for it.
    """
    if not runs:
        return
    together = replace(runs[0].key(beton, split, tta), fold=None, inner_fold=None)
    parts: dict[SeedFold, dict[tuple[str, str], Predictions]] = {}
    copies = False
    for run in runs:
        whole = run.predictions(beton, split, tta)
        copied = has_copy(beton, whole.index, split, run.config.data.holdout)
        copies |= bool(copied.any())
        parts[run.seed_fold] = ways(whole, beton, copied)
    for subset, unit in parts[runs[0].seed_fold]:
        if (subset == "all" or copies) and all((subset, unit) in part for part in parts.values()):
            pool = Pool(
                **vars(replace(together, subset=subset, unit=unit)),
                parts={number: part[subset, unit] for number, part in parts.items()},
                seed_runs=len(folds_of(beton, runs[0].config)) or 1,
            )
            yield replace(pool, scores=over_seeds(pool.complete(), beton))


def over_seeds(seeds: Mapping[int, Predictions], beton: Beton) -> dict[str, Any] | None:
    """Scores of several seeds on the same samples.

    Returns:
        seeds, samples; mean and sd (None for one seed) of each of ``SCORES``; and accuracy_ci95, the 95 %
        interval of the mean accuracy, resampling subjects or groups of copies. None where there is no seed.
    """
    if not seeds:
        return None
    scores = [metrics.quick_score(predictions) for predictions in seeds.values()]
    right: npt.NDArray[np.float64] = np.mean([p.correct() for p in seeds.values()], axis=0)
    interval = metrics.accuracy_interval(right, cluster_of(beton, next(iter(seeds.values())).index))
    return {
        "seeds": list(seeds),
        "samples": len(right),
        **{name: _spread([score[name] for score in scores]) for name in SCORES},
        "accuracy_ci95": list(interval),
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }
