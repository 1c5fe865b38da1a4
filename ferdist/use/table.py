"""Predictions for people to read."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ferdist.use.predict import Result


def print_results(results: Sequence[Result], classes: Sequence[str]) -> None:
    """Print a table on stdout: drawn and as wide as a terminal, plain lines with tabs where there is none.

    Args:
        results: of `predict_pictures`; failed ones are left out.
        classes: of the model.
    """
    rows = [row for result in results if not result.failed for row in _rows(result, classes)]
    header = ("file", "box", "expression", "probability", "next")
    console = Console(markup=False)
    if not console.is_terminal:
        for row in [header, *rows]:
            print("\t".join(row))
        return
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _rows(result: Result, classes: Sequence[str]) -> list[tuple[str, str, str, str, str]]:
    if not result.faces:
        return [(str(result.path), "", result.note or "", "", "")]
    rows = []
    for face in result.faces:
        best, second = face.probabilities.argsort()[::-1][:2]
        rows.append(
            (
                str(result.path),
                " ".join(map(str, face.box)),
                classes[best],
                f"{face.probabilities[best]:.2f}",
                f"{classes[second]} {face.probabilities[second]:.2f}",
            )
        )
    return rows
