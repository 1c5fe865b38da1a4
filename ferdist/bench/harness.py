"""Measure contestants in interleaved rounds: ferdist, its peers and the floor, and the rows that result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Final

import numpy as np

from ferdist.table import Number, Table

Measure = Callable[[], float]
"""Measures once and returns the number."""
Rounds = Sequence[float] | None
"""What one contestant reached, a number per round; nothing where it could not be measured."""
Side = tuple[str | None, Rounds]
"""What a peer or a floor is, and its rounds."""
Row = dict[str, Any]
"""One line of the table, by the keys of ``ferdist bench --json`` (docs/performance.md)."""

HIGHER_IS_BETTER: Final = ("img/s", "GFLOP/s")
NOBODY: Final[Side] = (None, None)


def make_row(
    name: str,
    unit: str,
    ferdist: Rounds,
    peer: Side = NOBODY,
    floor: Side = NOBODY,
    hint: str | None = None,
) -> Row:
    """A row of ferdist, at most one peer and the floor, the least work that the result needs.

    Args:
        name: of the work.
        unit: of all numbers.
        ferdist: its numbers.
        peer, floor: what they are, and their numbers from the same rounds.
        hint: why a number is missing.

    Returns:
        Medians and quartiles by contestant. A ratio of medians above 1 is better, whatever the unit.
    """
    numbers = {"ferdist": ferdist, "peer": peer[1], "floor": floor[1]}
    medians = {who: median(values) if values else None for who, values in numbers.items()}
    quartiles = {
        who: np.quantile(values, [0.25, 0.75]).tolist() if values else None for who, values in numbers.items()
    }

    def ratio(other: str) -> float | None:
        mine, theirs = medians["ferdist"], medians[other]
        if mine is None or theirs is None or mine <= 0 or theirs <= 0:
            return None
        return mine / theirs if unit in HIGHER_IS_BETTER else theirs / mine

    return {
        "name": name,
        **medians,
        "peer_name": peer[0],
        "floor_name": floor[0],
        "unit": unit,
        "ratio_peer": ratio("peer"),
        "ratio_floor": ratio("floor"),
        "spread": quartiles,
        "rounds": len(ferdist or ()),
        "hint": hint,
    }


def contest(
    name: str,
    unit: str,
    rounds: int,
    ferdist: Measure,
    peers: Mapping[str, Measure | str] | None = None,
    floor: tuple[str, Measure] | None = None,
) -> list[Row]:
    """Measure ferdist, its peers and the floor in the same rounds: a row per peer, or one without.

    Instead of a peer's measure, text says why it cannot be measured.
    """
    peers = peers or {}
    measures = {"ferdist": ferdist} | {f"peer {k}": m for k, m in peers.items() if not isinstance(m, str)}
    if floor is not None:
        measures["floor"] = floor[1]
    numbers = interleave(measures, rounds)
    ours = numbers["ferdist"]
    limit: Side = (floor[0], numbers["floor"]) if floor is not None else NOBODY
    if not peers:
        return [make_row(name, unit, ours, floor=limit)]
    rows = []
    for peer, measure in peers.items():
        hint = measure if isinstance(measure, str) else None
        rows.append(make_row(name, unit, ours, (peer, numbers.get(f"peer {peer}")), limit, hint))
    return rows


def interleave(
    measures: Mapping[str, Measure], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Measure everything once a round, so that a slow moment of the machine meets all alike.

    The order turns by one each round, so that no contestant always follows the same one.

    Args:
        measures: by name.
        rounds: that count.
        warm_up: measure everything once before, without counting it.
    """
    names = list(measures)
    values: dict[str, list[float]] = {name: [] for name in names}
    if warm_up:
        for measure in measures.values():
            measure()
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            values[name].append(measures[name]())
    return values


def print_table(rows: Sequence[Row], where: str) -> None:
    """Print rows, the machine they were measured on, and what is missing: Markdown where no terminal is.

    The cells are medians, with quartiles where there is more than one round, and ratios.
    """
    cells = [
        {
            "stage": row["stage"],
            "work": row["name"],
            "unit": row["unit"],
            "ferdist": Number(_shown(row, "ferdist")),
            "peer": f"{_shown(row, 'peer')}, {row['peer_name']}" if row["peer_name"] else None,
            "x peer": _ratio(row["ratio_peer"]),
            "floor": f"{_shown(row, 'floor')}, {row['floor_name']}" if row["floor_name"] else None,
            "of floor": _ratio(row["ratio_floor"]),
        }
        for row in rows
    ]
    shown = Table.of("The bench", cells)
    notes = dict.fromkeys(f"{row['stage']}, {row['name']}: {row['hint']}" for row in rows if row["hint"])
    print(shown.text() if sys.stdout.isatty() else shown.markdown(), where, *notes, sep="\n")


def _shown(row: Row, contestant: str) -> str:
    if row[contestant] is None:
        return "-"
    low, high = row["spread"][contestant]
    return _number(row[contestant]) + (f" ({_number(low)}-{_number(high)})" if row["rounds"] > 1 else "")


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _ratio(value: float | None) -> Number | None:
    return None if value is None else Number(_number(value))
