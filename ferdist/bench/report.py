"""The bench's rows as a table: with colours on a terminal, else as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ferdist.bench.timing import Figure, Row

HEADER = ("stage", "work", "unit", "ferdist", "peer", "x peer", "floor", "of floor")
_NUMBERS = HEADER[3:]


def print_table(rows: Sequence[Row], where: str) -> None:
    """Print rows, the machine they were measured on, and what is missing, to stdout."""
    notes = [where, *dict.fromkeys(f"{row.stage}, {row.name}: {row.hint}" for row in rows if row.hint)]
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        print(_markdown(rows), "", *notes, sep="\n")
        return
    table = Table()
    for name in HEADER:
        table.add_column(name, justify="right" if name in _NUMBERS else "left")
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.stage != row.stage:
            table.add_section()
        table.add_row(*_cells(row, "\n"))
    console.print(table)
    for note in notes:
        console.print(note)


def _markdown(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(HEADER) + " |"]
    lines.append("|" + "|".join(" ---: " if name in _NUMBERS else " --- " for name in HEADER) + "|")
    lines += ["| " + " | ".join(_cells(row, "<br>")) + " |" for row in rows]
    return "\n".join(lines)


def _cells(row: Row, newline: str) -> list[str]:
    def contestant(figure: Figure | None, name: str | None) -> str:
        if name is None and figure is None:
            return ""
        return newline.join(text for text in (_figure(figure), name) if text)

    return [
        row.stage,
        row.name,
        row.unit,
        _figure(row.ferdist),
        contestant(row.peer, row.peer_name),
        _ratio(row.ratio_peer),
        contestant(row.floor, row.floor_name),
        _ratio(row.ratio_floor),
    ]


def _figure(figure: Figure | None) -> str:
    """The median, and the quartiles where there is more than one round."""
    if figure is None:
        return "-"
    if len(figure.rounds) == 1:
        return _number(figure.median)
    low, high = figure.spread
    return f"{_number(figure.median)} ({_number(low)}-{_number(high)})"


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def _ratio(value: float | None) -> str:
    return "" if value is None else _number(value)
