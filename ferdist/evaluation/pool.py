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
from ferdist.data.namelists import SUBSETS
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

    def key(self, beton: Beton, split: str, tta: str, part: str = "all") -> EvaluationKey:
        """Of the run's evaluation on a split of its data, or on a published list's part of it."""
        checkpoint = default_checkpoint(self.config)
        return replace(key_of(beton, split, self.config.data.holdout, tta, checkpoint), subset=part)

    def path(self, beton: Beton, split: str, tta: str, part: str = "all") -> Path:
        """Where the run's predictions are, or would be."""
        return self.folder.predictions / self.key(beton, split, tta, part).predictions_name(own_data=True)

    def predictions(self, beton: Beton, split: str, tta: str, part: str = "all") -> Predictions:
        """The saved predictions for a split, which is the fold's samples where a fold is held out.

        Raises:
            RunError: if they are missing, or not one for each sample; of a list, if one is for another split.
        """
        path, data = self.path(beton, split, tta, part), self.config.data
        found = Predictions.load(path)
        expected = beton.indices(split, data.holdout)
        if part == "all":
            expected = labels_of(beton, data.labels).scorable(expected)
            fitting = np.array_equal(found.index, expected)
        else:
            fitting = bool(np.isin(found.index, expected).all())
        if not fitting or found.beton_sha256 != beton.manifest.sha256:
            _, fold = self.seed_fold
            where = split if fold is None else f"fold {fold}"
            raise RunError(f"{path}: not the predictions for {where} of {beton.path}: train it again")
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

    Faces of a published list are pooled over the runs that were evaluated with it.

    Raises:
        RunError: if a run has no predictions for the split, or a list was not the same for all.
    """
    for part in ("all", *SUBSETS):
        scored = [run for run in runs if part == "all" or run.path(beton, split, tta, part).exists()]
        if scored:
            yield from _pools_of(scored, beton, split, tta, part)


def _pools_of(runs: Sequence[SavedRun], beton: Beton, split: str, tta: str, part: str) -> Iterator[Pool]:
    together = replace(runs[0].key(beton, split, tta), fold=None, inner_fold=None)
    found: dict[SeedFold, dict[tuple[str, str], Predictions]] = {}
    copies = False
    for run in runs:
        whole = run.predictions(beton, split, tta, part)
        listed = found.get(runs[0].seed_fold, {}).get((part, "image"), whole)
        if part != "all" and not np.array_equal(whole.index, listed.index):
            raise RunError(
                f"{run.path(beton, split, tta, part)}: of {len(whole.index)} faces, "
                f"{runs[0].path(beton, split, tta, part)} of {len(listed.index)}: "
                "evaluate both with the same list"
            )
        copied = has_copy(beton, whole.index, split, run.config.data.holdout)
        copies |= bool(copied.any())
        agreed = labels_of(beton, run.config.data.labels).agreed
        found[run.seed_fold] = ways(whole, beton, copied, agreed, part=part)
    for subset, unit in found[runs[0].seed_fold]:
        if subset.endswith("no_copies") and not copies:
            continue
        if all((subset, unit) in of_run for of_run in found.values()):
            pool = Pool(
                **vars(replace(together, subset=subset, unit=unit)),
                parts={number: of_run[subset, unit] for number, of_run in found.items()},
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
