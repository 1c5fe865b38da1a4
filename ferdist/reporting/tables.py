"""The tables of a report as plain text cells, the sentences beside them, and table1.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ferdist.augment.kinds import kind_label
from ferdist.config import flatten
from ferdist.reporting.figures import Calibration, Series
from ferdist.reporting.load import Evaluation, Run

MISSING: Final = "–"
"""What a cell shows where there is no value."""

TTA: Final = {"none": "one view", "flip": "image and mirror image", "ten-crop": "ten crops"}
FIGURES: Final = ("Accuracy", "95 % interval", "Balanced", "Macro-F1", "ECE", "Samples")
"""Columns of figures, in percent but for the last."""
FILLS: Final = {
    "zero": "filled with black",
    "mean": "filled with the training data's mean",
    "noise": "filled with noise",
    "face": "a patch of another face",
}
SUBSETS: Final = {
    "all": "all",
    "no_copies": "without copies",
    "occluded": "really occluded",
    "occluded_no_copies": "really occluded, without copies",
    "turned": "strongly turned",
    "turned_no_copies": "strongly turned, without copies",
}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        caption: what the table shows, in a few words.
        head: names of the columns.
        align: one letter per column, ``l`` for text and ``r`` for numbers.
        rows: the cells, as they are shown.
    """

    caption: str
    head: tuple[str, ...]
    align: str
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table in GitHub's markdown."""
        rules = ["---:" if letter == "r" else ":---" for letter in self.align]
        lines = [self.head, tuple(rules), *self.rows]
        escaped = [[escape(cell) if line is not lines[1] else cell for cell in line] for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction in percent, without the sign; a dash where there is none."""
    return MISSING if fraction is None or np.isnan(fraction) else f"{100 * fraction:.{digits}f}"


def percent_interval(bounds: tuple[float, float] | None, digits: int = 1) -> str:
    """An interval of fractions in percent, without the sign; a dash where there is none."""
    return MISSING if bounds is None else f"{percent(bounds[0], digits)}–{percent(bounds[1], digits)}"


def count(number: int, noun: str = "") -> str:
    """A number with its thousands parted, and the noun in its number: ``1 image``, ``3,589 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}" if noun else f"{number:,}"


def place(evaluation: Evaluation) -> str:
    """Where an evaluation was made: the split, the folds that were held out, and over how many seeds."""
    seeds = "" if evaluation.seeds == 1 else f", mean of {evaluation.seeds} seeds"
    if evaluation.folds:
        return f"{count(evaluation.folds, 'fold')} pooled{seeds}"
    if evaluation.inner_fold is not None:
        return f"{evaluation.split}, inner fold {evaluation.inner_fold} without fold {evaluation.fold}"
    fold = "" if evaluation.fold is None else f", fold {evaluation.fold}"
    return f"{evaluation.split}{fold}{seeds}"


def scorings(times: int) -> str:
    """How often test was scored, in words."""
    words = {0: "test has never been scored", 1: "test has been scored once", 2: "test has been scored twice"}
    return words.get(times, f"test has been scored {times:,} times")


def selection(run: Run, evaluation: Evaluation) -> str:
    """How the checkpoint of an evaluation was chosen, in words."""
    elsewhere = evaluation.data != run.data
    if evaluation.checkpoint == "best" and elsewhere:
        return f"the checkpoint was chosen on val of {run.data}"
    if evaluation.checkpoint == "best" and evaluation.split == "val":
        return "the checkpoint was chosen on this same split, which makes the figure lean upward"
    if evaluation.checkpoint == "best":
        return "the checkpoint was chosen on val"
    if evaluation.checkpoint == "last":
        return "the checkpoint is the last one of the schedule, chosen on no split"
    if evaluation.checkpoint:
        return f"the checkpoint is {evaluation.checkpoint}"
    return "how the checkpoint was chosen is not recorded"


def comparison(runs: Sequence[Run], *, protocol: bool = False) -> Table:
    """One row per run: its main evaluation (``Run.main``), rates in percent.

    Args:
        runs: the runs, in order.
        protocol: whether seed, checkpoint and the scorings of test follow in columns of their own.

    Returns:
        The table.
    """
    head = ("Run", "Model", "Data", "Split", *FIGURES)
    more = ("Seed", "Checkpoint", "Test scorings") if protocol else ()
    return Table(
        caption="Main evaluation of each run, in percent",
        head=head + more,
        align="llllrrrrrr" + ("rlr" if protocol else ""),
        rows=tuple(_comparison_row(run)[: len(head) + len(more)] for run in runs),
    )


def _comparison_row(run: Run) -> tuple[str, ...]:
    main = run.main
    return (
        run.name,
        run.model,
        main.data if main else run.data,
        place(main) if main else "not evaluated",
        *(_figures(main) if main else [MISSING] * len(FIGURES)),
        str(run.option("seed", MISSING)),
        (main.checkpoint if main else "") or MISSING,
        str(run.test_scorings),
    )


def _figures(evaluation: Evaluation) -> tuple[str, ...]:
    """The cells below ``FIGURES``."""
    return (
        percent(evaluation.accuracy),
        percent_interval(evaluation.interval),
        percent(evaluation.balanced_accuracy),
        percent(evaluation.macro_f1),
        percent(evaluation.ece),
        count(evaluation.samples, evaluation.unit),
    )


def table1_markdown(runs: Sequence[Run]) -> str:
    """table1.md: the comparison, and the protocol that the figures were measured under."""
    lines = [
        "# Table 1",
        "",
        "Rates in percent.",
        "",
        comparison(runs, protocol=True).markdown(),
        "## Protocol",
        "",
    ]
    for run in runs:
        main = run.main
        how = (
            f"{selection(run, main)}; {TTA.get(main.tta, main.tta)} per image; "
            if main
            else "no evaluation; "
        )
        lines.append(f"- {escape(run.name)}: {escape(how + scorings(run.test_scorings))}.")
    lines += ["", *(f"- {escape(sentence)}" for sentence in definitions()), ""]
    return "\n".join(lines)


def definitions() -> tuple[str, ...]:
    """What the figures mean, in sentences."""
    return (
        "Every sample of a split is scored exactly once, whatever the number of processes.",
        "The 95 % interval is a bootstrap over subjects where the data name them, "
        "and over groups of exact copies otherwise.",
        "Balanced accuracy is the mean recall of the classes; macro-F1 is the mean F1 of the classes.",
        "ECE is the expected calibration error over 15 bins of equal width.",
        "Rows that differ in data, split, unit or samples measure different things: "
        "their difference is no comparison of models.",
    )


def evaluation_table(runs: Sequence[Run], *, occluded: bool) -> Table:
    """Every entry of results.json, either those with an occlusion or those without.

    Args:
        runs: the runs, in order.
        occluded: which of the entries.

    Returns:
        One row per entry; a column for the run where there are several, and one for the data where a run was
        evaluated on other data than it was trained on.
    """
    several = len(runs) > 1
    foreign = any(entry.data != run.data for run in runs for entry in run.evaluations)
    start: tuple[str, ...] = (("Run",) if several else ()) + (("Data",) if foreign else ())
    start += ("Split", "Occlusion", "Fill", "Severity", "Covered", "In training") if occluded else ("Split",)
    return Table(
        caption=f"Evaluations {'under occlusion' if occluded else 'of uncovered faces'}, in percent",
        head=(*start, *FIGURES, "Subset", "Views", "Checkpoint"),
        align="".join("r" if name in ("Severity", "Covered") else "l" for name in start) + "rrrrrrlll",
        rows=tuple(
            ((run.name,) if several else ())
            + ((evaluation.data,) if foreign else ())
            + _evaluation_row(evaluation)
            for run in runs
            for evaluation in run.evaluations
            if (evaluation.occlusion is not None) == occluded
        ),
    )


def _evaluation_row(evaluation: Evaluation) -> tuple[str, ...]:
    cover = evaluation.occlusion
    return (
        place(evaluation),
        *(
            (
                kind_label(cover.kind),
                cover.fill,
                str(cover.severity),
                percent(cover.covered),
                cover.seen or MISSING,
            )
            if cover
            else ()
        ),
        *_figures(evaluation),
        SUBSETS.get(evaluation.subset, evaluation.subset),
        TTA.get(evaluation.tta, evaluation.tta),
        evaluation.checkpoint or MISSING,
    )


def robustness_table(benchmarks: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """The figures of each kind of occlusion; one row per kind and run, and one for the mean over the kinds.

    Args:
        benchmarks: names of runs with what ``robustness.summarise`` gives.
    """
    several = len(benchmarks) > 1
    kinds = dict.fromkeys(kind for _, summary in benchmarks for kind in summary["kinds"])
    rows = []
    for kind in [*kinds, "mean"]:
        for name, summary in benchmarks:
            figures = summary if kind == "mean" else summary["kinds"].get(kind)
            if figures is not None:
                rows.append((kind_label(kind), *((name,) if several else ()), *_robustness_cells(figures)))
    severities = ("Severity 1", *(str(severity) for severity in range(2, 6)))
    merit = ("Mean", "Relative", "Area under curve", "Macro-F1")
    return Table(
        caption="Accuracy by kind of occlusion (means over the fills), in percent",
        head=("Kind", *(("Run",) if several else ()), "Covered", *severities, *merit),
        align="l" + "l" * several + "r" * 10,
        rows=tuple(rows),
    )


def _robustness_cells(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a kind, or of the mean over the kinds, which has no severities."""
    at = dict(zip(figures.get("severities", ()), figures.get("by_severity", ()), strict=True))
    covered = [share for share in figures.get("covered", ()) if share is not None]
    bounds = [percent(share) for share in covered]
    return (
        "–".join(dict.fromkeys([bounds[0], bounds[-1]])) if bounds else MISSING,
        *(percent(at.get(severity)) for severity in range(1, 6)),
        percent(figures["accuracy"]),
        percent(figures["relative_robustness"]),
        percent(figures["area_under_curve"]),
        percent(figures["macro_f1"]),
    )


def paired_table(first: str, comparisons: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Differences to the first run with their paired intervals, one row per kind and run.

    Args:
        first: name of the run that is the reference.
        comparisons: names of the other runs with what ``robustness.compare`` gives.
    """
    rows = []
    for name, comparison in comparisons:
        for kind, figures in (*comparison["kinds"].items(), ("mean", comparison)):
            error = figures["mean_corruption_error" if kind == "mean" else "corruption_error"]
            low, high = (f"{100 * bound:+.1f}" for bound in figures["difference_ci95"])
            rows.append(
                (
                    name,
                    kind_label(kind),
                    f"{100 * figures['difference']:+.1f}",
                    f"{low} to {high}",
                    percent(error),
                )
            )
    return Table(
        caption=f"Accuracy under occlusion minus that of {first}, in points",
        head=("Run", "Kind", "Difference", "Paired 95 % interval", "Corruption error %"),
        align="llrrr",
        rows=tuple(rows),
    )


def recall_table(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> Table:
    """Recall, precision and count of each class; one row per class and run.

    Args:
        runs: the runs.
        evaluations: one of each run.

    Returns:
        The table; precision is computed from the confusion matrix.
    """
    several = len(runs) > 1
    rows = []
    for run, evaluation in zip(runs, evaluations, strict=True):
        predicted, total = evaluation.confusion.sum(axis=0), evaluation.confusion.sum(axis=1)
        for label, name in enumerate(run.classes):
            hits = int(evaluation.confusion[label, label])
            precision = hits / int(predicted[label]) if predicted[label] else None
            row = (name, percent(evaluation.recall[label]), percent(precision), count(int(total[label])))
            rows.append(((run.name,) if several else ()) + row)
    return Table(
        caption="Recall and precision of each class",
        head=(("Run",) if several else ()) + ("Class", "Recall %", "Precision %", "Samples"),
        align=("l" if several else "") + "lrrr",
        rows=tuple(rows),
    )


def confusion_table(evaluation: Evaluation, classes: Sequence[str]) -> Table:
    """The counts of a confusion matrix: a row per true class, a column per predicted class."""
    return Table(
        caption="Counts: true class by row, predicted class by column",
        head=("True \\ predicted", *classes),
        align="l" + "r" * len(classes),
        rows=tuple(
            (name, *(count(int(number)) for number in row))
            for name, row in zip(classes, evaluation.confusion, strict=True)
        ),
    )


def worst_confusions(evaluation: Evaluation, classes: Sequence[str], most: int = 3) -> list[str]:
    """The most frequent mistakes relative to their true class, in words, worst first.

    Args:
        evaluation: the evaluation.
        classes: its class names.
        most: how many at most.

    Returns:
        For example ``disgust taken for angry (30 %, 17 of 56)``.
    """
    totals = evaluation.confusion.sum(axis=1)
    mistakes = [
        (int(number) / int(totals[true]), int(number), true, predicted)
        for (true, predicted), number in np.ndenumerate(evaluation.confusion)
        if true != predicted and number > 0
    ]
    mistakes.sort(key=lambda mistake: (-mistake[0], mistake[2], mistake[3]))
    return [
        f"{classes[true]} taken for {classes[predicted]} "
        f"({percent(share, 0)} %, {count(number)} of {count(int(totals[true]))})"
        for share, number, true, predicted in mistakes[:most]
    ]


def series_table(series: Sequence[Series], x_name: str, caption: str) -> Table:
    """The points of lines whose x and y are fractions, in percent; one row per point."""
    return Table(
        caption=caption,
        head=("Line", f"{x_name} %", "Accuracy %", "95 % interval"),
        align="lrrr",
        rows=tuple(
            (line.label, percent(float(line.x[point])), percent(float(line.y[point])), _bounds(line, point))
            for line in series
            for point in range(len(line.x))
        ),
    )


def _bounds(line: Series, point: int) -> str:
    if line.low is None or line.high is None or np.isnan(line.low[point]):
        return MISSING
    return percent_interval((float(line.low[point]), float(line.high[point])))


def calibration_table(labels: Sequence[str], calibrations: Sequence[Calibration]) -> Table:
    """The bins of reliability diagrams that hold samples."""
    several = len(labels) > 1
    return Table(
        caption="Accuracy by confidence",
        head=(("Run",) if several else ()) + ("Confidence %", "Samples", "Mean confidence %", "Accuracy %"),
        align=("l" if several else "") + "rrrr",
        rows=tuple(
            ((label,) if several else ())
            + (
                percent_interval((float(groups.edges[bin_]), float(groups.edges[bin_ + 1]))),
                count(int(groups.count[bin_])),
                percent(float(groups.confidence[bin_])),
                percent(float(groups.accuracy[bin_])),
            )
            for label, groups in zip(labels, calibrations, strict=True)
            for bin_ in np.flatnonzero(groups.count)
        ),
    )


def history_table(run: Run) -> Table:
    """One row per epoch: the means of the training lines in it, and what was measured at its end."""
    epochs = np.array([line["epoch"] for line in run.history], float)
    rows = []
    for epoch in range(1, int(np.ceil(epochs.max(initial=0))) + 1):
        train = [_mean_within(run, key, epoch) for key in ("train/loss", "train/accuracy", "train/lr")]
        val = [_at(run, key, epoch) for key in ("val/loss", "val/accuracy", "val/balanced_accuracy")]
        rows.append(
            (
                str(epoch),
                _decimal(train[0]),
                _decimal(val[0]),
                percent(train[1]),
                percent(val[1]),
                percent(val[2]),
                _decimal(train[2], "{:.2e}"),
            )
        )
    return Table(
        caption=f"{run.name}: means of each epoch",
        head=(
            "Epoch",
            "Train loss",
            "Val loss",
            "Train accuracy %",
            "Val accuracy %",
            "Val balanced %",
            "Learning rate",
        ),
        align="r" * 7,
        rows=tuple(rows),
    )


def _mean_within(run: Run, key: str, epoch: int) -> float | None:
    at, values = run.curve(key)
    within = values[(at > epoch - 1) & (at <= epoch)]
    return float(within.mean()) if len(within) else None


def _at(run: Run, key: str, epoch: int) -> float | None:
    at, values = run.curve(key)
    there = values[at == epoch]
    return float(there[-1]) if len(there) else None


def _decimal(value: float | None, form: str = "{:.3f}") -> str:
    return MISSING if value is None else "NaN" if np.isnan(value) else form.format(value)


def protocol_table(runs: Sequence[Run]) -> Table:
    """How each run was trained and chosen: a row per key, a column per run."""
    keys = ("Model", "Data", "Fold held out", "Epochs", "Seed", "Checkpoint", "Views per image", "Test")
    values = [dict(zip(keys, _protocol(run), strict=True)) for run in runs]
    return _by_key("Protocol of each run" if len(runs) > 1 else "Protocol", keys, values, runs)


def _protocol(run: Run) -> tuple[Any, ...]:
    main = run.main
    return (
        run.model,
        run.data,
        "none: the data's own splits" if run.option("data.fold") is None else run.option("data.fold"),
        run.option("train.epochs"),
        run.option("seed"),
        selection(run, main) if main else None,
        TTA.get(main.tta, main.tta) if main else None,
        scorings(run.test_scorings),
    )


def environment_table(runs: Sequence[Run]) -> Table:
    """Versions, hardware and date: a row per key, a column per run."""
    keys = list(dict.fromkeys(key for run in runs for key in flatten(run.environment)))
    values = [flatten(run.environment) for run in runs]
    return _by_key("Environment of each run" if len(runs) > 1 else "Environment", keys, values, runs)


def configuration_table(run: Run) -> Table:
    """The resolved configuration: a row per key."""
    values = flatten(run.config)
    return _by_key(f"Configuration of {run.name}", list(values), [values], [run])


def differences_table(runs: Sequence[Run]) -> Table:
    """The configuration keys in which runs differ, but for run_dir: a row per key, a column per run."""
    values = [flatten(run.config) for run in runs]
    keys = sorted({key for value in values for key in value} - {"run_dir"})
    differing = [key for key in keys if len({repr(value.get(key)) for value in values}) > 1]
    return _by_key("Configuration keys in which the runs differ", differing, values, runs)


def _by_key(
    caption: str, keys: Sequence[str], values: Sequence[Mapping[str, Any]], runs: Sequence[Run]
) -> Table:
    return Table(
        caption=caption,
        head=("Key", *(run.name for run in runs)) if len(runs) > 1 else ("Key", "Value"),
        align="l" * (1 + len(runs)),
        rows=tuple((key, *(_cell(value.get(key)) for value in values)) for key in keys),
    )


def parts_table(manifest: Mapping[str, Any]) -> Table:
    """Splits and folds of a beton with their samples per class, from its manifest."""
    rows = []
    for kind, parts in (("split", manifest.get("splits")), ("fold", manifest.get("folds"))):
        for name, part in (parts or {}).items():
            subjects = part.get("subjects")
            rows.append(
                (
                    f"{kind} {name}",
                    count(int(part.get("samples", 0))),
                    MISSING if subjects is None else count(len(subjects)),
                    *(count(int(number)) for number in part.get("per_class", ())),
                )
            )
    classes = tuple(str(name) for name in manifest.get("classes", ()))
    return Table(
        caption="Samples per split, fold and class",
        head=("Part", "Samples", "Subjects", *classes),
        align="l" + "r" * (2 + len(classes)),
        rows=tuple(rows),
    )


def audit_table(manifest: Mapping[str, Any]) -> Table:
    """What the audit of the data found, from the manifest: a row per finding."""
    findings = flatten(manifest.get("audit") or {})
    return Table(
        caption="Audit of the data",
        head=("Finding", "Value"),
        align="ll",
        rows=tuple(
            (key.replace("_", " ").replace(".", ": "), _cell(value)) for key, value in findings.items()
        ),
    )


def _cell(value: Any) -> str:
    if value is None or value == "":
        return MISSING
    if isinstance(value, list):
        shown = ", ".join(str(item) for item in value[:8])
        return f"{shown}, … ({len(value):,} in all)" if len(value) > 8 else shown or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return count(value) if isinstance(value, int) and value >= 10_000 else str(value)


def escape(text: str) -> str:
    """Text that markdown shows as it is: no html, no table rules, one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*_|[]" else letter for letter in text)
