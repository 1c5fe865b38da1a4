"""What a report's page consists of: sections of text, charts and tables."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from ferdist.reporting.tables import Table


@dataclass(frozen=True)
class Chart:
    """A figure in the page.

    Attributes:
        name: file name without suffix, unique in the report.
        caption: what it shows.
        alt: the same for readers who do not see it, with the main numbers.
        figure: the figure.
        tables: the numbers of it.
    """

    name: str
    caption: str
    alt: str
    figure: Figure
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Section:
    """A part of the page, shown from top to bottom: text, charts, tables, folded texts.

    Attributes:
        name: anchor in the page.
        title: heading.
        text: paragraphs.
        missing: what cannot be shown, and why.
        charts: figures, side by side where there is room.
        tables: open tables.
        folded_tables: tables that open on a click.
        folded_texts: titles and texts that open on a click.
        points: a list of short sentences at the end.
    """

    name: str
    title: str
    text: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    folded_tables: tuple[Table, ...] = ()
    folded_texts: tuple[tuple[str, str], ...] = ()
    points: tuple[str, ...] = ()

    @property
    def beside(self) -> bool:
        """Whether there is one chart, with one table that is short enough to stand beside it."""
        return len(self.charts) == 1 and [len(table.rows) <= 15 for table in self.charts[0].tables] == [True]


def numbered(name: str, number: int, of: int) -> str:
    """A chart's name among several of its kind."""
    return name if of == 1 else f"{name}-{number}"
