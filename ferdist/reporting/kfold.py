"""summary.md of a k-fold experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ferdist.reporting.words import SUBSETS, TTA
from ferdist.table import MISSING, Number, Table, count, percent, percent_interval


def kfold_markdown(summary: Mapping[str, Any]) -> str:
    """The summary for people.

    Args:
        summary: what ``ferdist.evaluation.kfold.summarise`` gives, with ``cells``: name, state and reason of
            each run of the experiment.

    Returns:
        Markdown: the pooled figures, a table per fold, and the runs that are not finished with their reason.
    """
    folds, seeds, outer = summary["folds"], summary["seeds"], summary["inner_of"]
    finished = sum(cell["state"] == "finished" for cell in summary["cells"])
    lines = [
        f"# {summary['data']}, {len(folds)} folds{'' if outer is None else f' without fold {outer}'}",
        "",
        *(() if outer is None else (f"For choosing settings: fold {outer} was read by no run.", "")),
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
        lines += ["## Runs that are not finished", ""]
        lines += [f"- {cell['name']}: {_state(cell)}" for cell in open_cells]
        lines += [""]
    return "\n".join(lines)


def _state(cell: Mapping[str, Any]) -> str:
    reason = (cell["reason"] or "").replace("`", "'")  # paths with underscores would turn cursive
    return f"{cell['state']}: `{reason}`" if reason else str(cell["state"])


def _pooled(evaluations: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        caption="Pooled over the folds, in percent",
        head=(
            "Views",
            "Unit",
            "Subset",
            "Seeds",
            "Samples",
            "Accuracy",
            "95 % interval",
            "Balanced",
            "Macro-F1",
        ),
        rows=tuple(row for entry in evaluations for row in _pooled_rows(entry)),
    )


def _pooled_rows(entry: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row over the complete seeds, and one for each seed that lacks folds."""
    place = (TTA[entry["tta"]], entry["unit"], SUBSETS[entry["subset"]])
    over = entry["over_seeds"]
    if over is not None:
        yield (
            *place,
            Number(len(over["seeds"])),
            count(over["samples"]),
            _spread(over["accuracy"]),
            percent_interval(tuple(over["accuracy_ci95"])),
            _spread(over["balanced_accuracy"]),
            _spread(over["macro_f1"]),
        )
    for pooled in entry["pooled"]:
        if not pooled["complete"]:
            yield (
                *place,
                f"seed {pooled['seed']}, {count(pooled['folds'], 'fold')} only",
                count(pooled["samples"]),
                percent(pooled["accuracy"]),
                percent_interval(tuple(pooled["accuracy_ci95"])),
                percent(pooled["balanced_accuracy"]),
                percent(pooled["macro_f1"]),
            )


def _per_fold(entry: Mapping[str, Any], seeds: Sequence[int]) -> Table:
    cells = {(part["fold"], part["seed"]): part for part in entry["per_fold"]}
    rows = []
    for fold in sorted({fold for fold, _ in cells}):
        any_seed = next(part for (number, _), part in cells.items() if number == fold)
        subjects = any_seed["subjects"]
        figures = [cells.get((fold, seed)) for seed in seeds]
        rows.append(
            (
                Number(fold),
                count(any_seed["samples"]),
                MISSING if subjects is None else count(subjects),
                *(percent(part["accuracy"] if part else None) for part in figures),
            )
        )
    return Table(
        caption="Accuracy per fold, in percent",
        head=("Fold", "Samples", "Subjects", *(f"Seed {seed}" for seed in seeds)),
        rows=tuple(rows),
    )


def _spread(figure: Mapping[str, float | None]) -> Number:
    mean, sd = percent(figure["mean"]), figure["sd"]
    return mean if sd is None else Number(f"{mean} ± {percent(sd)}")


def _definitions(summary: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "Each sample is predicted once per seed, by the model that was trained without its fold; "
        "a seed's predictions are pooled and scored together."
    )
    yield "± is the standard deviation of the pooled figure over the seeds."
    over = "subjects" if summary["interval_over"] == "subject" else "groups of exact copies"
    yield (
        f"The 95 % interval is that of the accuracy, or of its mean over the seeds: a bootstrap over {over}. "
        "It knows nothing of what another seed would give."
    )
    if summary["checkpoint"] == "last":
        yield "The checkpoint is the last one of the schedule, chosen on no split."
    else:
        yield "The checkpoint was chosen on the inner fold itself: the figures lean upward."
    shared = summary["subjects_in_several_folds"]
    if shared:
        yield f"The folds are not subject-independent: {count(shared, 'subject')} in several of them."
    elif summary["interval_over"] == "subject":
        yield "No subject lies in two folds."
