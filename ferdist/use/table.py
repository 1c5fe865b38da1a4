"""Predictions for people to read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from ferdist.table import Number, Table
from ferdist.use.predict import Result


def print_results(results: Sequence[Result], classes: Sequence[str]) -> None:
    """Print a table on stdout: padded columns on a terminal, else plain lines with tabs.

    Args:
        results: of `predict_pictures`; failed ones are left out.
        classes: of the model.
    """
    rows = tuple(row for result in results if not result.failed for row in _rows(result, classes))
    table = Table("", ("file", "box", "expression", "probability", "next"), rows)
    if rows and sys.stdout.isatty():
        print(table.text())
    else:
        print(*("\t".join(row) for row in (table.head, *rows)), sep="\n")


def _rows(result: Result, classes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    if not result.faces:
        yield str(result.path), "", result.note or "", "", ""
    for face in result.faces:
        best, second = face.probabilities.argsort()[::-1][:2]
        yield (
            str(result.path),
            " ".join(map(str, face.box)),
            classes[best],
            Number(f"{face.probabilities[best]:.2f}"),
            f"{classes[second]} {face.probabilities[second]:.2f}",
        )
