"""What a report consists of, and its html page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

import ferdist
from ferdist.charts import THEME
from ferdist.errors import printable
from ferdist.table import Table


@dataclass(frozen=True)
class Chart:
    """A figure in the page.

    Attributes:
        name: file name without suffix; charts of one name in a section are numbered.
        alt: the caption for readers who do not see the figure, with the main numbers.
        table: its numbers, where no other table of the section has them.
    """

    name: str
    caption: str
    alt: str
    figure: Figure
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page, shown in the order of the attributes.

    Attributes:
        name: anchor in the page.
        text: paragraphs.
        missing: what cannot be shown, and why.
        charts: side by side where there is room.
        tables, folded_tables: open, and opened by a click; those without rows are not shown.
        folded_texts: titles and texts that open on a click.
        points: a list of short sentences.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    missing: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    folded_tables: Sequence[Table] = ()
    folded_texts: Sequence[tuple[str, str]] = ()
    points: Sequence[str] = ()

    @property
    def beside(self) -> bool:
        """Whether there is one chart, with a table that is short enough to stand beside it."""
        tables = [chart.table for chart in self.charts]
        return len(tables) == 1 and tables[0] is not None and len(tables[0].rows) <= 15

    def placed(self, data: str) -> Section:
        """The section with charts whose names differ, and with the data's name where it is given."""
        total, so_far = Counter(chart.name for chart in self.charts), Counter[str]()
        prefix, charts = f"{data}-" if data else "", []
        for chart in self.charts:
            so_far[chart.name] += 1
            number = f"-{so_far[chart.name]}" * (total[chart.name] > 1)
            charts.append(replace(chart, name=f"{prefix}{chart.name}{number}"))
        title = f"{self.title}: {data}" if data else self.title
        return replace(self, name=prefix + self.name, title=title, charts=charts)


@dataclass(frozen=True)
class Content:
    """What a report consists of.

    Attributes:
        headlines: what was measured, in sentences.
        remarks: what a reader must know before believing it.
        table1: the text of table1.md, or what stands in its place.
        kind: of page.
        beside: the files that are with it.
    """

    title: str
    headlines: Sequence[Markup]
    remarks: Sequence[str]
    sections: Sequence[Section]
    table1: str
    kind: str = "report"
    beside: str = "table1.md and figures/ as svg and png"


def render(content: Content, pictures: Mapping[str, Markup]) -> str:
    """The page as html that loads nothing.

    Args:
        content: what it shows.
        pictures: the svg element of each chart, by its name.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Each number is tied to its percent sign; html stays html.
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%")
    page = environment.get_template("report.html.j2").render(
        content=content, pictures=pictures, theme=THEME, version=ferdist.__version__
    )
    return "\n".join(map(printable, page.split("\n")))
