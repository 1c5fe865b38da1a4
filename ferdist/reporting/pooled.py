"""All runs of a network as one record, so that a report shows them as it shows a single run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ferdist.errors import RunError
from ferdist.evaluation import metrics
from ferdist.evaluation.predictions import Predictions, join, side_by_side
from ferdist.evaluation.records import OCCLUSION, Evaluation, EvaluationKey
from ferdist.evaluation.robustness import correct_share
from ferdist.reporting.load import Run, grids_of, load_run, occluded_entries
from ferdist.reporting.networks import Network
from ferdist.reporting.words import value_text
from ferdist.table import count

_CURVES = ("train/loss", "train/accuracy", "train/lr", "val/loss", "val/accuracy", "val/balanced_accuracy")


def pooled_run(network: Network) -> Run | None:
    """The finished runs of a network as one; None where there is none.

    Predictions are pooled over the folds and put side by side over the seeds, so a confusion matrix counts
    each sample once per seed. Learning curves are means over the runs, by epoch. What the runs do not share
    of their environments stands with the number of runs that have it.
    """
    runs = [load_run(run.folder.path) for run in network.runs]
    if not runs:
        return None
    remarks = dict.fromkeys(remark for run in runs for remark in run.remarks)
    if len(runs) == 1 and not network.folds:
        return replace(runs[0], name=network.name, remarks=tuple(remarks))
    plain = [_plain(network, number, runs) for number in range(len(network.measured))]
    predictions = {one.predictions: seeds for one, seeds in plain}
    covered: list[Evaluation] = []
    try:
        covered, seeds = _covered(runs, network)
        predictions |= {one.predictions: seeds for one in covered}
    except RunError as error:
        remarks[f"The runs' scores under occlusion are not pooled: {error}."] = None
    environment = _joined([run.environment for run in runs])
    trained = _revision(environment)
    if any(_revision(run.environment) != trained for run in runs):
        remarks[f"The runs were trained at different git revisions: {trained}."] = None
    return replace(
        runs[0],
        name=network.name,
        pooled=len(runs),
        config=_shared(runs),
        environment=environment,
        evaluations=(*(one for one, _ in plain), *covered),
        predictions=predictions,
        history=tuple(_mean_history(runs)),
        test_scorings=network.test_scorings,
        remarks=tuple(remarks),
    )


def _plain(network: Network, number: int, runs: Sequence[Run]) -> tuple[Evaluation, tuple[Predictions, ...]]:
    """A pool as an evaluation, with the predictions of each seed that it is computed from."""
    pool = network.measured[number]
    entries = (one for run in runs for one in run.evaluations)
    listed = next((one.listed for one in entries if one.listed and one.key == pool.key), None)
    seeds = tuple(pool.complete().values()) or tuple(join(parts) for parts in pool.by_seed().values())
    interval = None if pool.scores is None else tuple(pool.scores["accuracy_ci95"])
    folds = len(next(iter(pool.by_seed().values()))) if network.folds else 0
    one = _evaluation(pool.key, seeds, interval, f"pooled/{number}", folds)
    return replace(one, listed=listed), seeds


def _evaluation(
    key: EvaluationKey,
    seeds: Sequence[Predictions],
    interval: tuple[float, float] | None,
    predictions: str,
    folds: int,
) -> Evaluation:
    """What the predictions of several seeds amount to, side by side; macro-F1 and ECE are their means."""
    scores = metrics.scores_of(side_by_side(seeds), interval)
    macro_f1 = float(np.mean([metrics.quick_score(of_seed)["macro_f1"] for of_seed in seeds]))
    ece = float(np.mean([metrics.scores_of(of_seed, None).ece for of_seed in seeds]))
    scores = replace(scores, samples=scores.samples // len(seeds), macro_f1=macro_f1, ece=ece)
    return Evaluation(**vars(key), **vars(scores), predictions=predictions, folds=folds, seeds=len(seeds))


def _covered(runs: Sequence[Run], network: Network) -> tuple[list[Evaluation], tuple[Predictions, ...]]:
    """The benchmark pooled over the folds and averaged over the seeds, with each seed's predictions.

    Raises:
        RunError: if some runs lack it, or it is not the same for all.
    """
    found = [(run, entries, grids_of(run, entries)) for run in runs if (entries := occluded_entries(run))]
    if not found:
        return [], ()
    by_seed: dict[Any, list[Predictions]] = {}
    for run, _, grids in found:
        by_seed.setdefault(run.option("seed"), []).extend(grids)
    complete = sum(bool(grids) for _, _, grids in found)
    if complete < len(runs):
        raise RunError(f"{complete} of {len(runs)} runs have predictions under occlusion")
    folds = max(map(len, by_seed.values())) if network.folds else 0
    pooled = [join(grids) for grids in by_seed.values()]
    most = max(len(grid.index) for grid in pooled)
    seeds = tuple(grid for grid in pooled if len(grid.index) == most)
    first = seeds[0]
    assert first.cluster is not None  # of predictions with cells
    intervals = metrics.accuracy_intervals(correct_share(seeds), first.cluster)
    evaluations = []
    for entry in found[0][1]:
        assert entry.occlusion is not None  # `occluded_entries` gives no others
        number = first.cells.index(entry.occlusion.cell)
        damage = replace(entry.occlusion, checksum=first.checksums[number])
        key = replace(entry.key, beton_sha256=first.beton_sha256, fold=None, occlusion=damage)
        predictions = [grid.cell(number) for grid in seeds]
        one = _evaluation(key, predictions, intervals[number], f"{OCCLUSION}/pooled", folds)
        evaluations.append(replace(one, ece=None))
    return evaluations, seeds


def _shared(runs: Sequence[Run]) -> Mapping[str, Any]:
    """The first run's config, with all seeds and folds in it."""
    seeds = sorted({int(run.option("seed")) for run in runs})
    folds = sorted({int(run.option("data.fold")) for run in runs if run.option("data.fold") is not None})
    config = dict(runs[0].config)
    config["seed"] = seeds[0] if len(seeds) == 1 else seeds
    if folds:
        config["data"] = {**config["data"], "fold": f"each of {len(folds)} in turn"}
    return config


def _joined(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One environment of several: a value that is not all runs' names the number of runs that have it."""
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in environments for key in one):
        values = [one.get(key) for one in environments]
        counts = Counter(map(value_text, values)).most_common()
        if any(isinstance(value, Mapping) for value in values):
            joined[key] = _joined([value if isinstance(value, Mapping) else {} for value in values])
        elif len(counts) == 1:
            joined[key] = values[0]
        elif key == "date":
            first, *_, last = sorted(text for text, _ in counts)
            joined[key] = f"{first} to {last}"
        else:
            (text, number), *others = counts
            shown = [f"{text} ({count(number, 'run')})", *(f"{text} ({number})" for text, number in others)]
            joined[key] = ", ".join(shown)
    return joined


def _revision(environment: Mapping[str, Any]) -> Any:
    """Of the training, where it is noted."""
    return (environment.get("training") or {}).get("git_revision")


def _mean_history(runs: Sequence[Run]) -> Iterator[dict[str, float]]:
    """A line per epoch with the means over the runs, and within the epoch for what is noted more often."""
    curves = {key: [run.epoch_means(key) for run in runs] for key in _CURVES}
    last = max((epoch for of_key in curves.values() for means in of_key for epoch in means), default=0)
    for epoch in range(1, last + 1):
        line: dict[str, float] = {"epoch": float(epoch)}
        for key, of_key in curves.items():
            found = [means[epoch] for means in of_key if epoch in means]
            if found:
                line[key] = float(np.mean(found))
        yield line
