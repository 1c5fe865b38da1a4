"""Measure contestants in interleaved rounds, and the rows that come of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np
import torch

Measure = Callable[[], float]
"""Measures once and returns the figure."""

HIGHER_IS_BETTER: Final = ("img/s", "GFLOP/s")
LOWER_IS_BETTER: Final = ("s", "ms", "MiB", "%")


@dataclass(frozen=True)
class Figure:
    """What one contestant reached, a number per round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """Lower and upper quartile of the rounds."""
        low, high = np.quantile(self.rounds, [0.25, 0.75])
        return float(low), float(high)

    def times(self, factor: float) -> Figure:
        """The same in another unit."""
        return Figure(tuple(value * factor for value in self.rounds))


@dataclass(frozen=True)
class Peer:
    """What does the same work another way; without a measure it could not be had, and the hint says why."""

    name: str
    measure: Measure | None
    hint: str | None = None


@dataclass(frozen=True)
class Floor:
    """The least work that the result needs; no program can be faster than it by much."""

    name: str
    measure: Measure


@dataclass(frozen=True)
class Row:
    """One line of the table: ferdist, at most one peer and the floor, from the same rounds.

    Attributes:
        stage: of the bench.
        name: of the work.
        unit: of all three figures: ``img/s`` and ``GFLOP/s`` are better when higher, ``s``, ``ms``, ``MiB``
            and ``%`` when lower.
        ferdist: the figure, None where it could not be measured.
        peer, peer_name: the peer's; its figure is None where it could not be measured.
        floor, floor_name: the limit.
        hint: why a figure is missing, or what a figure means.
    """

    stage: str
    name: str
    unit: str
    ferdist: Figure | None
    peer: Figure | None = None
    peer_name: str | None = None
    floor: Figure | None = None
    floor_name: str | None = None
    hint: str | None = None

    def __post_init__(self) -> None:
        assert self.unit in HIGHER_IS_BETTER + LOWER_IS_BETTER

    @property
    def ratio_peer(self) -> float | None:
        """How many times better than the peer: above 1 ferdist is better, whatever the unit.

        A ratio of medians; None where a figure is missing or not positive.
        """
        return self._better(self.ferdist, self.peer)

    @property
    def ratio_floor(self) -> float | None:
        """Share of the limit that is reached, 1 at the limit, whatever the unit."""
        return self._better(self.ferdist, self.floor)

    def _better(self, mine: Figure | None, other: Figure | None) -> float | None:
        if mine is None or other is None or mine.median <= 0 or other.median <= 0:
            return None
        better = mine.median / other.median
        return better if self.unit in HIGHER_IS_BETTER else 1 / better

    def to_json(self) -> dict[str, Any]:
        """Plain values: medians under the contract's keys, quartiles under ``spread``."""
        figures = {"ferdist": self.ferdist, "peer": self.peer, "floor": self.floor}
        medians = {name: None if figure is None else figure.median for name, figure in figures.items()}
        return {
            "stage": self.stage,
            "name": self.name,
            "ferdist": medians["ferdist"],
            "peer": medians["peer"],
            "peer_name": self.peer_name,
            "floor": medians["floor"],
            "floor_name": self.floor_name,
            "unit": self.unit,
            "ratio_peer": self.ratio_peer,
            "ratio_floor": self.ratio_floor,
            "spread": {
                name: None if figure is None else list(figure.spread) for name, figure in figures.items()
            },
            "rounds": 0 if self.ferdist is None else len(self.ferdist.rounds),
            "hint": self.hint,
        }


class Seconds:
    """Seconds that a call takes: the mean over as many calls as fill a given time.

    The first measurement runs the call once, to warm up, and then doubles the calls until they fill it.

    Args:
        call: the work.
        device: that the work may run on; it is waited for.
        at_least: seconds that a later measurement lasts, unless one call is longer.
    """

    def __init__(self, call: Callable[[], object], device: torch.device, at_least: float) -> None:
        self.call, self.device, self.at_least = call, device, at_least
        self.repeats = 0

    def __call__(self) -> float:
        if not self.repeats:
            self._time(1)
            self.repeats = 1
            while (once := self._time(self.repeats)) * self.repeats < self.at_least:
                self.repeats *= 2
            return once
        return self._time(self.repeats)

    def _time(self, repeats: int) -> float:
        wait_for(self.device)
        start = time.perf_counter()
        for _ in range(repeats):
            self.call()
        wait_for(self.device)
        return (time.perf_counter() - start) / repeats


def rate(call: Callable[[], object], images: int, device: torch.device, at_least: float) -> Measure:
    """Images per second of a call that handles so many images; see `Seconds`."""
    seconds = Seconds(call, device, at_least)
    return lambda: images / seconds()


def wait_for(device: torch.device) -> None:
    """Until all work that was given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(measures: Mapping[str, Measure], rounds: int, *, warm_up: bool = True) -> dict[str, Figure]:
    """Measure everything once a round, so that a slow moment of the machine meets all alike.

    The order turns by one each round, so that no contestant always follows the same one.

    Args:
        measures: by name.
        rounds: that count.
        warm_up: measure everything once before, without counting it.
    """
    names = list(measures)
    if warm_up:
        for name in names:
            measures[name]()
    values: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            values[name].append(measures[name]())
    return {name: Figure(tuple(numbers)) for name, numbers in values.items()}


def contest(
    stage: str,
    name: str,
    unit: str,
    *,
    ferdist: Measure,
    rounds: int,
    peers: Sequence[Peer] = (),
    floor: Floor | None = None,
    warm_up: bool = True,
) -> list[Row]:
    """Measure ferdist, its peers and the floor in the same rounds: a row per peer, or one without."""
    measures = {"ferdist": ferdist}
    measures |= {f"peer {peer.name}": peer.measure for peer in peers if peer.measure is not None}
    if floor is not None:
        measures["floor"] = floor.measure
    figures = interleave(measures, rounds, warm_up=warm_up)
    limit = figures.get("floor")
    limit_name = None if floor is None else floor.name
    row = Row(stage, name, unit, figures["ferdist"], floor=limit, floor_name=limit_name)
    if not peers:
        return [row]
    return [
        Row(
            stage,
            name,
            unit,
            figures["ferdist"],
            figures.get(f"peer {peer.name}"),
            peer.name,
            limit,
            limit_name,
            peer.hint,
        )
        for peer in peers
    ]
