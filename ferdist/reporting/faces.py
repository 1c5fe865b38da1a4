"""The sections of a report that show faces: mistakes, what the benchmark does, where the networks look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from ferdist.augment.kinds import KINDS, fill_label, kind_label
from ferdist.data.record import Images, Integers
from ferdist.errors import DataError, FerdistError
from ferdist.evaluation.attention import CELLS, Watched, choose_faces, watch
from ferdist.evaluation.benchmark import Cell, covered_fraction, grid
from ferdist.evaluation.evaluate import check_fit
from ferdist.evaluation.model import load_trained
from ferdist.evaluation.predictions import Predictions
from ferdist.reporting import figures, tables
from ferdist.reporting.album import HIDDEN, Album, Faces
from ferdist.reporting.figures import Picture
from ferdist.reporting.load import Evaluation, Run, occluded_entries, predictions_of
from ferdist.reporting.page import Chart, Section, numbered
from ferdist.reporting.tables import MISSING, Table, count, percent
from ferdist.training.liveness import DEAD, by_gate

MOST_RUNS: Final = 3
"""Runs that faces are shown of, the first ones: each costs about half a megabyte of the page."""
MISTAKES: Final = 12
PER_CLASS: Final = 8
"""Faces of each class that the figures of attention are means over."""
MOST_ROWS: Final = 8
"""Faces in a chart of attention."""
PICTURED: Final = ("eye_band", "mask")
"""Kinds of ``attention.CELLS`` that there are pictures of, each of other faces."""


# Mistakes


@dataclass(frozen=True)
class Mistake:
    """A sample that was not recognised.

    Attributes:
        index: its number in the beton.
        true, predicted: classes.
        probability, of_true: of the predicted and of the true class.
    """

    index: int
    true: int
    predicted: int
    probability: float
    of_true: float


def confident_mistakes(predictions: Predictions, most: int = MISTAKES) -> list[Mistake]:
    """The samples that were not recognised with the highest probability of another class, highest first.

    Args:
        predictions: where a sample is in them several times (once for each seed), its mean counts.
        most: how many at most.
    """
    index, first, group = np.unique(predictions.index, return_index=True, return_inverse=True)
    sums = np.zeros((len(index), predictions.probabilities.shape[1]))
    np.add.at(sums, group, predictions.probabilities)
    rows = sums / np.bincount(group)[:, None]
    label, predicted = predictions.label[first], rows.argmax(axis=1)
    wrong = np.flatnonzero(predicted != label)
    order = wrong[np.argsort(-rows[wrong].max(axis=1), kind="stable")][:most]
    return [
        Mistake(
            int(index[n]),
            int(label[n]),
            int(predicted[n]),
            float(rows[n].max()),
            float(rows[n, label[n]]),
        )
        for n in order
    ]


def mistakes_section(runs: Sequence[Run], album: Album) -> Section:
    """What is taken for what, and the samples that were missed with the most confidence."""
    title = "The worst confusions"
    evaluated = [(run, run.main) for run in runs if run.main is not None]
    if not evaluated:
        return Section("mistakes", title, missing=("Without an evaluation there are no mistakes to show.",))
    several = len(runs) > 1
    found = [
        (run, main, confident_mistakes(predictions))
        for run, main in evaluated
        if (predictions := predictions_of(run, main)) is not None
    ]
    charts: list[Chart] = []
    folded: list[Table] = []
    missing = [] if album.shown else [HIDDEN]
    for run, main, mistakes in found:
        if not mistakes:
            continue
        table = _mistakes_table(run, mistakes)
        if album.shown and len(charts) < MOST_RUNS:
            try:
                charts.append(_mistakes_chart(run, main, mistakes, album.faces(run, main), table))
                continue
            except FerdistError as error:
                missing.append(_left_out(run, several, error))
        folded.append(table)
    if len(found) < len(evaluated):
        missing.append("Where no file in predictions/ gives a run's figures again, no sample is named.")
    text = (
        "The pairs of classes that were confused most often, and the samples that were missed with the "
        "highest probability of a wrong class. Where face and label disagree, the label may be wrong.",
    )
    return Section(
        "mistakes",
        title,
        text=text,
        missing=tuple(missing),
        charts=_numbered(charts),
        tables=(_pairs_table(evaluated, several),),
        folded_tables=tuple(folded),
    )


def _mistakes_chart(
    run: Run, main: Evaluation, mistakes: Sequence[Mistake], faces: Faces, table: Table
) -> Chart:
    images = faces.images(np.array([mistake.index for mistake in mistakes]))
    pictures = [
        Picture(
            pixels,
            f"{_name(run.classes[mistake.true])}, said\n"
            f"{_name(run.classes[mistake.predicted])} {percent(mistake.probability, 0)} %",
        )
        for mistake, pixels in zip(mistakes, _pixels(images), strict=True)
    ]
    spoken = "; ".join(picture.text.replace("\n", " ") for picture in pictures)
    return Chart(
        "mistakes",
        caption=f"{run.name} on {tables.place(main)}: the mistakes with the highest probability. Above each "
        "face its label, and what it was taken for.",
        alt=f"{count(len(pictures), 'face')} with label, wrong answer and its probability: {spoken}.",
        figure=figures.picture_chart(_in_rows(pictures)),
        tables=(table,),
    )


def _pairs_table(evaluated: Sequence[tuple[Run, Evaluation]], several: bool) -> Table:
    rows = []
    for run, main in evaluated:
        confusion, totals = main.confusion, main.confusion.sum(axis=1)
        mistakes = confusion - np.diag(np.diag(confusion))
        for place in np.argsort(-mistakes, axis=None, kind="stable")[: 10 if not several else 5]:
            true, predicted = divmod(int(place), len(confusion))
            number = int(mistakes[true, predicted])
            if number:
                share = percent(number / int(totals[true]))
                names = (run.classes[true], run.classes[predicted], count(number), share)
                rows.append(((run.name,) if several else ()) + names)
    return Table(
        caption="Most frequent confusions",
        head=(("Run",) if several else ()) + ("True class", "Taken for", "Samples", "Of the class %"),
        align=("l" if several else "") + "llrr",
        rows=tuple(rows),
    )


def _mistakes_table(run: Run, mistakes: Sequence[Mistake]) -> Table:
    return Table(
        caption=f"{run.name}: mistakes with the highest probability",
        head=("Sample", "True class", "Taken for", "Probability %", "Of the true class %"),
        align="rllrr",
        rows=tuple(
            (
                str(mistake.index),
                run.classes[mistake.true],
                run.classes[mistake.predicted],
                percent(mistake.probability),
                percent(mistake.of_true),
            )
            for mistake in mistakes
        ),
    )


# What the benchmark does


def gallery_sections(runs: Sequence[Run], album: Album) -> list[Section]:
    """The images that the occlusion benchmark makes of two faces of each data set; none where no run was
    scored under occlusion."""
    scored: dict[tuple[str, str], tuple[Run, list[Evaluation]]] = {}
    for run in runs:
        if entries := occluded_entries(run):
            scored.setdefault((entries[0].data, entries[0].split), (run, entries))
    if not scored:
        return []
    title = "What the benchmark does to a face"
    if not album.shown:
        return [Section("gallery", title, missing=(HIDDEN,))]
    charts: list[Chart] = []
    missing = []
    for run, entries in scored.values():
        try:
            charts += _gallery(entries, album.faces(run, entries[0]))
        except FerdistError as error:
            missing.append(_left_out(run, len(scored) > 1, error))
    text = (
        "Faces of the data, covered as they were for the figures above: these are the very images that were "
        "scored. Where a shape lies is drawn anew for each sample, and is the same for every network.",
    )
    shown = _numbered(charts)
    return [Section("gallery", title, text=text if shown else (), missing=tuple(missing), charts=shown)]


def _gallery(entries: Sequence[Evaluation], faces: Faces) -> Iterator[Chart]:
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
            yield _gallery_chart(sample, chosen, faces, graded=graded)


def _gallery_chart(sample: int, cells: Sequence[Cell], faces: Faces, *, graded: bool) -> Chart:
    index = np.array([sample])
    face, benchmark = faces.images(index), faces.benchmark(cells)
    plain = Picture(_pixels(face)[0], "as it is")
    covered = [(cell, _pixels(benchmark.cover(face, index, cell))[0]) for cell in cells]
    if graded:
        rows: list[Sequence[Picture]] = [[plain]]
        for kind in dict.fromkeys(cell.kind for cell in cells):
            row = [Picture(pixels) for cell, pixels in covered if cell.kind == kind]
            fill = next(cell.fill for cell in cells if cell.kind == kind)
            rows.append([replace(row[0], text=_cell_name(kind, fill)), *row[1:]])
    else:
        flow = [plain, *(Picture(p, _cell_name(cell.kind, cell.fill, "\n")) for cell, p in covered)]
        rows = _in_rows(flow)
    _, _, height, width = face.shape
    what = "severities 1 to 5 from left to right" if graded else "kinds of one severity with their fills"
    return Chart(
        "gallery",
        caption=f"Sample {sample}, {faces.labels.classes[faces.labels.label[sample]]}: {what}.",
        alt=f"A face covered in {count(len(cells), 'way')}: "
        f"{', '.join(dict.fromkeys(_cell_name(cell.kind, cell.fill, ' ') for cell in cells))}.",
        figure=figures.picture_chart(rows),
        tables=(_cells_table(cells, height, width),),
    )


def _cell_name(kind: str, fill: str, between: str = ": ") -> str:
    return kind_label(kind) + (between + fill_label(fill) if fill_label(fill) else "")


def _cells_table(cells: Sequence[Cell], height: int, width: int) -> Table:
    return Table(
        caption="What is covered",
        head=("Kind", "Fill", "Severity", "Covered %"),
        align="llrr",
        rows=tuple(
            (
                kind_label(cell.kind),
                fill_label(cell.fill) or MISSING,
                str(cell.severity),
                percent(covered_fraction(cell, height, width)),
            )
            for cell in cells
        ),
    )


# Where networks look


@dataclass(frozen=True)
class _Looked:
    """Where the network of a run looks.

    Attributes:
        run: whose.
        classes: names, in label order.
        rounds: sample numbers, one of each class in each round.
        watched: all of them, in this order, under each of ``attention.CELLS``.
    """

    run: Run
    classes: tuple[str, ...]
    rounds: list[Integers]
    watched: list[Watched]


def attention_section(runs: Sequence[Run], album: Album) -> Section:
    """CBAM's spatial gates and Grad-CAM on faces as they are and covered."""
    title = "Where the model looks"
    several = len(runs) > 1
    looked: list[_Looked] = []
    missing: list[str] = []
    for run in runs[:MOST_RUNS]:
        try:
            looked.append(_look(run, album))
        except FerdistError as error:
            missing.append(f"{_start(run, several)}There is no attention to show here: {error}.")
    if len(runs) > MOST_RUNS:
        missing.append(f"Only the first {MOST_RUNS} of {len(runs)} runs are looked into.")
    if not looked:
        return Section("attention", title, missing=tuple(missing))
    if not album.shown:
        missing.append(HIDDEN)
    charts = [chart for one in looked for chart in _attention_charts(one)] if album.shown else []
    gates, lives = _gate_table(looked, several), _life_table(looked, several)
    return Section(
        "attention",
        title,
        text=(
            "Evidence is Grad-CAM, taken place by place: what in the features spoke for the predicted class. "
            "A spatial gate is what CBAM multiplied the features with. In each picture yellow is the most "
            "and dark blue the least, however small the difference: the tables have the numbers. Such maps "
            "are a hint at what a network goes by, and no proof.",
            "The tables have the share of the evidence on the part that is covered, and the mean of a gate "
            "there over its mean everywhere: in the face as it is, and covered. All is computed in fp32.",
            *(
                (f"A channel gate whose deviation across images is below {DEAD} is a constant.",)
                * bool(lives.rows)
            ),
            *(
                f"{one.run.name} is shown by the first of its runs, {one.run.folder.name}."
                for one in looked
                if one.run.main is not None and (one.run.main.folds or one.run.main.seeds > 1)
            ),
        ),
        missing=tuple(missing),
        charts=_numbered(charts),
        tables=(_attention_table(looked, several), *(table for table in (gates, lives) if table.rows)),
        folded_tables=() if album.shown else tuple(_looks_table(one, k) for one in looked for k in PICTURED),
    )


def _look(run: Run, album: Album) -> _Looked:
    """Look into a run with the checkpoint of its main evaluation.

    Raises:
        FerdistError: if data or checkpoint are not to be had, or the network has no features to look at.
    """
    if run.main is None:
        raise DataError("the run was not evaluated")
    faces = album.faces(run, run.main)
    trained = load_trained(str(run.folder), run.main.checkpoint or None, torch.device("cpu"))
    check_fit(trained.card, faces.beton, faces.labels)
    rounds = choose_faces(faces.labels.scorable(faces.indices), faces.labels.label, PER_CLASS)
    index = np.concatenate(rounds)
    watched = watch(
        trained.network,
        faces.images(index),
        index,
        faces.labels.label[index],
        faces.benchmark(CELLS),
        trained.card.mean,
        trained.card.std,
    )
    return _Looked(run, faces.labels.classes, rounds, watched)


def _pictured(looked: _Looked, kind: str) -> tuple[Watched, Integers]:
    """The faces under a kind of cover, and the rows that there are pictures of: other ones for each kind."""
    number = min(PICTURED.index(kind), len(looked.rounds) - 1)
    start = sum(map(len, looked.rounds[:number]))
    rows = np.arange(start, start + min(len(looked.rounds[number]), MOST_ROWS))
    return next(one for one in looked.watched if one.cell.kind == kind), rows


def _attention_charts(looked: _Looked) -> Iterator[Chart]:
    for kind in PICTURED:
        watched, rows = _pictured(looked, kind)
        maps = ("gate", "evidence") if watched.gate_size else ("evidence",)
        pictures, spoken = watched.pictures(), []
        lines = []
        for row in rows:
            said = [f"{_name(name)} {percent(p, 0)} %" for name, p in _answers(looked, watched, row)]
            line = [Picture(pixels) for pixels in pictures[row]]
            line[0] = replace(line[0], text=f"{_name(looked.classes[watched.label[row]])}: says {said[0]}")
            line[1 + len(maps)] = replace(line[1 + len(maps)], text=f"says {said[1]}")
            lines.append(line)
            spoken.append(f"{line[0].text}, covered {line[1 + len(maps)].text}")
        gate = "the finest spatial gate of CBAM and " if watched.gate_size else ""
        yield Chart(
            "attention",
            caption=f"{looked.run.name}, {kind_label(kind)}: each face, {gate}the evidence; as it is on the "
            "left, covered on the right. Above: its label, and what the network says.",
            alt=f"Faces with {gate}Grad-CAM as heat maps, as they are and covered: {kind_label(kind)}. "
            f"{'; '.join(spoken)}.",
            figure=figures.picture_chart(lines, ("face", *maps, "covered", *maps)),
            tables=(_looks_table(looked, kind),),
        )


def _answers(looked: _Looked, watched: Watched, row: int) -> list[tuple[str, float]]:
    """The predicted class of a face and its probability, as it is and covered."""
    rows = [looks.probabilities[row] for looks in watched.looks]
    return [(looked.classes[p.argmax()], float(p.max())) for p in rows]


def _looks_table(looked: _Looked, kind: str) -> Table:
    """The faces of a chart: answers, and how much of the evidence lies on the covered part."""
    watched, rows = _pictured(looked, kind)
    inside, gate = watched.evidence_inside(), watched.gate_inside()
    cells = []
    for row in rows:
        answers = [(name, percent(p)) for name, p in _answers(looked, watched, row)]
        cells.append(
            (
                str(watched.index[row]),
                looked.classes[watched.label[row]],
                *answers[0],
                *answers[1],
                *(percent(float(share)) for share in inside[:, row]),
                *(() if gate is None else (f"{ratio:.3f}" for ratio in gate[:, row])),
            )
        )
    gates = () if gate is None else ("Gate ratio", "Covered")
    return Table(
        caption=f"{looked.run.name}, {kind_label(kind)}: the faces shown",
        head=(
            *("Sample", "True class", "Says", "Probability %", "Covered says", "Probability %"),
            *("Evidence there %", "Covered %", *gates),
        ),
        align="rllrlrrr" + "r" * len(gates),
        rows=tuple(cells),
    )


def _life_table(looked: Sequence[_Looked], several: bool) -> Table:
    """What each gate did with images of val at the end of the training, by the run's metrics.jsonl."""
    rows = []
    for one in looked:
        empty: dict[str, Any] = {}
        last = next((line for line in reversed(one.run.history) if by_gate(line)), empty)
        for name, numbers in by_gate(last).items():
            own = (one.run.name,) if several else ()
            rows.append((*own, name, *(f"{number:.4f}" for number in numbers)))
    return Table(
        caption="Gates at the end of the training",
        head=(
            *(("Run",) if several else ()),
            "Gate",
            "Mean",
            "SD over channels or pixels",
            "SD across images",
        ),
        align=("l" if several else "") + "lrrr",
        rows=tuple(rows),
    )


def _attention_table(looked: Sequence[_Looked], several: bool) -> Table:
    """Means over all faces looked at: how much of what the network goes by lies on the covered part."""
    gated = any(one.gate_size for part in looked for one in part.watched)
    rows = []
    for part in looked:
        for one in part.watched:
            inside, gate = one.evidence_inside(), one.gate_inside()
            ratios = (MISSING, MISSING) if gate is None else tuple(f"{r:.3f}" for r in gate.mean(axis=1))
            rows.append(
                (
                    *((part.run.name,) if several else ()),
                    kind_label(one.cell.kind),
                    percent(float(one.hidden.mean())),
                    *(percent(_mean(shares)) for shares in inside),
                    *(ratios if gated else ()),
                    count(len(one.index)),
                )
            )
    return Table(
        caption="Share of evidence on the covered part, means over faces",
        head=(
            *(("Run",) if several else ()),
            "Cover",
            "Area %",
            "As it is %",
            "Covered %",
            *(("Gate ratio", "Covered") if gated else ()),
            "Faces",
        ),
        align="l" * (1 + several) + "rrr" + "rr" * gated + "r",
        rows=tuple(rows),
    )


def _mean(values: npt.NDArray[np.float32]) -> float | None:
    """Mean of the values that are numbers, None where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _gate_table(looked: Sequence[_Looked], several: bool) -> Table:
    """How much the spatial gates differ within a face, by the size of the features."""
    return Table(
        caption="Spatial gates of CBAM on faces as they are, means over faces",
        head=(*(("Run",) if several else ()), "Features", "Least", "Mean", "Greatest"),
        align="l" * (1 + several) + "rrr",
        rows=tuple(
            (
                *((part.run.name,) if several else ()),
                f"{size[0]} × {size[1]}",
                *(f"{of_face.mean():.3f}" for of_face in (gate.min((1, 2)), gate, gate.max((1, 2)))),
            )
            for part in looked
            for size, gate in part.watched[0].looks[0].gates.items()
        ),
    )


# What they share


def _pixels(images: Images) -> Images:
    """Images (B, C, H, W) as pictures: (B, H, W), or (B, H, W, 3) where they have colours."""
    return images.transpose(0, 2, 3, 1) if images.shape[1] == 3 else images[:, 0]


def _in_rows(pictures: Sequence[Picture]) -> list[Sequence[Picture]]:
    return [pictures[start : start + 4] for start in range(0, len(pictures), 4)]


def _start(run: Run, several: bool) -> str:
    return f"{run.name}: " if several else ""


def _left_out(run: Run, several: bool, error: FerdistError) -> str:
    return f"{_start(run, several)}The faces are left out: {error}."


def _name(name: str) -> str:
    """A class's name over a picture."""
    return figures.short(name, 12)


def _numbered(charts: Sequence[Chart]) -> tuple[Chart, ...]:
    """Charts of one name, told apart."""
    return tuple(
        replace(chart, name=numbered(chart.name, number, len(charts)))
        for number, chart in enumerate(charts, start=1)
    )
