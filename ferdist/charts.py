"""Charts in one style, for the report and for TensorBoard: matplotlib figures, and their svg, png and html.

Every figure is one small panel, wide enough for a column on paper and legible on a phone. Colours are the
light ones of ``THEME``; the style sheet of an html page maps them to its variables.
"""

from __future__ import annotations

import io
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
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ferdist.errors import printable

Floats = npt.NDArray[np.float64]

THEME: Final = {
    "ink": ("#23272d", "#e4e6e9"),
    "muted": ("#5c636d", "#9aa2ad"),
    "grid": ("#dfe2e6", "#343a42"),
    "paper": ("#ffffff", "#15181c"),
    "cell": ("#0072b3", "#1a6da3"),  # of a full cell of a confusion matrix: others are more transparent
    "in-cell": ("#010101", "#fefefe"),  # text on a part-full cell
    "on-cell": ("#fefefe", "#fefefe"),  # text on a full cell
    # Series, told apart by colour-blind readers (Okabe and Ito, Color Universal Design, 2008).
    "series-1": ("#0072b2", "#58a9de"),
    "series-2": ("#d55e00", "#f08a45"),
    "series-3": ("#009e73", "#35c49a"),
    "series-4": ("#cc79a7", "#e19cc3"),
    "series-5": ("#56b4e9", "#8fd0f5"),
    "series-6": ("#e69f00", "#f2b84b"),
}
"""Colours in light and in dark surroundings by their role; the light ones differ, so each tells its role."""

INK, MUTED, GRID, PAPER, CELL, IN_CELL, ON_CELL, *SERIES = (light for light, _ in THEME.values())
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
"""One more than there are colours, so that the pair tells 42 series apart."""
WIDTH: Final = 4.5
"""Width of a figure in inches."""
PERCENT: Final = FuncFormatter(lambda fraction, _: f"{100 * fraction:g} %")

_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
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


@contextmanager
def panel(
    height: float = 3.2,
    labels: Sequence[str] = (),
    *,
    ratios: Sequence[float] = (1,),
    style: dict[Any, Any] | None = None,
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of ``WIDTH`` to draw in, with a legend above it in the end.

    Args:
        height: in inches, without the legend.
        labels: what the legend says, as `label_of` gives it; with fewer than two there is no legend.
        ratios: heights of the axes, which share x.
        style: matplotlib's parameters that differ from the common style.
    """
    columns = max(1, min(4, 44 // (max(map(len, labels), default=0) + 6)))
    rows = -(-len(labels) // columns) if len(labels) > 1 else 0
    with mpl.rc_context(_STYLE | (style or {})):
        figure = Figure(figsize=(WIDTH, height + 0.2 * rows), layout="constrained")
        axes = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        yield figure, list(axes)
        if rows:
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=columns)


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: what the legend says; empty for a line without an entry.
        x, y: float64 (P,), P points; NaN in y breaks the line.
        low, high: float64 (P,), bounds of an interval around y, NaN where there is none; or None.
        colour: number of the colour in ``SERIES`` and of the mark in ``MARKERS``, from 0 and taken round.
        marks: whether the points are marked.
        faint: whether the line stands in the background, thin and dashed.
    """

    label: str
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None
    colour: int = 0
    marks: bool = True
    faint: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_percent: bool = False,
    y_percent: bool = False,
    y_from_zero: bool = False,
    baseline: tuple[float, str] | None = None,
) -> Figure:
    """Lines over a common axis, with shaded intervals where a line has them.

    Args:
        lines: the first is drawn last, on top.
        x_label, y_label: what the axes show, with the unit.
        x_percent: whether x is a fraction that is shown in percent; otherwise its ticks are whole numbers.
        y_percent: whether y is a fraction that is shown in percent.
        y_from_zero: whether the y axis starts at 0.
        baseline: height and name of a dotted horizontal line for comparison.
    """
    with panel(labels=[label_of(line.label) for line in lines if line.label]) as (figure, (axes,)):
        for order, line in enumerate(lines):
            colour = SERIES[line.colour % len(SERIES)]
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                line.x,
                line.y,
                color=colour,
                linestyle=(0, (5, 2)) if line.faint else "-",
                linewidth=1.0 if line.faint else 1.7,
                alpha=0.75 if line.faint else 1.0,
                marker=MARKERS[line.colour % len(MARKERS)] if line.marks else None,
                label=label_of(line.label) if line.label else None,
                zorder=3 + len(lines) - order,
            )
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
        if y_from_zero:
            axes.set_ylim(bottom=0)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_locator(
            MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=not x_percent, min_n_ticks=1)
        )
        for axis, in_percent in ((axes.xaxis, x_percent), (axes.yaxis, y_percent)):
            if in_percent:
                axis.set_major_formatter(PERCENT)
    return figure


def confusion_chart(confusion: npt.NDArray[np.int64], classes: Sequence[str]) -> Figure:
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
    with panel(WIDTH, style={"axes.grid": False}) as (figure, (axes,)):
        for row, column in np.ndindex(K, K):
            share, number = float(shares[row, column]), int(confusion[row, column])
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=CELL, alpha=share, linewidth=0))
            if totals[row, 0] and K <= 16:
                colour = ON_CELL if share > 0.93 else IN_CELL if number else MUTED
                for height, text, scale in ((0.43, f"{100 * share:.0f}", 1), (0.77, f"{number:,}", 0.78)):
                    place = column + 0.5, row + height
                    axes.text(*place, text, ha="center", va="center", color=colour, fontsize=scale * size)
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


def label_of(text: str) -> str:
    """A label that matplotlib shows as it is: it would hide one that starts with an underscore."""
    label = short(text, 34)
    return "\u200a" + label if label.startswith("_") else label


def short(text: str, length: int) -> str:
    """A name in one line of at most so many characters, all of which an svg file can hold."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= length else text[: length - 1] + "…"


def svg_bytes(figure: Figure, name: str) -> bytes:
    """The figure as an svg file: text stays text, the same figure and name give the same bytes.

    Args:
        figure: what to write.
        name: of the chart; different names have different ids in the files.
    """
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    return _saved(figure, {"svg.hashsalt": name}, format="svg", metadata=metadata)


def png_bytes(figure: Figure) -> bytes:
    """The figure as a png file at 200 dots per inch."""
    return _saved(figure, {}, format="png", dpi=200, metadata={"Software": None})


def _saved(figure: Figure, style: dict[Any, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE | style), warnings.catch_warnings():
        # Scripts that the bundled font lacks are right in the svg and boxes in the png.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def inline_svg(svg: bytes, description: str) -> str:
    """An svg file as an element of an html page.

    Args:
        svg: what ``svg_bytes`` gave.
        description: what the chart shows, for readers who do not see it.

    Returns:
        The element: scales with its column and refers to nothing outside.
    """
    root = ET.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.tag in ("g", "image"):  # their ids, to which nothing refers, are the same in every figure
            element.attrib.pop("id", None)
        for key in [key for key in element.attrib if "}" in key]:
            element.set(key.rpartition("}")[2], element.attrib.pop(key))
    width = float(root.attrib.pop("width").removesuffix("pt")) * 96 / 72
    del root.attrib["height"]
    root.attrib |= {"role": "img", "aria-label": description, "style": f"max-width:{width:.0f}px"}
    return ET.tostring(root, encoding="unicode")
