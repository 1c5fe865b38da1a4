"""The charts of a report: pure functions from numbers to matplotlib figures, and these as svg, png and html.

Every figure is one small panel, wide enough for a column on paper and legible on a phone. Colours are the
ones of ``THEME``; inside an html page they become CSS variables, so that a page in dark mode recolours them.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ferdist.evaluation.metrics import ECE_BINS
from ferdist.reporting.load import Floats, Integers

INK: Final = "#23272d"
MUTED: Final = "#6a717b"
GRID: Final = "#dfe2e6"
PAPER: Final = "#ffffff"
SERIES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Colours of series, told apart by colour-blind readers (Okabe and Ito, Color Universal Design, 2008)."""

CELL: Final = "#0072b3"
"""Colour of a full cell of a confusion matrix; part-full cells are as transparent as they are empty."""
IN_CELL: Final = "#010101"
ON_CELL: Final = "#fefefe"
"""Colours of text on cells that are part full and full."""

THEME: Final = {
    CELL: "cell",
    IN_CELL: "in-cell",
    ON_CELL: "on-cell",
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    **{colour: f"series-{number}" for number, colour in enumerate(SERIES, start=1)},
}
"""The CSS variable (without the two dashes) that stands for each colour in a page."""

DASHES: Final = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
"""One more than there are colours, so that the pair tells 42 series apart."""
WIDTH: Final = 4.5
"""Width of a figure in inches."""

_PERCENT: Final = FuncFormatter(lambda fraction, _: f"{100 * fraction:g} %")

_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ferdist",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.7,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: what the legend says; empty for a line without an entry.
        x, y: float64 (P,), P points; NaN in y breaks the line.
        low, high: float64 (P,), bounds of an interval around y, or None.
        colour: number of the colour in ``SERIES`` and of the mark in ``MARKERS``, from 0 and taken round.
        dash: number of the line style in ``DASHES``, taken round.
        marks: whether the points are marked.
        faint: whether the line stands in the background.
    """

    label: str
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None
    colour: int = 0
    dash: int = 0
    marks: bool = True
    faint: bool = False


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_percent: bool = False,
    y_percent: bool = False,
    y_from_zero: bool = False,
    baseline: tuple[float, str] | None = None,
) -> Figure:
    """Lines over a common axis, with shaded intervals where a series has them.

    Args:
        series: the lines; the first is drawn last, on top.
        x_label, y_label: what the axes show, with the unit.
        x_percent: whether x is a fraction that is shown in percent; otherwise its ticks are whole numbers.
        y_percent: whether y is a fraction that is shown in percent.
        y_from_zero: whether the y axis starts at 0.
        baseline: height and name of a dotted horizontal line for comparison.

    Returns:
        The figure.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _panel(legend_rows=_legend_rows([line.label for line in series]))
        for order, line in enumerate(series):
            _draw_line(axes, line, zorder=3 + len(series) - order)
        if baseline is not None:
            height, name = baseline
            axes.axhline(height, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(
                name,
                (0, height),
                xycoords=("axes fraction", "data"),
                xytext=(4, 3),
                textcoords="offset points",
                color=MUTED,
                fontsize=8.5,
            )
        if y_percent:
            axes.yaxis.set_major_formatter(_PERCENT)
        if y_from_zero:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(
            MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=not x_percent, min_n_ticks=1)
        )
        if x_percent:
            axes.xaxis.set_major_formatter(_PERCENT)
        _legend(figure, axes)
    return figure


def confusion_chart(confusion: Integers, classes: Sequence[str]) -> Figure:
    """A confusion matrix with rows normalised to the true class, counts below the percentages.

    Args:
        confusion: int64 (K, K), rows are the true classes, columns the predicted ones.
        classes: K names.

    Returns:
        The figure. A class without samples has an empty row.
    """
    K = len(classes)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros((K, K)), where=totals > 0)
    size = float(np.clip(9.5 * 8 / max(K, 1), 4.0, 9.5))
    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        figure, axes = _panel(height=WIDTH)
        for row, column in np.ndindex(K, K):
            share = shares[row, column]
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=CELL, alpha=float(share), linewidth=0))
            if totals[row, 0] and K <= 16:
                _write_cell(axes, (row, column), float(share), int(confusion[row, column]), size)
        for edge in range(K + 1):
            axes.plot([0, K], [edge, edge], color=GRID, linewidth=0.7, clip_on=False)
            axes.plot([edge, edge], [0, K], color=GRID, linewidth=0.7, clip_on=False)
        names = [short(name, 14) for name in classes]
        axes.set(xlim=(0, K), ylim=(K, 0), aspect="equal", xlabel="predicted", ylabel="true")
        axes.set_xticks(np.arange(K) + 0.5, names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(np.arange(K) + 0.5, names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def recall_chart(
    labels: Sequence[str], recalls: Sequence[Sequence[float | None]], classes: Sequence[str]
) -> Figure:
    """Recall of each class as dots on a common scale, one row per class.

    Args:
        labels: R names of runs.
        recalls: R sequences of K fractions; None where a class has no samples.
        classes: K names, with their counts where they are wanted.

    Returns:
        The figure.
    """
    K, R = len(classes), len(labels)
    with mpl.rc_context(_STYLE | {"axes.grid.axis": "x", "xtick.major.size": 0}):
        figure, axes = _panel(height=0.9 + K * max(0.3, 0.16 * R), legend_rows=_legend_rows(labels))
        places = np.arange(K)
        for number, (label, recall) in enumerate(zip(labels, recalls, strict=True)):
            values = np.array([np.nan if value is None else value for value in recall], dtype=np.float64)
            heights = places + (number - (R - 1) / 2) * (0.6 / max(R - 1, 1) if R > 1 else 0)
            colour = SERIES[number % len(SERIES)]
            if R == 1:
                axes.hlines(heights, 0, values, color=colour, linewidth=2.2)
            axes.plot(
                values,
                heights,
                MARKERS[number % len(MARKERS)],
                color=colour,
                markersize=6.5 if R == 1 else 5,
                label=_label(label),
                clip_on=False,
            )
        if R > 1:
            axes.hlines(places[1:] - 0.5, 0, 1, color=GRID, linewidth=0.7)
        axes.set_yticks(places, [short(name, 26) for name in classes])
        axes.set(xlim=(0, 1), ylim=(K - 0.5, -0.5), xlabel="recall")
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.tick_params(axis="y", pad=8)
        axes.spines["left"].set_visible(False)
        _legend(figure, axes)
    return figure


@dataclass(frozen=True)
class Calibration:
    """Samples grouped by the probability of the predicted class.

    Attributes:
        edges: float64 (B + 1,), bounds of B bins of equal width, from 0 to 1; a bin holds its lower bound.
        count: int64 (B,), samples in each bin.
        confidence: float64 (B,), their mean probability of the predicted class; NaN in an empty bin.
        accuracy: float64 (B,), share of them that is right; NaN in an empty bin.
    """

    edges: Floats
    count: Integers
    confidence: Floats
    accuracy: Floats


def calibrate(label: Integers, probabilities: npt.NDArray[np.floating[Any]]) -> Calibration:
    """Group predictions by confidence (Guo et al., ICML 2017, section 2).

    Args:
        label: int64 (N,), true classes.
        probabilities: (N, K).

    Returns:
        The groups, over the bins that the expected calibration error is computed with.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == label
    place = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    count = np.bincount(place, minlength=ECE_BINS)

    def mean(values: npt.NDArray[Any]) -> Floats:
        total = np.bincount(place, weights=values, minlength=ECE_BINS)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    return Calibration(np.linspace(0.0, 1.0, ECE_BINS + 1), count, mean(confidence), mean(right))


def reliability_chart(labels: Sequence[str], calibrations: Sequence[Calibration]) -> Figure:
    """Accuracy against confidence, with the share of samples in each bin below.

    Args:
        labels: names of runs.
        calibrations: the groups of each run.

    Returns:
        The figure; points on the diagonal are perfectly calibrated.
    """
    several = len(labels) > 1
    with mpl.rc_context(_STYLE):
        figure = _figure(4.4 + 0.2 * _legend_rows(labels))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        for number, (label, groups) in enumerate(zip(labels, calibrations, strict=True)):
            colour = SERIES[number % len(SERIES)]
            filled = groups.count > 0
            share = groups.count / max(groups.count.sum(), 1)
            upper.plot(
                groups.confidence[filled],
                groups.accuracy[filled],
                MARKERS[number % len(MARKERS)] + "-",
                color=colour,
                linewidth=1.3,
                label=_label(label),
                clip_on=False,
            )
            lower.stairs(share, groups.edges, color=colour, fill=not several, alpha=0.9 if several else 0.6)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        lower.set(ylim=(0, None), xlabel="confidence (probability of the predicted class)", ylabel="samples")
        for axes in (upper, lower):
            axes.yaxis.set_major_formatter(_PERCENT)
        lower.yaxis.set_major_locator(MaxNLocator(nbins=2))
        lower.xaxis.set_major_formatter(_PERCENT)
        _legend(figure, upper)
    return figure


@dataclass(frozen=True)
class Picture:
    """A face in a chart.

    Attributes:
        pixels: uint8 (H, W) gray levels or (H, W, 3) colours.
        text: what stands above it, one or two lines; it may reach over pictures to the right without a text.
    """

    pixels: npt.NDArray[np.uint8]
    text: str = ""


def picture_chart(rows: Sequence[Sequence[Picture]], heads: Sequence[str] = ()) -> Figure:
    """Faces in rows and columns, their pixels as they are.

    Args:
        rows: the pictures, from left to right.
        heads: names of the columns.

    Returns:
        The figure.
    """
    gap, line = 0.06, 0.18  # inches
    columns = max(map(len, rows))
    side = min((WIDTH - gap * (columns - 1)) / columns, 1.1)
    texts = [[picture.text.split("\n") if picture.text else [] for picture in row] for row in rows]
    lines = [max(map(len, row)) for row in texts]
    top = line if heads else 0.0
    height = top + sum(side + gap + line * count for count in lines)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        lefts = [column * (side + gap) for column in range(columns)]
        for left, head in zip(lefts, heads, strict=bool(heads)):
            axes.text(left + side / 2, top - 0.06, head, color=MUTED, fontsize=8.5, ha="center")
        for row, written, count in zip(rows, texts, lines, strict=True):
            top += line * count
            for left, picture, text in zip(lefts, row, written, strict=False):
                for number, words in enumerate(reversed(text)):
                    axes.text(left, top - 0.06 - line * number, words, fontsize=8.5)
                pixels = picture.pixels  # as colours, since gray levels would go through a colour map
                colours = pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=-1)
                axes.imshow(colours, interpolation="none", extent=(left, left + side, top + side, top))
            top += side + gap
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    return figure


def svg_bytes(figure: Figure) -> bytes:
    """The figure as an svg file: text stays text, the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE), _no_glyph_warnings():
        figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return buffer.getvalue()


def png_bytes(figure: Figure) -> bytes:
    """The figure as a png file at 200 dots per inch."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE), _no_glyph_warnings():
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def inline_svg(svg: bytes, name: str, description: str) -> str:
    """An svg file as an element of an html page.

    Args:
        svg: what ``svg_bytes`` gave.
        name: a word that is unique in the page; it is put before every id.
        description: what the chart shows, for readers who do not see it.

    Returns:
        The element: scales with its column, takes the page's font and colours, refers to nothing outside.
    """
    root = ET.fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}style", "}metadata")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.tag == "image":
            del element.attrib["id"]  # of its content: two equal pictures would share it
        for key in list(element.attrib):
            value = element.attrib.pop(key)
            element.set(key.rpartition("}")[2], _localise(key.rpartition("}")[2], value, name))
    width = float(root.attrib.pop("width").removesuffix("pt")) * 96 / 72
    del root.attrib["height"]
    root.attrib |= {"role": "img", "aria-label": description, "style": f"max-width:{width:.0f}px"}
    return ET.tostring(root, encoding="unicode")


def _localise(key: str, value: str, name: str) -> str:
    """An attribute's value with ids made unique and colours of the theme made variable."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    if key == "clip-path":
        return value.replace("url(#", f"url(#{name}-")
    if key == "style":
        return re.sub(
            "#[0-9a-f]{6}", lambda hit: f"var(--{THEME[hit[0]]})" if hit[0] in THEME else hit[0], value
        )
    return value


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panel(height: float = 3.2, legend_rows: int = 0) -> tuple[Figure, Axes]:
    figure = _figure(height + 0.2 * legend_rows)
    return figure, figure.subplots()


def _draw_line(axes: Axes, line: Series, zorder: int) -> None:
    colour = SERIES[line.colour % len(SERIES)]
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        line.x,
        line.y,
        color=colour,
        linestyle=DASHES[line.dash % len(DASHES)],
        linewidth=1.0 if line.faint else 1.7,
        alpha=0.75 if line.faint else 1.0,
        marker=MARKERS[line.colour % len(MARKERS)] if line.marks else None,
        label=_label(line.label) if line.label else None,
        zorder=zorder,
    )


def _write_cell(axes: Axes, cell: tuple[int, int], share: float, count: int, size: float) -> None:
    colour = ON_CELL if share > 0.93 else IN_CELL if count else MUTED
    row, column = cell
    middle = column + 0.5
    axes.text(middle, row + 0.43, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=size)
    axes.text(middle, row + 0.77, f"{count:,}", ha="center", va="center", color=colour, fontsize=size * 0.78)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(handles, labels, loc="outside upper left", ncols=_legend_columns(labels))


def _legend_columns(labels: Sequence[str]) -> int:
    return max(1, min(4, 44 // (max(map(len, labels), default=0) + 6)))


def _legend_rows(labels: Sequence[str]) -> int:
    shown = [_label(label) for label in labels if label]
    return -(-len(shown) // _legend_columns(shown)) if len(shown) > 1 else 0


def _label(text: str) -> str:
    """A label that matplotlib shows as it is: one that starts with an underscore would be hidden."""
    label = short(text, 34)
    return "\u200b" + label if label.startswith("_") else label


def short(text: str, length: int) -> str:
    """A name in one line of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


@contextmanager
def _no_glyph_warnings() -> Iterator[None]:
    """Names in scripts that the bundled font lacks are right in the svg and boxes in the png: no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        yield
