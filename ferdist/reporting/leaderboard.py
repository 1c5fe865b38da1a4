"""Models side by side, scored on the same images: a page that loads nothing, and a table in markdown."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from markupsafe import Markup

from ferdist.augment.kinds import kind_label
from ferdist.charts import Line, inline_svg, line_chart, svg_bytes
from ferdist.data.beton import Beton, open_beton
from ferdist.environment import cpu_name
from ferdist.errors import FerdistError, RunError
from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.evaluate import check_identity, folder_of
from ferdist.evaluation.external import load_model
from ferdist.evaluation.model import CHOSEN, UNKNOWN, UNUSED, USED, ScoredModel
from ferdist.evaluation.predict import Scorer
from ferdist.evaluation.predictions import Predictions, place_of
from ferdist.evaluation.records import OF_SPLIT, Evaluation, EvaluationKey, read_results
from ferdist.evaluation.robustness import Summary, benchmark_scores, compare_benchmarks
from ferdist.io import write_text, writing
from ferdist.reporting.page import Chart, Content, Section, render
from ferdist.reporting.words import SUBSETS, TTA
from ferdist.runtime.distributed import choose_device
from ferdist.runtime.folder import RunFolder
from ferdist.table import (
    Number,
    Table,
    count,
    escape,
    percent,
    percent_interval,
    points,
    points_interval,
    short_count,
)

BATCH: Final = 64
ROUNDS: Final = 3
"""Batches that are timed; the fastest counts."""


@dataclass(frozen=True)
class Entry:
    """A model and what was measured of it.

    Attributes:
        name: as it was given, or its card's.
        folder: of its evaluations.
        evaluations: in results.json, with its checkpoint.
        classes: that it was scored on.
    """

    name: str
    model: ScoredModel
    folder: RunFolder
    evaluations: tuple[Evaluation, ...]
    classes: tuple[str, ...]

    def keys(self, split: str, tta: str) -> dict[EvaluationKey, Evaluation]:
        """Its scores on all images of such a split, by what makes them comparable with another model's."""
        plain = (split, tta, "all", "image", None)
        return {
            replace(one.key, checkpoint=""): one
            for one in self.evaluations
            if (one.split, one.tta, one.subset, one.unit, one.occlusion) == plain
        }


@dataclass(frozen=True)
class Row:
    """A line of the leaderboard.

    Attributes:
        clean: on the images as they are.
        cells: under the benchmark, by the cell and the checksum of its images.
        scores: under the cells that all rows have; None where there are none.
        to_first: paired difference to the first row under these, with its interval; None for the first.
        real: on published lists of occluded or turned faces, by the list's name.
        cost: parameters and multiply-adds.
        rate: images a second.
        use: what its training did with the images.
        about: what else is to know.
    """

    entry: Entry
    clean: Evaluation
    cells: Mapping[tuple[Cell, str], Evaluation]
    real: Mapping[str, Evaluation]
    cost: tuple[int | None, int | None]
    rate: float
    use: str
    about: Mapping[str, str]
    scores: Summary | None = None
    to_first: Summary | None = None

    @property
    def name(self) -> str:
        """Of the model."""
        return self.entry.name

    @property
    def score(self) -> float:
        """What rows are ordered by: the mean under occlusion where there is one, else the clean accuracy."""
        return float(self.scores["accuracy"] if self.scores else self.clean.accuracy or 0.0)


@dataclass(frozen=True)
class Board:
    """The rows in their order, and on what they were measured.

    Attributes:
        left_out: cells that some rows lack, or whose images differ.
        remarks: what a reader must know first.
    """

    rows: Sequence[Row]
    beton: Beton
    common: Sequence[tuple[Cell, str]]
    left_out: int
    remarks: Sequence[str] = field(default_factory=tuple)


def write_leaderboard(
    models: Sequence[str],
    out: Path,
    *,
    data: Path | None = None,
    split: str = "val",
    tta: str = "none",
    device: str = "auto",
    trust_code: bool = False,
) -> Path:
    """Write a leaderboard of models that were evaluated before, and time them here and now.

    Args:
        models: each as `load_model` takes it.
        out: folder for leaderboard.html and leaderboard.md, made if it is not there.
        data: the beton that all were scored on, by default the one that their folders name.
        split, tta: of the scores.
        device: where they are timed.
        trust_code: as for `load_model`.

    Returns:
        Path of leaderboard.html.

    Raises:
        ConfigError, DataError, RunError: if a model cannot be loaded or was not evaluated, or they were
            scored on different data or by different labels; nothing is written then.
    """
    place = choose_device(device, 0)
    entries = [_entry(model, place, trust_code) for model in dict.fromkeys(models)]
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        entries = [replace(one, name=str(one.folder.path)) for one in entries]
    board = _board(entries, data, split, tta, place)
    content = _content(board, place)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        charts = [chart for section in content.sections for chart in section.charts]
        pictures = {one.name: Markup(inline_svg(svg_bytes(one.figure, one.name), one.alt)) for one in charts}
        write_text(out / "leaderboard.md", content.table1)
        write_text(out / "leaderboard.html", render(content, pictures))
    return out / "leaderboard.html"


def _entry(name: str, device: torch.device, trust_code: bool) -> Entry:
    model = load_model(name, None, device, trust_code=trust_code)
    folder = folder_of(model, name)
    if not folder.results.exists():
        data = "" if model.name is None else " --data FILE.beton"
        raise RunError(
            f"{name}: not evaluated yet, {folder.results} is missing: run `ferdist evaluate {name}{data}`"
        )
    results = read_results(folder.results)
    own = tuple(
        one
        for one in results.evaluations
        if one.checkpoint == model.checkpoint and one.step in (None, model.step)
    )
    return Entry(model.name or folder.path.resolve().name, model, folder, own, results.classes)


def _board(entries: Sequence[Entry], data: Path | None, split: str, tta: str, device: torch.device) -> Board:
    keys = [entry.keys(split, tta) for entry in entries]
    beton = None if data is None else open_beton(data)
    common = [key for key in keys[0] if all(key in other for other in keys) and _is_of(key, beton)]
    if len(common) != 1:
        scored = "; ".join(
            f"{entry.name}: {', '.join(f'{k.data} {k.beton_sha256[:12]}' for k in found) or 'nothing'}"
            for entry, found in zip(entries, keys, strict=True)
        )
        raise RunError(
            f"these models have {'no' if not common else 'several'} data in common whose {split} they were "
            f"scored on ({TTA.get(tta, tta)}): {scored}: evaluate all on one beton"
            f"{', and give it as --data' if common else ''}"
        )
    (key,) = common
    beton = _opened(entries, key) if beton is None else beton
    cleans = [found[key] for found in keys]
    totals = [one.confusion.sum(axis=1) for one in cleans]
    for entry, total in zip(entries, totals, strict=True):
        if entry.classes != entries[0].classes or not np.array_equal(total, totals[0]):
            raise RunError(
                f"{entry.name} and {entries[0].name} were scored by different labels: see data.labels"
            )
    rows = [_row(entry, clean, key, beton, device) for entry, clean in zip(entries, cleans, strict=True)]
    return _ranked(rows, beton)


def _is_of(key: EvaluationKey, beton: Beton | None) -> bool:
    return beton is None or key.beton_sha256 == beton.manifest.sha256


def _opened(entries: Sequence[Entry], key: EvaluationKey) -> Beton:
    """The data that a model's folder names, if they are there."""
    for entry in entries:
        try:
            beton = open_beton(Path(entry.folder.stored_config().data.path))
        except FerdistError:
            continue
        if _is_of(key, beton):
            return beton
    raise RunError(f"{key.data} ({key.beton_sha256[:12]}) is not where the models' folders say: give --data")


def _row(entry: Entry, clean: Evaluation, key: EvaluationKey, beton: Beton, device: torch.device) -> Row:
    cells, real = {}, {}
    for one in entry.evaluations:
        if one.occlusion is not None and replace(one.conditions, checkpoint="") == key:
            cells[one.occlusion.cell, one.occlusion.checksum] = one
        plain = (one.beton_sha256, one.tta, one.unit, one.occlusion) == (
            key.beton_sha256,
            key.tta,
            "image",
            None,
        )
        if plain and one.subset not in OF_SPLIT and not one.subset.endswith("_no_copies"):
            real[one.subset] = one
    model = entry.model
    if model.name is not None:
        check_identity(model, beton, entry.folder)
    rate = _rate(model.scorer(beton, device, key.tta), beton, device)
    return Row(
        entry,
        clean,
        cells,
        real,
        model.cost(beton),
        rate,
        model.use_of(beton, key.split),
        {topic: text for topic, text in model.about(beton).items() if text},
    )


def _rate(scorer: Scorer, beton: Beton, device: torch.device) -> float:
    """Images per second, from uint8 to probabilities."""
    shape = (BATCH, *beton.manifest.image_shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.to(device)
    seconds = []
    for _ in range(1 + ROUNDS):  # the first one warms up
        start = time.perf_counter()
        scorer(images).cpu()
        seconds.append(time.perf_counter() - start)
    return BATCH / min(seconds[1:])


def _ranked(rows: Sequence[Row], beton: Beton) -> Board:
    """The rows by their scores under the cells that all of them have, or else by their clean accuracy."""
    remarks = []
    have = [row for row in rows if row.cells]
    shared = set.intersection(*({*row.cells} for row in rows))
    common = sorted(shared, key=lambda one: place_of(one[0]))
    every = {cell for row in rows for cell, _ in row.cells}
    if common:
        rows = [
            replace(row, scores=benchmark_scores([row.clean, *(row.cells[one] for one in common)])[0])
            for row in rows
        ]
    elif have:
        lacking = ", ".join(row.name for row in rows if not row.cells)
        why = f"{lacking} not evaluated under occlusion" if lacking else "no cell of the benchmark in common"
        remarks.append(f"Ranked by clean accuracy: {why}.")
    rows = sorted(rows, key=lambda row: -row.score)
    if common:
        first = _grid(rows[0], common)
        rows = [
            replace(row, to_first=compare_benchmarks([_grid(row, common)], [first])) if number else row
            for number, row in enumerate(rows)
        ]
    for use in dict.fromkeys(row.use for row in rows if row.use != UNUSED):
        names = ", ".join(row.name for row in rows if row.use == use)
        remarks.append(f"{names}: {USES[use]}.")
    return Board(rows, beton, common, len(every) - len(common), remarks)


USES: Final = {
    CHOSEN: "the epoch was chosen on these images, so the scores lean upward",
    USED: "trained or chosen on these images, so the scores lean upward",
    UNKNOWN: "whether the training used these images is unknown",
}


def _grid(row: Row, common: Sequence[tuple[Cell, str]]) -> Predictions:
    """Its predictions under the cells that all rows have."""
    found = Predictions.load(row.entry.folder.predictions / row.cells[common[0]].predictions)
    known = list(zip(found.cells, found.checksums, strict=True))
    if any(one not in known for one in common):
        raise RunError(f"{row.name}: its predictions are not those that were scored: evaluate it again")
    at = [known.index(one) for one in common]
    cells, checksums = zip(*common, strict=True)
    return replace(found, cells=cells, checksums=checksums, probabilities=found.probabilities[at])


def _content(board: Board, device: torch.device) -> Content:
    rows, clean = board.rows, board.rows[0].clean
    kinds = list(rows[0].scores["kinds"]) if rows[0].scores else []
    measure = "under occlusion" if board.common else "on uncovered faces"
    best = Markup("{} is first of {} models {}, on {} of {}: accuracy <strong>{} %</strong>.").format(
        rows[0].name, len(rows), measure, clean.split, clean.data, percent(rows[0].score)
    )
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    threads = count(torch.get_num_threads(), "thread")
    table, costs, by_kind = _main_table(board), _cost_table(board), _kind_table(board, kinds)
    notes = [
        f"All were scored on the same {count(clean.samples, 'image')}: {clean.data}, {clean.split}, "
        f"beton sha256 {clean.beton_sha256[:16]}; {TTA.get(clean.tta, clean.tta)} per image.",
        "Covered images are made at the data's size, the same bytes for every model (by checksum), and only "
        "then resized to what a model takes.",
        *_cells_text(board, kinds),
        "95 % intervals are a bootstrap over subjects, or over groups of copies where subjects are unknown. "
        "A difference to the first is paired by image; one whose interval includes 0 may be none. "
        "Neither includes what another seed of the training would change.",
        f"Images per second: measured for this page on {where}, {threads}, {BATCH} images at once, resizing "
        f"included, the fastest of {ROUNDS}. Other work on the machine slows it.",
        "Parameters and multiply-adds (for one image) are counted in the network or its graph; those of an "
        "ONNX file include the statistics of its batch norms.",
        "Models that were trained on other images, or chosen on these, differ in more than their networks: "
        "read the cards.",
    ]
    sections = [
        Section("board", "Scores", tables=(table, costs)),
        *(
            [Section("kinds", "By kind of occlusion", charts=_curves(board, kinds), tables=(by_kind,))]
            if kinds
            else []
        ),
        Section("cards", "The models", points=[_card(row) for row in rows]),
        Section("protocol", "How to read this", points=notes),
    ]
    listed = [*map(_card, rows), *notes]
    texts = [f"# {escape(best.striptags())}", *(f"> {escape(remark)}" for remark in board.remarks)]
    texts += [table.markdown(), *([by_kind.markdown()] if kinds else []), costs.markdown()]
    texts.append("".join(f"- {escape(one)}\n" for one in listed))
    return Content(
        f"{clean.data} {clean.split}",
        [best],
        board.remarks,
        sections,
        "\n".join(text if text.endswith("\n") else f"{text}\n" for text in texts),
        kind="leaderboard",
        beside="leaderboard.md",
    )


def _cells_text(board: Board, kinds: Sequence[str]) -> list[str]:
    if not board.common:
        return []
    text = (
        f"Under occlusion: the mean accuracy on covered or noisy faces, over {count(len(kinds), 'kind')} "
        f"({', '.join(map(kind_label, kinds))}), {count(len(board.common), 'cell')} of the benchmark."
    )
    if board.left_out:
        text += (
            f" {count(board.left_out, 'cell')} left out, which not all models have with the same images (the "
            "fill mean is that of a model's training data)."
        )
    return [text]


def _main_table(board: Board) -> Table:
    lists = dict.fromkeys(name for row in board.rows for name in row.real)
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(board.rows, start=1):
        difference = row.to_first
        cells: dict[str, Any] = {
            "Model": f"{number}. {row.name}",
            "Under occlusion": percent(row.scores["accuracy"]) if row.scores else None,
            "Difference to first, points": points(difference["difference"]) if difference else None,
            "95 % interval": points_interval(difference["difference_ci95"]) if difference else None,
            "Clean": percent(row.clean.accuracy),
            "95 % interval of clean": percent_interval(row.clean.interval),
        }
        for name in lists:
            one = row.real.get(name)
            label = f"{SUBSETS.get(name, name)}"
            cells[label[0].upper() + label[1:]] = (
                None if one is None else Number(f"{percent(one.accuracy)} ({count(one.samples)})")
            )
        rows.append(cells | {"Used these images": row.use})
    return Table.of("Accuracy in percent", rows)


def _cost_table(board: Board) -> Table:
    names = ("Parameters", "Multiply-adds")
    return Table.of(
        "Size and speed",
        (
            {
                "Model": row.name,
                **{
                    name: None if number is None else short_count(number)
                    for name, number in zip(names, row.cost, strict=True)
                },
                "Images per second": Number(f"{row.rate:,.0f}"),
            }
            for row in board.rows
        ),
    )


def _kind_table(board: Board, kinds: Sequence[str]) -> Table:
    return Table.of(
        "Accuracy by kind, in percent (means over severities and fills)",
        (
            {
                "Model": row.name,
                **{kind_label(kind): percent(row.scores["kinds"][kind]["accuracy"]) for kind in kinds},
            }
            for row in board.rows
            if row.scores
        ),
    )


def _curves(board: Board, kinds: Sequence[str]) -> list[Chart]:
    """Accuracy as squares cover more, where the rows have several sizes of them."""
    if "square" not in kinds:
        return []
    lines = []
    for number, row in enumerate(board.rows):
        kind = (row.scores or {})["kinds"]["square"]
        shares = [0.0, *kind["covered"]]
        values = [row.clean.accuracy or 0.0, *kind["by_severity"]]
        lines.append(Line(row.name, np.array(shares, float), np.array(values, float), colour=number))
    falls = "; ".join(f"{one.label} from {percent(one.y[0])} to {percent(one.y[-1])} %" for one in lines)
    chart = line_chart(
        lines,
        x_label="covered by a square",
        y_label="accuracy",
        x_percent=True,
        y_percent=True,
        y_from_zero=True,
    )
    caption = "Accuracy as a square at a random place covers more of the face."
    return [Chart("squares", caption, f"Line chart: {falls}.", chart)]


def _card(row: Row) -> str:
    facts = "; ".join(f"{topic}: {text.rstrip('.')}" for topic, text in row.about.items())
    return f"{row.name}. {facts[:1].upper()}{facts[1:]}."
