"""The report: charts and tables in the sections of one html page, with table1.md and figures beside it."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import ferdist
from ferdist.augment.kinds import kind_label
from ferdist.errors import RunError
from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.robustness import compare_benchmarks, mean_intervals
from ferdist.reporting import figures, table1, tables
from ferdist.reporting.album import Album
from ferdist.reporting.faces import attention_section, gallery_sections, mistakes_section
from ferdist.reporting.figures import Series
from ferdist.reporting.load import (
    Evaluation,
    Floats,
    Run,
    grids_of,
    load_runs,
    occluded_entries,
    predictions_of,
    robustness_of,
)
from ferdist.reporting.networks import Pair, compare_runs, is_experiment, load_networks
from ferdist.reporting.page import Chart, Section, numbered
from ferdist.reporting.pooled import pooled_run
from ferdist.reporting.tables import Table, count, percent, place

TRAIN_POINTS: Final = 150
"""Points that a curve of training has at most; more lines of metrics.jsonl are averaged."""

Cells = tuple[Cell, ...]
Interval = tuple[float, float]

_FIGURE_FILE: Final = re.compile(
    r"(.+-)?(recall|confusion|mistakes|occlusion|gallery|attention|calibration|loss|accuracy|learning-rate)"
    r"(-\d+)?\.(svg|png)"
)


@dataclass(frozen=True)
class Content:
    """What a report consists of.

    Attributes:
        title: of the page.
        headlines: what was measured, in sentences.
        remarks: what a reader must know before believing it.
        sections: of the page, in order.
        table1: text of table1.md.
    """

    title: str
    headlines: list[Markup]
    remarks: list[str]
    sections: list[Section]
    table1: str


def write_report(runs: Sequence[Path], out: Path, *, faces: bool = True) -> Path:
    """Write a report on one run, on several in comparison, or on the networks of an experiment.

    Args:
        runs: run folders, each with a results.json, and folders of experiments.
        out: the folder for report.html, table1.md and figures/*.svg and *.png; made if it is not there. An
            earlier report in it is replaced; other files stay.
        faces: whether charts show faces of the data; their numbers are there in either case.

    Returns:
        Path of report.html.

    Raises:
        RunError: if a run cannot be read or the folder cannot be written; nothing is written then.
    """
    album = Album(shown=faces)
    content = of_networks(runs, album) if any(map(is_experiment, runs)) else of_runs(runs, album)
    charts = [chart for section in content.sections for chart in section.charts]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            (draft / "figures").mkdir()
            pictures = {}
            for chart in charts:
                svg = figures.svg_bytes(chart.figure)
                (draft / "figures" / f"{chart.name}.svg").write_bytes(svg)
                (draft / "figures" / f"{chart.name}.png").write_bytes(figures.png_bytes(chart.figure))
                pictures[chart.name] = Markup(figures.inline_svg(svg, chart.name, chart.alt))
            (draft / "table1.md").write_text(content.table1, encoding="utf-8")
            (draft / "report.html").write_text(render(content, pictures), encoding="utf-8")
            _publish(draft, out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"{out}: the report cannot be written: {error.strerror}; choose another --out"
        ) from None
    return out / "report.html"


def of_runs(folders: Sequence[Path], album: Album) -> Content:
    """A report on runs as they are, with paired comparisons where there are several."""
    runs = load_runs(folders)
    sections, text = build_sections(runs, album), tables.table1_markdown(runs)
    if len(runs) > 1:
        pairs, remarks = compare_runs(folders)
        sections.insert(1, _paired_section(pairs, remarks))
        text += "\n" + table1.pairs_markdown("##", pairs, remarks)
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    headlines = [headline(run, named=len(runs) > 1) for run in runs]
    return Content(title, headlines, _remarks(runs), sections, text)


def of_networks(folders: Sequence[Path], album: Album) -> Content:
    """A report on the networks of experiments, data set by data set."""
    groups = table1.group_by_data(load_networks(folders))
    several = len(groups) > 1
    runs: list[Run] = []
    headlines: list[Markup] = []
    sections: list[Section] = []
    for group in groups:
        pooled = [run for run in map(pooled_run, group.networks) if run is not None]
        sections.append(_table1_section(group))
        if pooled:
            headlines.append(_group_headline(group.data, pooled))
            parts = build_sections(pooled, album)
            sections += [_of_data(part, group.data) for part in parts] if several else parts
        runs += [replace(run, name=f"{group.data}/{run.name}") if several else run for run in pooled]
    title = ", ".join(dict.fromkeys(folder.resolve().name for folder in folders))
    return Content(title, headlines, _remarks(runs), sections, table1.networks_markdown(groups))


def _group_headline(data: str, runs: Sequence[Run]) -> Markup:
    """The networks on one data set and what each recognises, in the order of the table."""
    figures = [
        Markup("{} <strong>{} %</strong> ({})").format(run.name, percent(run.main.accuracy), place(run.main))
        for run in runs
        if run.main is not None
    ]
    return Markup("<b>{}</b>: {}.").format(data, Markup(", ").join(figures))


def _of_data(section: Section, data: str) -> Section:
    """A section in a page that has one of the kind for each data set."""
    charts = tuple(replace(chart, name=f"{data}-{chart.name}") for chart in section.charts)
    return replace(section, name=f"{data}-{section.name}", title=f"{section.title}: {data}", charts=charts)


def _table1_section(group: table1.DataGroup) -> Section:
    paired = table1.pair_table(group.pairs)
    return Section(
        f"table1-{group.data}",
        f"Table 1: {group.data}",
        tables=(table1.published_table(group), *((paired,) if paired.rows else ())),
        folded_tables=(table1.figures_table(group.networks),),
        points=(
            *table1.protocol_sentences(group),
            *table1.pair_sentences(group.pairs),
            *group.refused,
            *table1.open_sentences(group.networks),
        ),
    )


def _paired_section(pairs: Sequence[Pair], remarks: Sequence[str]) -> Section:
    paired = table1.pair_table(pairs)
    return Section(
        "paired",
        "Paired comparisons",
        tables=(paired,) if paired.rows else (),
        missing=tuple(remarks),
        points=tuple(table1.pair_sentences(pairs)),
    )


def _publish(draft: Path, out: Path) -> None:
    """Move the files of a finished draft into place, and take away figures that the new report lacks."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for path in sorted((draft / "figures").iterdir()):
        path.replace(out / "figures" / path.name)
        (draft / "figures" / path.name).touch()
    for old in (out / "figures").iterdir():
        if _FIGURE_FILE.fullmatch(old.name) and not (draft / "figures" / old.name).exists():
            old.unlink()
    for name in ("table1.md", "report.html"):
        (draft / name).replace(out / name)


def render(content: Content, pictures: dict[str, Markup]) -> str:
    """The page.

    Args:
        content: what it shows.
        pictures: the svg element of each chart, by its name.

    Returns:
        Html that loads nothing.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    return environment.get_template("report.html.j2").render(
        title=content.title,
        headlines=content.headlines,
        remarks=content.remarks,
        sections=content.sections,
        pictures=pictures,
        version=ferdist.__version__,
    )


def _unbroken(text: str) -> str:
    """The text (html stays html) with each number tied to its percent sign."""
    return text.replace(" %", "\u00a0%")


def headline(run: Run, *, named: bool = False) -> Markup:
    """What was measured on what, in one sentence.

    Args:
        run: the run.
        named: whether the sentence starts with the run's name.

    Returns:
        Html: the accuracy is emphasised.
    """
    main = run.main
    start = Markup("<b>{}</b>: ").format(run.name) if named else Markup()
    if main is None:
        sentence = Markup("{} on {} has no evaluation of uncovered faces in results.json yet.")
        return start + sentence.format(run.model, run.data)
    tested = (main.fold is None and not main.folds) or run.test_scorings > 0
    return start + Markup("{} recognises <strong>{}</strong> ({}) of the {} in {} of {}{}; {}{}.").format(
        run.model if main.data == run.data else f"{run.model}, trained on {run.data},",
        "an unknown share" if main.accuracy is None else f"{percent(main.accuracy)} %",
        f"95 % interval {percent(main.interval[0])} to {percent(main.interval[1])} %"
        if main.interval
        else "without an interval",
        count(main.samples, main.unit),
        _where(main),
        main.data,
        "" if main.subset == "all" else f", {tables.SUBSETS.get(main.subset, main.subset)}",
        tables.selection(run, main),
        f", and {tables.scorings(run.test_scorings)}" if tested else "",
    )


def _where(main: Evaluation) -> str:
    seeds = "" if main.seeds == 1 else f" (mean of {main.seeds} seeds)"
    if main.folds:
        return f"{count(main.folds, 'held-out fold')}{seeds}"
    split = f"the {main.split} split" if main.fold is None else f"held-out fold {main.fold} ({main.split})"
    return f"{split}{seeds}"


def _remarks(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before believing the figures; the same remark on several runs is made once."""
    concerned: dict[str, list[str]] = {}
    for run in runs:
        for remark in _remarks_on(run):
            concerned.setdefault(remark, []).append(run.name)
    if len(runs) == 1:
        return list(concerned)
    return [
        f"{'All runs' if len(names) == len(runs) else ', '.join(names)}: {remark}"
        for remark, names in concerned.items()
    ]


def _remarks_on(run: Run) -> Iterator[str]:
    state = run.status.get("state")
    if run.status and state != "finished":
        reason = f" ({run.status['reason']})" if run.status.get("reason") else ""
        yield f"Training is not finished: its state is {state}{reason}."
    if run.option("data.fold") is None and all(entry.split != "test" for entry in run.evaluations):
        yield "There is no test evaluation in results.json."
    if run.test_scorings > 1:
        times = tables.scorings(run.test_scorings)
        yield f"{times[0].upper()}{times[1:]}: a figure that was chosen among them is not independent."
    for key in ("train/loss", "val/loss"):
        epochs, values = run.curve(key)
        broken = epochs[np.isnan(values)]
        if len(broken):
            yield (
                f"{key} is not a finite number in {count(len(broken), 'line')} of metrics.jsonl, "
                f"first at epoch {broken[0]:g}: the curve has a gap there."
            )
    yield from run.remarks


def build_sections(runs: Sequence[Run], album: Album) -> list[Section]:
    """All parts of the report, in order."""
    parts = [
        evaluation_section(runs),
        class_section(runs),
        mistakes_section(runs, album),
        occlusion_section(runs),
        *gallery_sections(runs, album),
        attention_section(runs, album),
        calibration_section(runs),
        training_section(runs),
        protocol_section(runs),
        data_section(runs),
    ]
    return [comparison_section(runs), *parts] if len(runs) > 1 else parts


def comparison_section(runs: Sequence[Run]) -> Section:
    """The runs side by side, and what differs between them."""
    differences = tables.differences_table(runs)
    return Section(
        "comparison",
        "Comparison",
        text=("Rows that differ in data, split, unit or number of samples are no comparison of models.",),
        tables=(tables.comparison(runs), *((differences,) if differences.rows else ())),
        missing=() if differences.rows else ("The runs do not differ in their configuration.",),
    )


def evaluation_section(runs: Sequence[Run]) -> Section:
    """Every evaluation of uncovered faces."""
    table = tables.evaluation_table(runs, occluded=False)
    missing = "There is no evaluation of uncovered faces in results.json."
    return Section(
        "evaluations",
        "Evaluations",
        tables=(table,) if table.rows else (),
        missing=() if table.rows else (missing,),
    )


def class_section(runs: Sequence[Run]) -> Section:
    """Recall of each class and the confusion matrix of each run."""
    evaluated = [(run, run.main) for run in runs if run.main is not None]
    if not evaluated:
        return Section("classes", "Classes", missing=("Without an evaluation there is no figure per class.",))
    charts: list[Chart] = []
    class_lists = list(dict.fromkeys(run.classes for run, _ in evaluated))
    for number, classes in enumerate(class_lists, start=1):
        group = [(run, main) for run, main in evaluated if run.classes == classes]
        charts.append(_recall_chart(numbered("recall", number, len(class_lists)), group))
    for number, (run, main) in enumerate(evaluated, start=1):
        charts.append(_confusion_chart(numbered("confusion", number, len(evaluated)), run, main))
    return Section("classes", "Classes", charts=tuple(charts))


def _recall_chart(name: str, group: Sequence[tuple[Run, Evaluation]]) -> Chart:
    runs, evaluations = [run for run, _ in group], [main for _, main in group]
    classes = runs[0].classes
    totals = [evaluation.confusion.sum(axis=1) for evaluation in evaluations]
    same = all(np.array_equal(total, totals[0]) for total in totals)
    names = [f"{c} ({count(int(n))})" for c, n in zip(classes, totals[0], strict=True)] if same else classes
    spoken = [
        f"{run.name}: "
        + ", ".join(f"{c} {percent(r)} %" for c, r in zip(classes, evaluation.recall, strict=True))
        for run, evaluation in group
    ]
    where = "; ".join(dict.fromkeys(tables.place(evaluation) for evaluation in evaluations))
    per_seed = ", counted once for each seed," if any(e.seeds > 1 for e in evaluations) else ""
    counts = f" The number of samples{per_seed} stands in brackets." if same else ""
    return Chart(
        name,
        caption=f"Recall of each class on {where}.{counts}",
        alt=f"Dot chart of the recall of each class. {'; '.join(spoken)}.",
        figure=figures.recall_chart(
            [run.name for run in runs], [evaluation.recall for evaluation in evaluations], names
        ),
        tables=(tables.recall_table(runs, evaluations),),
    )


def _confusion_chart(name: str, run: Run, main: Evaluation) -> Chart:
    mistakes = f"Most frequent mistakes: {'; '.join(tables.worst_confusions(main, run.classes)) or 'none'}."
    counts = "the count" if main.seeds == 1 else "the count over all seeds"
    return Chart(
        name,
        caption=f"Confusion matrix of {run.name} on {tables.place(main)}: of each true class (row), "
        f"the percentage that was taken for each class, and {counts} below it. {mistakes}",
        alt=f"Confusion matrix of {len(run.classes)} classes; the diagonal holds {percent(main.accuracy)} % "
        f"of {count(main.samples, main.unit)}. {mistakes}",
        figure=figures.confusion_chart(main.confusion, run.classes),
        tables=(tables.confusion_table(main, run.classes),),
    )


def occlusion_section(runs: Sequence[Run]) -> Section:
    """Accuracy against the covered part of the face, and the figures of each kind of occlusion."""
    table = tables.evaluation_table(runs, occluded=True)
    if not table.rows:
        missing = (
            "There is no evaluation under occlusion in results.json: `ferdist evaluate RUN --occlusion`."
        )
        return Section("occlusion", "Occlusion", missing=(missing,))
    chosen = [(run, entries) for run in runs if (entries := occluded_entries(run))]
    groups = _occlusion_groups(chosen, several=len(runs) > 1)
    where = "; ".join(dict.fromkeys(_measured_on(entries[0]) for _, entries in chosen))
    text = f"Accuracy as more of each image is covered, measured on {where}."
    shading = "The shading is the 95 % interval of each point."
    if len(runs) > 1:
        shading = "A point is the mean over the fills, the shading its 95 % interval where that is known."
    unknown = "Of no evaluation under occlusion is the covered fraction known: there is no curve."
    summaries = [(run, robustness_of(run, entries[0])) for run, entries in chosen]
    known = [(run.name, summary) for run, summary in summaries if summary is not None]
    compared, missing_pairs = _compared(chosen)
    return Section(
        "occlusion",
        "Occlusion",
        text=(f"{text} {shading}",) if groups else (),
        missing=(*(() if groups else (unknown,)), *_unlike_cells(chosen), *missing_pairs),
        charts=tuple(
            _occlusion_chart(numbered("occlusion", number, len(groups)), title, lines, chosen)
            for number, (title, lines) in enumerate(groups.items(), start=1)
        ),
        tables=(tables.robustness_table(known), *((compared,) if compared.rows else ())),
        folded_tables=(table,),
    )


def _occlusion_chart(
    name: str, title: str, lines: Sequence[Series], chosen: Sequence[tuple[Run, Sequence[Evaluation]]]
) -> Chart:
    falls = [f"{line.label} from {percent(line.y[0])} to {percent(line.y[-1])} %" for line in lines]
    return Chart(
        name,
        caption=f"Accuracy against the covered part of the image: {title}.",
        alt=f"Line chart of accuracy against the covered part of the image, {title}: {'; '.join(falls)}.",
        figure=figures.line_chart(
            lines,
            x_label="covered part of the image",
            y_label="accuracy",
            x_percent=True,
            y_percent=True,
            y_from_zero=True,
            baseline=_majority([entries[0] for _, entries in chosen]),
        ),
        tables=(tables.series_table(lines, "Covered", f"Accuracy by covered part: {title}"),),
    )


def _unlike_cells(chosen: Sequence[tuple[Run, Sequence[Evaluation]]]) -> tuple[str, ...]:
    """A warning where the means of the runs are not over the same cells."""
    cells = [frozenset(_cells(entries)) for _, entries in chosen]
    if len(set(cells)) == 1:
        return ()
    counts = ", ".join(f"{run.name} {len(own)}" for (run, _), own in zip(chosen, cells, strict=True))
    common = len(cells[0].intersection(*cells[1:]))
    return (
        f"The runs were evaluated under different cells of the benchmark ({counts}, {common} in common): "
        "means over fills, severities and kinds are not of the same images. A paired difference is over what "
        "both have.",
    )


def _compared(chosen: Sequence[tuple[Run, Sequence[Evaluation]]]) -> tuple[Table, tuple[str, ...]]:
    """Paired differences of all runs to the first, and why there is none for some."""
    comparisons, missing = [], []
    first = grids_of(*chosen[0])
    for run, entries in chosen[1:]:
        own = grids_of(run, entries)
        if not first or not own:
            missing.append(
                f"{run.name}: without both runs' predictions/occlusion/ there is no paired difference."
            )
            continue
        try:
            comparisons.append((run.name, compare_benchmarks(own, first)))
        except RunError as error:
            missing.append(f"{run.name} against {chosen[0][0].name}: {error}.")
    return tables.paired_table(chosen[0][0].name, comparisons), tuple(missing)


def _measured_on(evaluation: Evaluation) -> str:
    samples, views = (
        count(evaluation.samples, evaluation.unit),
        tables.TTA.get(evaluation.tta, evaluation.tta),
    )
    return f"{tables.place(evaluation)} of {evaluation.data} ({samples}, {views})"


def _occlusion_groups(
    chosen: Sequence[tuple[Run, Sequence[Evaluation]]], *, several: bool
) -> dict[str, list[Series]]:
    """The curves of each chart, by its title: a chart per fill with a line per kind, or, for several runs, a
    chart per kind with a line per run, the mean over the fills. Kinds with one covered fraction have none."""
    groups: dict[str, list[Series]] = {}
    for number, (run, entries) in enumerate(chosen):
        curves: dict[tuple[str, str], dict[float, list[Evaluation]]] = {}
        for entry in entries:
            damage = entry.occlusion
            if damage is not None and damage.covered is not None:
                curve = curves.setdefault((damage.kind, "" if several else damage.fill), {})
                curve.setdefault(damage.covered, []).append(entry)
        curves = {key: points for key, points in curves.items() if len(points) > 1}
        intervals = _intervals(run, entries, [p for points in curves.values() for p in points.values()])
        for (kind, fill), points in curves.items():
            title = kind_label(kind) if several else tables.FILLS.get(fill, fill)
            lines = groups.setdefault(title, [])
            name, colour = (run.name, number) if several else (kind_label(kind), len(lines))
            lines.append(_occlusion_line(run, points, intervals, name, colour=colour))
    return groups


def _intervals(
    run: Run, entries: Sequence[Evaluation], points: Sequence[Sequence[Evaluation]]
) -> dict[Cells, Interval | None]:
    """95 % intervals of the mean accuracy over each point's evaluations, by their cells.

    Args:
        run: has the predictions, without which a mean over several has no interval.
        entries: all evaluations under occlusion that the run is shown with.
        points: evaluations under occlusion, those of a point together.
    """
    known = {_cells(point): point[0].interval for point in points if len(point) == 1}
    means = [_cells(point) for point in points if len(point) > 1]
    grids = grids_of(run, entries) if means else ()
    return known | (dict(zip(means, mean_intervals(grids, means), strict=True)) if grids else {})


def _occlusion_line(
    run: Run,
    covered: Mapping[float, Sequence[Evaluation]],
    intervals: Mapping[Cells, Interval | None],
    name: str,
    *,
    colour: int,
) -> Series:
    """Accuracy from the uncovered face, where it was scored under the same conditions, on."""
    conditions = next(iter(covered.values()))[0].conditions
    clean = [e for e in run.evaluations if e.occlusion is None and e.conditions == conditions][:1]
    points = [(0.0, clean, entry.interval) for entry in clean]
    points += [(at, [*entries], intervals.get(_cells(entries))) for at, entries in sorted(covered.items())]
    known = [[np.nan if e.accuracy is None else e.accuracy for e in entries] for _, entries, _ in points]
    bounds = [interval or (np.nan, np.nan) for _, _, interval in points]
    return Series(
        label=name,
        x=np.array([at for at, _, _ in points], float),
        y=np.array([np.mean(values) for values in known], float),
        low=np.array([low for low, _ in bounds], float),
        high=np.array([high for _, high in bounds], float),
        colour=colour,
    )


def _cells(entries: Sequence[Evaluation]) -> Cells:
    return tuple(o.cell for entry in entries if (o := entry.occlusion) is not None)


def _majority(evaluations: Sequence[Evaluation]) -> tuple[float, str] | None:
    """Accuracy of always answering the most frequent class, where it is the same for all evaluations."""
    totals = [evaluation.confusion.sum(axis=1) for evaluation in evaluations]
    if not totals[0].sum() or any(not np.array_equal(total, totals[0]) for total in totals):
        return None
    return float(totals[0].max() / totals[0].sum()), "always the most frequent class"


def calibration_section(runs: Sequence[Run]) -> Section:
    """Whether the probabilities can be believed."""
    names, groups, missing = [], [], []
    for run in runs:
        predictions = predictions_of(run, run.main) if run.main else None
        if predictions is None:
            start = f"{run.name}: " if len(runs) > 1 else ""
            missing.append(f"{start}No file in predictions/ gives the figures of the main evaluation again.")
        else:
            names.append(run.name)
            groups.append(figures.calibrate(predictions.label, predictions.probabilities))
    if not groups:
        return Section("calibration", "Calibration", missing=tuple(missing))
    errors = "; ".join(
        f"{run.name} {percent(run.main.ece)} %" for run in runs if run.name in names and run.main is not None
    )
    chart = Chart(
        "calibration",
        caption="Accuracy against confidence; on the dotted line they agree. Below: the share of samples.",
        alt=f"Reliability diagram over 15 bins of confidence. Expected calibration error: {errors}.",
        figure=figures.reliability_chart(names, groups),
        tables=(tables.calibration_table(names, groups),),
    )
    text = (
        f"Expected calibration error over 15 bins of equal width: {errors}. Points below the dotted line are "
        "answers given with more confidence than they deserve.",
    )
    return Section("calibration", "Calibration", text=text, charts=(chart,), missing=tuple(missing))


def training_section(runs: Sequence[Run]) -> Section:
    """Learning curves."""
    trained = [run for run in runs if run.history]
    if not trained:
        missing = "There is no line in metrics.jsonl: nothing is known about the course of training."
        return Section("training", "Training", missing=(missing,))
    charts = []
    for name, title, keys, in_percent in (
        ("loss", "Loss", ("train/loss", "val/loss"), False),
        ("accuracy", "Accuracy", ("train/accuracy", "val/accuracy"), True),
        ("learning-rate", "Learning rate", ("train/lr",), False),
    ):
        lines = _learning_lines(runs, keys)
        if not lines:
            continue
        spoken = "; ".join(_course(line, in_percent) for line in lines if line.label)
        charts.append(
            Chart(
                name,
                caption=f"{title} by epoch." + (_legend_note(runs) if len(keys) > 1 else ""),
                alt=f"Line chart of the {title.lower()} by epoch: {spoken}.",
                figure=figures.line_chart(
                    lines, x_label="epoch", y_label=title.lower(), y_percent=in_percent
                ),
                tables=(),
            )
        )
    text = (
        "Training figures are means over the augmented batches, in the course of the epoch; "
        "val figures are measured at the end of an epoch on unchanged images.",
    )
    folded = tuple(tables.history_table(run) for run in trained)
    return Section("training", "Training", text=text, charts=tuple(charts), folded_tables=folded)


def _learning_lines(runs: Sequence[Run], keys: Sequence[str]) -> list[Series]:
    """Val before train, so that it lies on top; one colour per run, or per key where there is one run."""
    lines = []
    several = len(runs) > 1
    for key in sorted(keys, reverse=True):
        for number, run in enumerate(runs):
            epochs, values = run.curve(key)
            if not len(epochs):
                continue
            train = key.startswith("train/")
            epochs, values = _thin(epochs, values) if train else (epochs, values)
            behind = train and len(keys) > 1
            lines.append(
                Series(
                    label=("" if behind else run.name) if several else key.partition("/")[0],
                    x=epochs,
                    y=values,
                    colour=number if several else int(not train),
                    dash=1 if behind and several else 0,
                    marks=not train and len(epochs) <= 40,
                    faint=behind,
                )
            )
    return lines


def _thin(epochs: Floats, values: Floats) -> tuple[Floats, Floats]:
    """At most ``TRAIN_POINTS`` points: means of consecutive ones, NaN where one of them is."""
    parts = min(TRAIN_POINTS, len(values))
    return (
        np.array([part.mean() for part in np.array_split(epochs, parts)]),
        np.array([part.mean() for part in np.array_split(values, parts)]),
    )


def _legend_note(runs: Sequence[Run]) -> str:
    return " Solid with marks: val; thin and dashed: train." if len(runs) > 1 else ""


def _course(line: Series, in_percent: bool) -> str:
    finite = line.y[~np.isnan(line.y)]
    if not len(finite):
        return f"{line.label} is nowhere a number"
    first, last = (f"{percent(y)} %" if in_percent else f"{y:.3g}" for y in (finite[0], finite[-1]))
    return f"{line.label} from {first} to {last}"


def protocol_section(runs: Sequence[Run]) -> Section:
    """How the figures came about: protocol, environment, configuration."""
    texts = [
        (f"Configuration of {run.name}: config.yaml", run.config_text)
        for run in runs
        if run.config_text is not None
    ]
    plain = [run for run in runs if run.config_text is None]
    folded = tuple(tables.configuration_table(run) for run in plain)
    return Section(
        "protocol",
        "Protocol and environment",
        tables=(tables.protocol_table(runs), tables.environment_table(runs)),
        folded_tables=folded,
        folded_texts=tuple(texts),
        points=tables.definitions(),
    )


def data_section(runs: Sequence[Run]) -> Section:
    """What the data hold, by the manifests of the betons."""
    manifests = {str(run.manifest.get("sha256")): run.manifest for run in runs if run.manifest is not None}
    if not manifests:
        return Section("data", "Data", missing=("No manifest of the data can be read here.",))
    text, shown, folded = [], [], []
    for checksum, manifest in manifests.items():
        name = manifest.get("name", "the data")
        text.append(f"{name}: {count(int(manifest['samples']), 'sample')}, beton sha256 {checksum}.")
        shown.append(tables.parts_table(manifest))
        folded.append(tables.audit_table(manifest))
    return Section(
        "data",
        "Data",
        text=tuple(text),
        tables=tuple(table for table in shown if table.rows),
        folded_tables=tuple(table for table in folded if table.rows),
    )
