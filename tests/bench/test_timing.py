"""Rounds, figures and ratios, on contestants whose figures are known."""

from __future__ import annotations

import time

import pytest
import torch

from ferdist.bench.timing import Figure, Floor, Peer, Row, Seconds, contest, interleave


def test_rounds_are_interleaved_and_turn() -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    figures = interleave({name: lambda n=name: measure(n) for name in "abc"}, 3)  # type: ignore[misc]
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab", "a warm-up, then each round begins one later"
    assert figures["a"].rounds == (4, 9, 11)


def test_median_and_quartiles() -> None:
    figure = Figure((5.0, 1.0, 100.0, 3.0, 2.0))
    assert figure.median == 3.0
    assert figure.spread == (2.0, 5.0)
    assert figure.times(2).median == 6.0


@pytest.mark.parametrize(("unit", "better", "worse"), [("img/s", 30.0, 10.0), ("s", 10.0, 30.0)])
def test_a_ratio_above_one_is_better_whatever_the_unit(unit: str, better: float, worse: float) -> None:
    row = Row("load", "x", unit, Figure((better,)), Figure((worse,)), "peer", Figure((better,)), "floor")
    assert row.ratio_peer == pytest.approx(3)
    assert row.ratio_floor == 1
    row = Row("load", "x", unit, Figure((worse,)), Figure((better,)), "peer", Figure((better,)), "floor")
    assert row.ratio_peer == pytest.approx(1 / 3)
    assert row.ratio_floor == pytest.approx(1 / 3)


def test_a_missing_peer_is_null_with_a_hint() -> None:
    rows = contest(
        "load",
        "x",
        "s",
        ferdist=lambda: 2.0,
        peers=[Peer("there", lambda: 4.0), Peer("not there", None, "install it")],
        floor=Floor("limit", lambda: 1.0),
        rounds=3,
    )
    there, gone = (row.to_json() for row in rows)
    assert (there["peer"], there["ratio_peer"], there["ratio_floor"], there["rounds"]) == (4.0, 2.0, 0.5, 3)
    assert (gone["peer"], gone["ratio_peer"], gone["hint"]) == (None, None, "install it")
    assert gone["spread"] == {"ferdist": [2.0, 2.0], "peer": None, "floor": [1.0, 1.0]}


def test_seconds_are_of_one_call_however_many_there_are() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.01)

    seconds = Seconds(call, torch.device("cpu"), at_least=0.05)
    seconds()
    warm_up = calls
    assert 1 + 1 + 2 < warm_up <= 1 + 1 + 2 + 4 + 8, "doubled until they last 50 ms"
    assert 0.01 <= seconds() < 0.1
    assert calls - warm_up in (4, 8)
