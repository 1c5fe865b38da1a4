"""Where the networks look: CBAM's spatial gates and Grad-CAM on faces as they are and covered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from ferdist.augment.kinds import kind_label
from ferdist.charts import short
from ferdist.data.record import Integers
from ferdist.errors import DataError, FerdistError
from ferdist.evaluation.attention import Watched
from ferdist.evaluation.model import load_trained
from ferdist.reporting.album import HIDDEN, MOST_RUNS, Album, Tile, tile_chart
from ferdist.reporting.load import Run
from ferdist.reporting.page import Chart, Section
from ferdist.table import Cells, Number, Table, count, percent
from ferdist.training.liveness import DEAD, by_gate

PER_CLASS: Final = 8
"""Faces of each class that the scores of attention are means over."""
MOST_ROWS: Final = 8
"""Faces in a chart."""
PICTURED: Final = ("eye_band", "mask")
"""Kinds of `attention.CELLS` that there are pictures of, each of other faces."""


@dataclass(frozen=True)
class _Looked:
    """Where the network of a run looks.

    Attributes:
        name: of the run where there are several, else None.
        rounds: sample numbers, one of each class in each round.
        watched: all of them, in this order, under each of `attention.CELLS`.
    """

    run: Run
    name: str | None
    rounds: list[Integers]
    watched: list[Watched]


def attention(runs: Sequence[Run], album: Album) -> Section:
    """Pictures of gates and evidence, and how much of them lies on the covered part."""
    title = "Where the model looks"
    several = len(runs) > 1
    looked: list[_Looked] = []
    missing: list[str] = []
    for run in runs[:MOST_RUNS]:
        try:
            looked.append(_look(run, album, several))
        except FerdistError as error:
            missing.append(f"{run.name}: " * several + f"There is no attention to show here: {error}.")
    if len(runs) > MOST_RUNS:
        missing.append(f"Only the first {MOST_RUNS} of {len(runs)} runs are shown here.")
    if not looked:
        return Section("attention", title, missing=missing)
    if not album.shown:
        missing.append(HIDDEN)
    shown = [(one, *_pictured(one, kind)) for one in looked for kind in PICTURED]
    lives = Table.of("Gates at the end of the training", _lives(looked))
    text = [
        "Evidence is Grad-CAM, taken place by place: what in the features spoke for the predicted class. "
        "A spatial gate is what CBAM multiplied the features with. In each picture yellow is the most "
        "and dark blue the least, however small the difference: the tables have the numbers. Such maps "
        "hint at what a network relies on; they do not prove it.",
        "The tables give the share of the evidence on the covered part, and the mean of a gate there "
        "over its mean everywhere: in the original face, and covered. All of it is computed in fp32.",
    ]
    if lives.rows:
        text.append(f"A channel gate whose deviation across images is below {DEAD} is a constant.")
    text += [
        f"{one.run.name} is represented by the first of its runs, {one.run.folder.name}."
        for one in looked
        if one.run.main is not None and (one.run.main.folds or one.run.main.seeds > 1)
    ]
    return Section(
        "attention",
        title,
        text=text,
        missing=missing,
        charts=[_chart(*one) for one in shown] if album.shown else (),
        tables=(
            Table.of("Share of evidence on the covered part, means over faces", _shares(looked)),
            Table.of("Spatial gates of CBAM on original faces, means over faces", _gates(looked)),
            lives,
        ),
        folded_tables=() if album.shown else [_faces_table(*one) for one in shown],
    )


def _look(run: Run, album: Album, several: bool) -> _Looked:
    """Look into a run with the checkpoint of its main evaluation.

    Raises:
        FerdistError: if data or checkpoint are not available, or the network has no features to look at.
    """
    if run.main is None:
        raise DataError("the run was not evaluated")
    faces = album.faces(run, run.main)
    trained = load_trained(str(run.folder), run.main.checkpoint or None, torch.device("cpu"))
    trained.check_fit(faces.beton)
    rounds, watched = faces.watch(trained, PER_CLASS)
    return _Looked(run, run.name if several else None, rounds, watched)


def _pictured(looked: _Looked, kind: str) -> tuple[Watched, range]:
    """The faces under a kind of cover, and the rows that there are pictures of: other ones for each kind."""
    number = min(PICTURED.index(kind), len(looked.rounds) - 1)
    start = sum(map(len, looked.rounds[:number]))
    watched = next(one for one in looked.watched if one.cell.kind == kind)
    return watched, range(start, start + min(len(looked.rounds[number]), MOST_ROWS))


def _chart(looked: _Looked, watched: Watched, rows: range) -> Chart:
    maps = ("gate", "evidence") if watched.gate_size else ("evidence",)
    pictures, covered, spoken, tiles = watched.pictures(), 1 + len(maps), [], []
    classes = looked.run.classes
    for row in rows:
        plain, hidden = (
            f"says {short(name, 12)} {percent(p, 0)} %" for name, p in _answers(looked, watched, row)
        )
        texts = {0: f"{short(classes[watched.label[row]], 12)}: {plain}", covered: hidden}
        tiles.append([Tile(pixels, texts.get(number, "")) for number, pixels in enumerate(pictures[row])])
        spoken.append(f"{texts[0]}, covered {hidden}")
    gate = "the finest spatial gate of CBAM and " if watched.gate_size else ""
    kind = kind_label(watched.cell.kind)
    return Chart(
        "attention",
        caption=f"{looked.run.name}, {kind}: each face, {gate}the evidence; original on the left, covered on "
        "the right. Above: its label, and what the network says.",
        alt=f"Faces with {gate}Grad-CAM as heat maps, original and covered: {kind}. {'; '.join(spoken)}.",
        figure=tile_chart(tiles, ("face", *maps, "covered", *maps)),
        table=_faces_table(looked, watched, rows),
    )


def _answers(looked: _Looked, watched: Watched, row: int) -> list[tuple[str, float]]:
    """The predicted class of a face and its probability, original and covered."""
    rows = [looks.probabilities[row] for looks in watched.looks]
    return [(looked.run.classes[p.argmax()], float(p.max())) for p in rows]


def _faces_table(looked: _Looked, watched: Watched, rows: range) -> Table:
    """The faces of a chart: answers, and how much of the evidence lies on the covered part."""
    inside, gate = watched.evidence_inside(), watched.gate_inside()
    cells = []
    for row in rows:
        (plain, p_plain), (covered, p_covered) = _answers(looked, watched, row)
        cells.append(
            {
                "Sample": Number(watched.index[row]),
                "True class": looked.run.classes[watched.label[row]],
                "Says": plain,
                "Probability %": percent(p_plain),
                "Covered: says": covered,
                "Covered: probability %": percent(p_covered),
                "Evidence there %": percent(inside[0, row]),
                "Covered: evidence there %": percent(inside[1, row]),
                **_ratios(None if gate is None else gate[:, row]),
            }
        )
    return Table.of(f"{looked.run.name}, {kind_label(watched.cell.kind)}: the faces shown", cells)


def _ratios(gate: npt.NDArray[np.float32] | None) -> Cells:
    """A gate on the covered part over its mean everywhere, float32 (2,): original and covered."""
    cells = (None, None) if gate is None else (Number(f"{ratio:.3f}") for ratio in gate)
    return dict(zip(("Gate ratio", "Covered: gate ratio"), cells, strict=True))


def _shares(looked: Sequence[_Looked]) -> Iterator[Cells]:
    """Means over all faces looked at: how much of what the network relies on lies on the covered part."""
    for part in looked:
        for one in part.watched:
            inside, gate = one.evidence_inside(), one.gate_inside()
            yield {
                "Run": part.name,
                "Cover": kind_label(one.cell.kind),
                "Area %": percent(one.hidden.mean()),
                "Original %": percent(_mean(inside[0])),
                "Covered %": percent(_mean(inside[1])),
                **_ratios(None if gate is None else gate.mean(axis=1)),
                "Faces": count(len(one.index)),
            }


def _mean(values: npt.NDArray[np.float32]) -> float | None:
    """Mean of the values that are not NaN, None where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _gates(looked: Sequence[_Looked]) -> Iterator[Cells]:
    """How much the spatial gates differ within a face, by the size of the features."""
    for part in looked:
        for (height, width), gate in part.watched[0].looks[0].gates.items():
            values = {"Least": gate.min((1, 2)), "Mean": gate, "Greatest": gate.max((1, 2))}
            yield {
                "Run": part.name,
                "Features": f"{height} × {width}",
                **{name: Number(f"{of_face.mean():.3f}") for name, of_face in values.items()},
            }


def _lives(looked: Sequence[_Looked]) -> Iterator[Cells]:
    """What each gate did with images of val at the end of the training, by the run's metrics.jsonl."""
    names = ("Mean", "SD over channels or pixels", "SD across images")
    for one in looked:
        last = next((gates for line in reversed(one.run.history) if (gates := by_gate(line))), {})
        for gate, numbers in last.items():
            cells = (Number(f"{number:.4f}") for number in numbers)
            yield {"Run": one.name, "Gate": gate, **dict(zip(names, cells, strict=True))}
