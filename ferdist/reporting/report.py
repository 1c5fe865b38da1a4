"""The report: its page with table1.md and the figures beside it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from markupsafe import Markup

from ferdist.charts import inline_svg, png_bytes, svg_bytes
from ferdist.io import read_untrusted, scratch_folder, writing
from ferdist.reporting import table1
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run, load_runs, telling_ends
from ferdist.reporting.networks import compare_runs, is_experiment, load_networks
from ferdist.reporting.page import Content, Section, render
from ferdist.reporting.pooled import pooled_run
from ferdist.reporting.sections import build_sections
from ferdist.reporting.sections.evaluations import main_table
from ferdist.reporting.sections.realfaces import measured_table
from ferdist.reporting.words import DEFINITIONS, SUBSETS, TTA, data_of, place, scorings, selection
from ferdist.table import count, escape, percent


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
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(out) as draft:
            (draft / "figures").mkdir()
            pictures = {}
            for chart in (chart for section in content.sections for chart in section.charts):
                svg = svg_bytes(chart.figure, chart.name)
                (draft / "figures" / f"{chart.name}.svg").write_bytes(svg)
                chart.figure.set_layout_engine("none")  # as in the svg: laying out takes a sixth of the time
                (draft / "figures" / f"{chart.name}.png").write_bytes(png_bytes(chart.figure))
                pictures[chart.name] = Markup(inline_svg(svg, chart.alt))
            (draft / "table1.md").write_text(content.table1, encoding="utf-8")
            (draft / "report.html").write_text(render(content, pictures), encoding="utf-8")
            _publish(draft, out)
    return out / "report.html"


def _publish(draft: Path, out: Path) -> None:
    """Move the files of a finished draft into place, and remove what an earlier report alone has.

    A kill amid it leaves each file as the old or the new one. The page comes last: until then the earlier one
    says which figures were its own.
    """
    earlier = out / "report.html"
    page = read_untrusted(earlier).decode("utf-8", errors="replace") if earlier.exists() else ""
    replaced = {html.unescape(name) for name in re.findall(r'id="([^"]+)-figure"', page)}
    (out / "figures").mkdir(parents=True, exist_ok=True)
    figures = {path.name for path in (draft / "figures").iterdir()}
    for name in sorted(figures):
        (draft / "figures" / name).replace(out / "figures" / name)
    for old in (out / "figures").iterdir():
        if old.name not in figures and old.stem in replaced and old.suffix in (".svg", ".png"):
            old.unlink()
    for name in ("table1.md", "report.html"):
        (draft / name).replace(out / name)


def of_runs(folders: Sequence[Path], album: Album) -> Content:
    """A report on runs as they are, with paired comparisons where there are several."""
    runs = load_runs(folders)
    several = len(runs) > 1
    sections, text = build_sections(runs, album), table1_markdown(runs)
    if several:
        pairs, remarks = compare_runs(folders)
        sections.insert(1, table1.paired_section(pairs, remarks))
        text += "\n" + table1.pairs_markdown("##", pairs, remarks)
    title = f"{len(runs)} runs compared" if several else runs[0].name
    headlines = [headline(run, named=several) for run in runs]
    return Content(title, headlines, remarks_on(runs), sections, text)


def of_networks(folders: Sequence[Path], album: Album) -> Content:
    """A report on the networks of experiments, data set by data set."""
    groups = table1.group_by_data(load_networks(folders))
    several = len(groups) > 1
    runs: list[Run] = []
    headlines: list[Markup] = []
    remarks: list[str] = []
    sections: list[Section] = []
    for group in groups:
        pooled = [run for run in map(pooled_run, group.networks) if run is not None]
        sections.append(table1.table1_section(group))
        if unfinished := table1.unfinished_remark(group):
            remarks.append(f"{group.data}: {unfinished}" if several else unfinished)
        if pooled:
            headlines.append(_group_headline(group.data, pooled))
            sections += build_sections(pooled, album, group.data if several else "")
        runs += [replace(run, name=f"{group.data}/{run.name}") if several else run for run in pooled]
    title = ", ".join(telling_ends([*dict.fromkeys(folder.resolve() for folder in folders)]))
    text = table1.networks_markdown(groups) + _real_faces_markdown(runs)
    return Content(title, headlines, remarks + remarks_on(runs), sections, text)


def table1_markdown(runs: Sequence[Run]) -> str:
    """table1.md: the runs side by side, and the protocol that their scores were measured under."""
    lines = ["# Table 1", "", "Rates in percent.", "", main_table(runs, protocol=True).markdown()]
    lines += [_real_faces_markdown(runs) + "## Protocol", ""]
    for run in runs:
        main = run.main
        how = "no evaluation"
        if main is not None:
            how = f"{selection(run, main)}; {TTA.get(main.tta, main.tta)} per image"
        lines.append(f"- {escape(run.name)}: {escape(f'{how}; {scorings(run.test_scorings)}')}.")
    return "\n".join([*lines, "", *(f"- {escape(sentence)}" for sentence in DEFINITIONS), ""])


def _real_faces_markdown(runs: Sequence[Run]) -> str:
    faces = measured_table(runs)
    return f"## {faces.caption}\n\n{faces.markdown()}\n" if faces.rows else ""


def _group_headline(data: str, runs: Sequence[Run]) -> Markup:
    """The networks on one data set and the accuracy of each, in the order of the table."""
    scored = [
        Markup("{} <strong>{} %</strong> ({})").format(run.name, percent(main.accuracy), place(main))
        for run in runs
        if (main := run.main) is not None
    ]
    return Markup("<b>{}</b>, accuracy: {}.").format(data, Markup(", ").join(scored))


def headline(run: Run, *, named: bool = False) -> Markup:
    """What was measured on what, in one sentence of html; it starts with the run's name where wanted."""
    main = run.main
    start = Markup("<b>{}</b>: ").format(run.name) if named else Markup()
    if main is None:
        sentence = Markup("{} on {} has no evaluation of uncovered faces in results.json yet.")
        return start + sentence.format(run.model, run.data)
    tested = main.fold is None or run.test_scorings > 0
    accuracy = Markup("an accuracy of <strong>{} %</strong>").format(percent(main.accuracy))
    return start + Markup("{} has {} ({}) on the {} in {} of {}{}; {}{}.").format(
        run.model if run.is_own(main) else f"{run.model}, trained on {run.data},",
        "an unknown accuracy" if main.accuracy is None else accuracy,
        f"95 % interval {percent(main.interval[0])} to {percent(main.interval[1])} %"
        if main.interval
        else "without an interval",
        count(main.samples, main.unit),
        f"the {main.split} split" if main.fold is None else f"held-out fold {main.fold} ({main.split})",
        data_of(run, main),
        "" if main.subset == "all" else f", {SUBSETS.get(main.subset, main.subset)}",
        selection(run, main),
        f", and {scorings(run.test_scorings)}" if tested else "",
    )


def remarks_on(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before believing the scores; the same remark on several runs is made once."""
    concerned: dict[str, list[str]] = {}
    for run in runs:
        for remark in _remarks(run):
            concerned.setdefault(remark, []).append(run.name)
    if len(runs) == 1:
        return list(concerned)
    return [
        f"{'All runs' if len(names) == len(runs) else ', '.join(names)}: {remark}"
        for remark, names in concerned.items()
    ]


def _remarks(run: Run) -> Iterator[str]:
    state = run.status.get("state")
    if run.status and state != "finished":
        reason = f" ({run.status['reason']})" if run.status.get("reason") else ""
        yield f"Training is not finished: its state is {state}{reason}."
    if run.option("data.fold") is None and all(entry.split != "test" for entry in run.evaluations):
        yield "results.json has no evaluation on test."
    if run.test_scorings > 1:
        times = scorings(run.test_scorings)
        yield f"{times[0].upper()}{times[1:]}: a score chosen among them is not independent."
    for key in ("train/loss", "val/loss"):
        epochs, values = run.curve(key)
        broken = epochs[np.isnan(values)]
        if len(broken):
            yield (
                f"{key} is not a finite number in {count(len(broken), 'line')} of metrics.jsonl, "
                f"first at epoch {broken[0]:g}: the curve has a gap there."
            )
    yield from run.remarks
