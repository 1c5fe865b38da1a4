"""What the occlusion benchmark does to a face."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ferdist.augment.kinds import KINDS, fill_label, kind_label
from ferdist.errors import FerdistError
from ferdist.evaluation.attention import choose_faces
from ferdist.evaluation.benchmark import Cell, covered_fraction, grid
from ferdist.evaluation.data import ScoredData
from ferdist.evaluation.records import Evaluation
from ferdist.reporting.album import HIDDEN, Album, Tile, in_rows, left_out, pixels_of, tile_chart
from ferdist.reporting.load import Run, occluded_entries
from ferdist.reporting.page import Chart, Section
from ferdist.table import Number, Table, count, percent


def gallery(runs: Sequence[Run], album: Album) -> Section | None:
    """The images that the benchmark makes of two faces of each data set that was scored under occlusion."""
    scored: dict[tuple[str, str], tuple[Run, list[Evaluation]]] = {}
    for run in runs:
        if entries := occluded_entries(run):
            scored.setdefault((entries[0].data, entries[0].split), (run, entries))
    if not scored:
        return None
    title = "What the benchmark does to a face"
    if not album.shown:
        return Section("gallery", title, missing=(HIDDEN,))
    charts: list[Chart] = []
    missing = []
    for run, entries in scored.values():
        try:
            charts += _charts(entries, album.faces(run, entries[0]))
        except FerdistError as error:
            missing.append(left_out(run, len(scored) > 1, error))
    text = (
        "Faces of the data, covered as they were for the scores above: these are the very images that were "
        "scored. Where a shape lies is drawn anew for each sample, and is the same for every network.",
    )
    return Section("gallery", title, text=text if charts else (), missing=missing, charts=charts)


def _charts(entries: Sequence[Evaluation], faces: ScoredData) -> Iterator[Chart]:
    """One face under the kinds that have severities, another under those that have none."""
    scored = [o.cell for entry in entries if (o := entry.occlusion) is not None]
    cells = [cell for cell in grid() if cell in scored]  # cells of other versions cannot be made here
    samples = choose_faces(faces.labels.scorable(faces.indices), faces.labels.label, rounds=1)[0]
    for sample, graded in ((samples[-1], True), (samples[0], False)):
        chosen = [cell for cell in cells if (KINDS[cell.kind].severities > 1) == graded]
        if graded:
            fills = {cell.kind: cell.fill for cell in reversed(chosen)}  # the first of each kind
            chosen = [cell for cell in chosen if cell.fill == fills[cell.kind]]
        if chosen:
            yield _chart(sample, chosen, faces, graded=graded)


def _chart(sample: int, cells: Sequence[Cell], faces: ScoredData, *, graded: bool) -> Chart:
    index = np.array([sample])
    face, benchmark = faces.images(index), faces.benchmark(cells)
    plain = Tile(pixels_of(face)[0], "original")
    tiles = {
        cell: Tile(pixels_of(benchmark.cover(face, index, cell))[0], _name(cell, ": " if graded else "\n"))
        for cell in cells
    }
    if graded:
        rows: list[Sequence[Tile]] = [[plain]]
        for kind in dict.fromkeys(cell.kind for cell in cells):
            first, *others = (tile for cell, tile in tiles.items() if cell.kind == kind)
            rows.append([first, *(replace(tile, text="") for tile in others)])
    else:
        rows = in_rows([plain, *tiles.values()])
    height, width = face.shape[2:]
    what = "severities 1 to 5 from left to right" if graded else "kinds of one severity with their fills"
    return Chart(
        "gallery",
        caption=f"Sample {sample}, {faces.labels.classes[faces.labels.label[sample]]}: {what}.",
        alt=f"A face covered in {count(len(cells), 'way')}: "
        f"{', '.join(dict.fromkeys(_name(cell, ' ') for cell in cells))}.",
        figure=tile_chart(rows),
        table=Table.of(
            "What is covered",
            (
                {
                    "Kind": kind_label(cell.kind),
                    "Fill": fill_label(cell.fill) or None,
                    "Severity": Number(cell.severity),
                    "Covered %": percent(covered_fraction(cell, height, width)),
                }
                for cell in cells
            ),
        ),
    )


def _name(cell: Cell, between: str) -> str:
    return between.join(filter(None, (kind_label(cell.kind), fill_label(cell.fill))))
