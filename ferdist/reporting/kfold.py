"""summary.md of a k-fold experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ferdist.evaluation.pool import SCORES
from ferdist.reporting.words import SUBSETS, TTA
from ferdist.table import MISSING, Number, Table, count, percent, percent_interval


def kfold_markdown(summary: Mapping[str, Any]) -> str:
    """The summary for people.

    Args:
        summary: what `kfold_summary` gives, with ``cells``: name, state and reason of
            each run of the experiment.

    Returns:
        Markdown: the pooled scores, a table per fold, and the unfinished runs with their reasons.
    """
    folds, seeds, outer = summary["folds"], summary["seeds"], summary["inner_of"]
    finished = sum(cell["state"] == "finished" for cell in summary["cells"])
    lines = [
        f"# {summary['data']}, {len(folds)} folds{'' if outer is None else f' without fold {outer}'}",
        "",
        *([] if outer is None else [f"For choosing settings: no run read fold {outer}.", ""]),
        f"{finished} of {count(len(summary['cells']), 'run')} finished; "
        f"seeds {', '.join(map(str, seeds)) or MISSING}; beton {summary['beton_sha256'][:12]}.",
        "",
    ]
    if summary["evaluations"]:
        lines += ["## Pooled over the folds, in percent", "", _pooled(summary["evaluations"]).markdown()]
        lines += [f"- {sentence}" for sentence in _definitions(summary)]
        main = summary["evaluations"][0]
        lines += ["", "## Accuracy per fold, in percent", "", f"Per image, {TTA[main['tta']]}.", ""]
        lines += [_per_fold(main, seeds).markdown()]
    open_cells = [cell for cell in summary["cells"] if cell["state"] != "finished"]
    if open_cells:
        lines += ["## Unfinished runs", ""]
        lines += [f"- {cell['name']}: {_state(cell)}" for cell in open_cells]
        lines += [""]
    return "\n".join(lines)


def _state(cell: Mapping[str, Any]) -> str:
    reason = (cell["reason"] or "").replace("`", "'")  # paths with underscores would turn cursive
    return f"{cell['state']}: `{reason}`" if reason else str(cell["state"])


def _pooled(evaluations: Sequence[Mapping[str, Any]]) -> Table:
    """A row over the complete seeds, and one for each seed that lacks folds."""
    rows = []
    for entry in evaluations:
        place = {"Views": TTA[entry["tta"]], "Unit": entry["unit"], "Subset": SUBSETS[entry["subset"]]}
        over = entry["over_seeds"]
        if over is not None:
            rows.append(place | _scores(str(len(over["seeds"])), over))
        for pooled in entry["pooled"]:
            if not pooled["complete"]:
                seed = f"seed {pooled['seed']}, {count(pooled['folds'], 'fold')} only"
                single = {name: {"mean": pooled[name], "sd": None} for name in SCORES}
                rows.append(place | _scores(seed, pooled | single))
    return Table.of("Pooled over the folds, in percent", rows)


def _scores(seeds: str, scores: Mapping[str, Any]) -> dict[str, str]:
    accuracy, balanced, macro_f1 = (_spread(scores[name]) for name in SCORES)
    return {
        "Seeds": Number(seeds),
        "Samples": count(scores["samples"]),
        "Accuracy": accuracy,
        "95 % interval": percent_interval(scores["accuracy_ci95"]),
        "Balanced": balanced,
        "Macro-F1": macro_f1,
    }


def _per_fold(entry: Mapping[str, Any], seeds: Sequence[int]) -> Table:
    parts = {(part["fold"], part["seed"]): part for part in entry["per_fold"]}
    rows = []
    for fold in sorted({fold for fold, _ in parts}):
        of_fold = [parts.get((fold, seed)) for seed in seeds]
        size = next(part for part in of_fold if part)
        rows.append(
            {
                "Fold": Number(fold),
                "Samples": count(size["samples"]),
                "Subjects": Number(MISSING) if size["subjects"] is None else count(size["subjects"]),
                **{
                    f"Seed {seed}": percent(part["accuracy"] if part else None)
                    for seed, part in zip(seeds, of_fold, strict=True)
                },
            }
        )
    return Table.of("Accuracy per fold, in percent", rows)


def _spread(score: Mapping[str, float | None]) -> Number:
    mean, sd = percent(score["mean"]), score["sd"]
    return mean if sd is None else Number(f"{mean} ± {percent(sd)}")


def _definitions(summary: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "Each sample is predicted once per seed, by the model that was trained without its fold; "
        "a seed's predictions are pooled and scored together."
    )
    yield "± is the standard deviation of the pooled score over the seeds."
    over = "subjects" if summary["interval_over"] == "subject" else "groups of exact copies"
    yield (
        f"The 95 % interval is that of the accuracy, or of its mean over the seeds: a bootstrap over {over}. "
        "It does not cover the variation between seeds."
    )
    if summary["checkpoint"] == "last":
        yield "The checkpoint is the last of the schedule; no split was used to choose it."
    else:
        yield "The checkpoint was chosen on the inner fold itself: the scores are biased upward."
    shared = summary["subjects_in_several_folds"]
    if shared:
        yield f"The folds are not subject-independent: {count(shared, 'subject')} in several of them."
    elif summary["interval_over"] == "subject":
        yield "No subject is in two folds."
