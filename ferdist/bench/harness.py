"""Measure contestants in interleaved rounds: ferdist, its peers and the floor, and the rows that result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np
import torch

from ferdist.table import Number, Table

Measure = Callable[[], float]
"""Measures once and returns the number."""
Peers = Mapping[str, Measure | str]
"""What does the same work another way, by name; text says why it cannot be measured."""

HIGHER_IS_BETTER: Final = ("img/s", "GFLOP/s")
LOWER_IS_BETTER: Final = ("s", "ms", "MiB", "%")
CONTESTANTS: Final = ("ferdist", "peer", "floor")

Rounds = Sequence[float] | None
"""What one contestant reached, a number per round; None where it could not be measured."""


@dataclass(frozen=True)
class Row:
    """One line of the table: ferdist, at most one peer and the floor, from the same rounds.

    Attributes:
        stage: of the bench.
        name: of the work.
        unit: one of ``HIGHER_IS_BETTER`` or ``LOWER_IS_BETTER``.
        ferdist, peer, floor: numbers per round. The floor is the least work that the result needs.
        peer_name, floor_name: what these two are.
        hint: why a number is missing.
    """

    stage: str
    name: str
    unit: str
    ferdist: Rounds
    peer: Rounds = None
    peer_name: str | None = None
    floor: Rounds = None
    floor_name: str | None = None
    hint: str | None = None

    @property
    def medians(self) -> dict[str, float | None]:
        """By contestant."""
        rounds = {name: getattr(self, name) for name in CONTESTANTS}
        return {name: median(numbers) if numbers else None for name, numbers in rounds.items()}

    @property
    def spread(self) -> dict[str, list[float] | None]:
        """Lower and upper quartile by contestant."""
        rounds = {name: getattr(self, name) for name in CONTESTANTS}
        return {
            name: np.quantile(numbers, [0.25, 0.75]).tolist() if numbers else None
            for name, numbers in rounds.items()
        }

    def ratio(self, other: str) -> float | None:
        """How many times better than the peer or the floor, whatever the unit: a ratio of medians."""
        mine, theirs = self.medians["ferdist"], self.medians[other]
        if mine is None or theirs is None or mine <= 0 or theirs <= 0:
            return None
        return mine / theirs if self.unit in HIGHER_IS_BETTER else theirs / mine

    def to_json(self) -> dict[str, Any]:
        """Plain values: medians under the contract's keys, quartiles under ``spread``."""
        return {
            "stage": self.stage,
            "name": self.name,
            **self.medians,
            "peer_name": self.peer_name,
            "floor_name": self.floor_name,
            "unit": self.unit,
            "ratio_peer": self.ratio("peer"),
            "ratio_floor": self.ratio("floor"),
            "spread": self.spread,
            "rounds": len(self.ferdist or ()),
            "hint": self.hint,
        }


def contest(
    stage: str,
    name: str,
    unit: str,
    rounds: int,
    ferdist: Measure,
    peers: Peers | None = None,
    floor: tuple[str, Measure] | None = None,
) -> list[Row]:
    """Measure ferdist, its peers and the floor in the same rounds: a row per peer, or one without."""
    peers = peers or {}
    measures = {"ferdist": ferdist} | {f"peer {k}": m for k, m in peers.items() if not isinstance(m, str)}
    if floor is not None:
        measures["floor"] = floor[1]
    numbers = interleave(measures, rounds)
    ours, limit = numbers["ferdist"], (numbers.get("floor"), None if floor is None else floor[0])
    if not peers:
        return [Row(stage, name, unit, ours, None, None, *limit)]
    return [
        Row(
            *(stage, name, unit, ours, numbers.get(f"peer {peer}"), peer, *limit),
            hint=measure if isinstance(measure, str) else None,
        )
        for peer, measure in peers.items()
    ]


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


class Seconds:
    """Seconds that a call takes: the mean over as many calls as fill a given time.

    The first measurement runs the call once, to warm up, and then doubles the calls until they fill it.

    Args:
        call: the work.
        device: that the work may run on; it is waited for.
        at_least: seconds that a later measurement lasts, unless one call is longer.
    """

    def __init__(self, call: Callable[[], object], device: torch.device, at_least: float = 0.0) -> None:
        self.call, self.device, self.at_least = call, device, at_least
        self.repeats = 0

    def __call__(self) -> float:
        if self.repeats:
            return self._time(self.repeats)
        self._time(1)
        self.repeats = 1
        while (once := self._time(self.repeats)) * self.repeats < self.at_least:
            self.repeats *= 2
        return once

    def _time(self, repeats: int) -> float:
        self._wait()
        start = time.perf_counter()
        for _ in range(repeats):
            self.call()
        self._wait()
        return (time.perf_counter() - start) / repeats

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def table(rows: Sequence[Row]) -> Table:
    """The rows for people: medians, quartiles where there is more than one round, and ratios."""
    records = []
    for row in rows:
        peer, floor = (
            f"{shown}, {name}" if name else shown
            for shown, name in ((_shown(row, "peer"), row.peer_name), (_shown(row, "floor"), row.floor_name))
        )
        records.append(
            {
                "stage": row.stage,
                "work": row.name,
                "unit": row.unit,
                "ferdist": Number(_shown(row, "ferdist")),
                "peer": peer if row.peer_name else None,
                "x peer": _ratio(row.ratio("peer")),
                "floor": floor if row.floor_name else None,
                "of floor": _ratio(row.ratio("floor")),
            }
        )
    return Table.of("The bench", records)


def _shown(row: Row, contestant: str) -> str:
    middle, quartiles = row.medians[contestant], row.spread[contestant]
    if middle is None or quartiles is None:
        return "-"
    low, high = quartiles
    return _number(middle) + (f" ({_number(low)}-{_number(high)})" if len(row.ferdist or ()) > 1 else "")


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _ratio(value: float | None) -> Number | None:
    return None if value is None else Number(_number(value))
