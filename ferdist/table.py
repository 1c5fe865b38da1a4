"""Tables of text for markdown files, terminals and html pages, and how numbers are written in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from ferdist.errors import printable

MISSING: Final = "–"
"""What a cell shows where there is no value."""


class Number(str):
    """A cell whose column is aligned right."""

    __slots__ = ()


Cells = Mapping[str, str | None]
"""Of a row, by the names of their columns."""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        caption: what the table shows, in a few words.
        head: names of the columns.
        rows: the cells, as they are shown.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, caption: str, rows: Iterable[Cells]) -> Table:
        """A table of rows by column: None shows a dash, and a column without any cell is left out."""
        rows = list(rows)
        named = dict.fromkeys(name for row in rows for name in row)
        head = tuple(name for name in named if any(row.get(name) is not None for row in rows))
        cells = ((row.get(name) for name in head) for row in rows)
        return cls(caption, head, tuple(tuple(MISSING if c is None else c for c in row) for row in cells))

    @property
    def align(self) -> str:
        """A letter for each column: ``r`` where one of its cells is a `Number`, else ``l``."""
        numbers = [[isinstance(cell, Number) for cell in row] for row in (self.head, *self.rows)]
        return "".join("r" if any(column) else "l" for column in zip_longest(*numbers, fillvalue=False))

    def markdown(self) -> str:
        """The table in GitHub's markdown."""
        rules = ["---:" if letter == "r" else ":---" for letter in self.align]
        lines = [map(escape, self.head), rules, *(map(escape, row) for row in self.rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def text(self) -> str:
        """The table for a terminal: markdown with padded columns, as narrow as it can be."""
        columns = []
        for name, side, *column in zip(self.head, self.align, *self.rows, strict=True):
            cells = [printable(cell) for cell in column]
            width = max(map(len, (name, *cells)))
            rule = "-" * (width - 1)
            rule = f"{rule}:" if side == "r" else f":{rule}"
            columns.append([f"{cell:{'>' if side == 'r' else '<'}{width}}" for cell in (name, rule, *cells)])
        return "\n".join(f"|{'|'.join(line)}|" for line in zip(*columns, strict=True))


def percent(fraction: float | None, digits: int = 1) -> Number:
    """A fraction in percent, without the sign; a dash where there is none."""
    return Number(
        MISSING if fraction is None or math.isnan(fraction) else f"{100 * float(fraction):.{digits}f}"
    )


def percent_interval(bounds: Iterable[float] | None, digits: int = 1) -> Number:
    """An interval of fractions in percent, without the sign; a dash where there is none."""
    return Number(MISSING if bounds is None else "–".join(percent(bound, digits) for bound in bounds))


def points(difference: float, digits: int = 1) -> Number:
    """A difference of fractions in percentage points, with its sign."""
    return Number(f"{100 * difference:+.{digits}f}")


def points_interval(bounds: Iterable[float], digits: int = 1) -> Number:
    """An interval of such differences."""
    return Number(" to ".join(points(bound, digits) for bound in bounds))


def count(number: int, noun: str = "") -> Number:
    """A number with grouped thousands, and its noun in singular or plural: ``1 image``, ``3,589 images``."""
    return Number(f"{number:,} {noun}{'' if number == 1 else 's'}" if noun else f"{number:,}")


def short_count(number: int) -> Number:
    """A number with three digits, in thousands, millions or thousand millions: ``312 M``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * size:  # rounds to one of this unit
            return Number(f"{number / size:.3g} {unit}")
    return Number(number)


def escape(text: str) -> str:
    """Text that markdown shows as it is: no html, no table rules, one line."""
    text = printable(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*_|[]" else letter for letter in text)
