"""All runs of a network as one record, so that a report shows them as it shows a single run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ferdist.errors import RunError
from ferdist.evaluation import metrics
from ferdist.evaluation.metrics import Predictions
from ferdist.evaluation.model import default_checkpoint
from ferdist.evaluation.pool import join
from ferdist.evaluation.robustness import GridPredictions, correct_share, pool, summarise
from ferdist.reporting.load import Evaluation, Run, grids_of, load_run, occluded_entries
from ferdist.reporting.networks import Measurement, Network

_CURVES = ("train/loss", "train/accuracy", "train/lr", "val/loss", "val/accuracy", "val/balanced_accuracy")


def pooled_run(network: Network) -> Run | None:
    """The finished runs of a network as one; None where there is none.

    Predictions are pooled over the folds and put side by side over the seeds, so a confusion matrix counts
    each sample once per seed. Learning curves are means over the runs, by epoch.
    """
    runs = [load_run(run.folder.path) for run in network.runs]
    if not runs:
        return None
    remarks = dict.fromkeys(remark for run in runs for remark in run.remarks)
    if network.open_runs:
        total = len(runs) + len(network.open_runs)
        remarks[f"{len(network.open_runs)} of {total} runs are not finished and left out."] = None
    if len(runs) == 1 and not network.folds:
        return replace(runs[0], name=network.name, remarks=tuple(remarks))
    pooled = [_evaluation(network, measured) for measured in network.measured]
    plain = tuple(evaluation for evaluation, _ in pooled)
    covered = _covered(runs, network, plain)
    if covered.remark:
        remarks[covered.remark] = None
    return replace(
        runs[0],
        name=network.name,
        config=_shared(runs),
        evaluations=(*plain, *covered.evaluations),
        robustness=covered.robustness,
        grids=covered.grids,
        predictions=tuple(predictions for _, predictions in pooled),
        history=tuple(_mean_history(runs)),
        test_scorings=network.test_scorings,
        remarks=tuple(remarks),
    )


def _evaluation(network: Network, measured: Measurement) -> tuple[Evaluation, Predictions]:
    """A measurement as an evaluation, with the predictions that give its figures again."""
    pool, figures = measured.pool, measured.figures
    seeds = list(pool.complete().values()) or [join(parts) for parts in pool.by_seed().values()]
    together = Predictions(
        np.concatenate([one.index for one in seeds]),
        np.concatenate([one.label for one in seeds]),
        np.concatenate([one.probabilities for one in seeds]),
        seeds[0].beton_sha256,
    )
    scores = metrics.quick_score(together)
    confusion = metrics.confusion(together)
    evaluation = Evaluation(
        data=network.data,
        split=pool.split,
        fold=None,
        inner_fold=None,
        subset=pool.subset,
        unit=pool.unit,
        tta=pool.tta,
        checkpoint=default_checkpoint(network.runs[0].config),
        occlusion=None,
        samples=len(together.index) // len(seeds),
        accuracy=scores["accuracy"],
        interval=None if figures is None else tuple(figures["accuracy_ci95"]),
        balanced_accuracy=scores["balanced_accuracy"],
        macro_f1=scores["macro_f1"],
        ece=metrics.expected_calibration_error(together.probabilities, together.label),
        recall=_recall(confusion),
        confusion=confusion,
        folds=len(pool.by_seed()[next(iter(pool.by_seed()))]) if network.folds else 0,
        seeds=len(seeds),
    )
    return evaluation, together


@dataclass(frozen=True)
class _Covered:
    """The occlusion benchmark over all runs: what a `Run` holds of it."""

    evaluations: tuple[Evaluation, ...] = ()
    robustness: tuple[Mapping[str, Any], ...] = ()
    grids: tuple[GridPredictions, ...] = ()
    remark: str = ""


def _covered(runs: Sequence[Run], network: Network, plain: Sequence[Evaluation]) -> _Covered:
    """The benchmark pooled over the folds and averaged over the seeds; nothing where a run lacks it."""
    parts = [(run, entries, grids_of(run, entries)) for run in runs if (entries := occluded_entries(run))]
    if not parts:
        return _Covered()
    whole = [part for part in parts if part[2]]
    if len(whole) < len(runs):
        return _Covered(
            remark=f"{len(whole)} of {len(runs)} runs have predictions under occlusion: they are not pooled."
        )
    by_seed: dict[Any, list[GridPredictions]] = {}
    for run, _, grids in whole:
        by_seed.setdefault(run.option("seed"), []).extend(grids)
    try:
        pooled = [pool(grids) for grids in by_seed.values()]
        most = max(len(grid.index) for grid in pooled)
        seeds = tuple(grid for grid in pooled if len(grid.index) == most)
        share = correct_share(seeds)
    except RunError as error:
        return _Covered(remark=f"The runs' figures under occlusion are not pooled: {error}.")
    intervals = metrics.accuracy_intervals(share, seeds[0].cluster)
    evaluations = []
    for entry in whole[0][1]:
        damage = entry.occlusion
        assert damage is not None  # `occluded_entries` gives no others
        number = seeds[0].cells.index(damage.cell)
        predictions = [grid.predictions(number) for grid in seeds]
        scores = [metrics.quick_score(one) for one in predictions]
        confusion = np.sum([metrics.confusion(one) for one in predictions], axis=0)
        evaluations.append(
            replace(
                entry,
                fold=None,
                occlusion=replace(damage, checksum=seeds[0].checksums[number]),
                samples=most,
                accuracy=float(share[number].mean()),
                interval=intervals[number],
                balanced_accuracy=float(np.mean([one["balanced_accuracy"] for one in scores])),
                macro_f1=float(np.mean([one["macro_f1"] for one in scores])),
                ece=None,
                recall=_recall(confusion),
                confusion=confusion,
                folds=network.folds,
                seeds=len(seeds),
            )
        )
    alike = [one for one in plain if one.conditions == evaluations[0].conditions and one.samples == most]
    summaries = summarise([_as_entry(one) for one in (*alike, *evaluations)])
    return _Covered(tuple(evaluations), tuple(summaries), seeds)


def _as_entry(evaluation: Evaluation) -> dict[str, Any]:
    """What `summarise` reads of an entry of results.json."""
    names = ("data", "split", "fold", "inner_fold", "tta", "checkpoint", "subset", "unit", "samples")
    return {
        **{name: getattr(evaluation, name) for name in (*names, "accuracy", "macro_f1")},
        "occlusion": evaluation.occlusion and asdict(evaluation.occlusion),
    }


def _recall(confusion: Any) -> tuple[float | None, ...]:
    totals = confusion.sum(axis=1)
    return tuple(
        float(hits / total) if total else None for hits, total in zip(np.diag(confusion), totals, strict=True)
    )


def _shared(runs: Sequence[Run]) -> Mapping[str, Any]:
    """The first run's config, with all seeds and folds in it."""
    seeds = sorted({int(run.option("seed")) for run in runs})
    folds = sorted({int(run.option("data.fold")) for run in runs if run.option("data.fold") is not None})
    config = dict(runs[0].config)
    config["seed"] = seeds[0] if len(seeds) == 1 else seeds
    if folds:
        config["data"] = {**config["data"], "fold": f"each of {len(folds)} in turn"}
    return config


def _mean_history(runs: Sequence[Run]) -> Iterator[dict[str, float]]:
    """A line per epoch with the means over the runs, and within the epoch for what is noted more often."""
    curves = {key: [run.curve(key) for run in runs] for key in _CURVES}
    epochs = max((at.max(initial=0.0) for of_key in curves.values() for at, _ in of_key), default=0.0)
    for epoch in range(1, int(np.ceil(epochs)) + 1):
        line: dict[str, float] = {"epoch": float(epoch)}
        for key, of_key in curves.items():
            within = [values[(at > epoch - 1) & (at <= epoch)] for at, values in of_key]
            means = [float(values.mean()) for values in within if len(values)]
            if means:
                line[key] = float(np.mean(means))
        yield line
