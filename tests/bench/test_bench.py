"""The bench at its smallest: every stage runs and says what the contract promises. No time is judged."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ferdist.bench.harness import HIGHER_IS_BETTER, contest, interleave, make_row, print_table
from ferdist.bench.run import STAGES
from ferdist.bench.setting import SIZES, Bench
from ferdist.cli import main
from ferdist.data import prepare

KEYS = {"stage", "name", "ferdist", "peer", "peer_name", "floor", "unit", "ratio_peer", "ratio_floor"}
LOWER_IS_BETTER = ("s", "MiB", "%")


def rows_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["bench", "--json", "--size", "smallest", *arguments]) == 0
    captured = capsys.readouterr()
    assert "bench: " in captured.err
    rows: list[dict[str, Any]] = json.loads(captured.out)
    return rows


QUICK = ("convert", "load", "augment", "evaluate")


@pytest.mark.parametrize(
    "stage", [stage if stage in QUICK else pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES]
)
def test_every_stage_runs(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(capsys, stage)
    assert rows
    for row in rows:
        assert row.keys() >= KEYS
        assert row["stage"] == stage
        assert row["unit"] in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER)
        assert isinstance(row["ferdist"], float)
        assert row["floor_name"] != "before the work" or row["floor"] > 100, "MiB, with the imports"
        assert row["hint"] is None, "nothing is missing where the tests run"
        for contestant in ("peer", "floor"):
            assert (row[contestant] is None) == (row[f"{contestant}_name"] is None)
        if row["peer"] and row["peer"] > 0 and row["ferdist"] > 0:
            higher = row["unit"] in HIGHER_IS_BETTER
            assert (row["ratio_peer"] > 1) == ((row["ferdist"] > row["peer"]) == higher)


def test_data_without_splits_hold_out_a_fold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = prepare.synthetic(tmp_path / "raw", images=150, format="ckplus48")
    beton = prepare.ckplus(raw, tmp_path / "beton", folds=3)
    rows = rows_of(capsys, "load", "--data", str(beton))
    assert all(row["ferdist"] > 0 for row in rows)
    assert str(beton) in rows[0]["where"]


def test_without_kornia_and_timm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("kornia.augmentation", "timm.data.random_erasing", "timm"):
        monkeypatch.setitem(sys.modules, module, None)  # as Python does for what cannot be imported
    rows = rows_of(capsys, "augment")
    gone = [row for row in rows if row["peer_name"].startswith(("kornia", "timm"))]
    assert len(gone) == 6
    for row in gone:
        assert (row["peer"], row["ratio_peer"]) == (None, None)
        assert "pip install 'ferdist[bench]'" in row["hint"]
        assert row["ferdist"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lode"], "bench lode: there is no such stage; choose from convert, load,"),
        (["load", "--size", "huge"], "--size huge: choose one of smallest, default"),
        (["convert", "--csv", "nowhere.csv"], "nowhere.csv: no such file"),
        (["load", "--images", "3"], "--images 3: give at least"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"ferdist: {message}")
    assert len(captured.err.splitlines()) == 1


def test_the_table_is_markdown_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    load = make_row("plain", "img/s", [1234567.0, 1234567.0], ("PIL", [2.5, 3.5]), ("copy", [2e6, 2e6]))
    scale = make_row("strong", "img/s", None, hint="needs two GPUs")
    print_table([{"stage": "load"} | load, {"stage": "scale"} | scale], "a machine")
    _, _, first, second, *notes = capsys.readouterr().out.splitlines()
    assert "| 3.00 (2.75-3.25), PIL | 411,522 | 2,000,000 (2,000,000-2,000,000), copy | 0.617 |" in first
    assert second.startswith("| scale | strong | img/s | - |")
    assert notes == ["", "a machine", "scale, strong: needs two GPUs"]


def test_rounds_are_interleaved_and_turn() -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    numbers = interleave({name: lambda n=name: measure(n) for name in "abc"}, 3)  # type: ignore[misc]
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab", "a warm-up, then each round begins one later"
    assert numbers["a"] == [4, 9, 11]


@pytest.mark.parametrize(("unit", "better", "worse"), [("img/s", 30.0, 10.0), ("s", 10.0, 30.0)])
def test_a_ratio_above_one_is_better_whatever_the_unit(unit: str, better: float, worse: float) -> None:
    row = make_row("x", unit, [better], ("peer", [worse]), ("floor", [better]))
    assert (row["ratio_peer"], row["ratio_floor"]) == (pytest.approx(3), 1)
    row = make_row("x", unit, [worse], ("peer", [better]), ("floor", [better]))
    assert row["ratio_peer"] == row["ratio_floor"] == pytest.approx(1 / 3)


def test_a_missing_peer_is_null_with_a_hint() -> None:
    peers = {"there": lambda: 4.0, "not there": "install it"}
    there, gone = contest("x", "s", 3, lambda: 2.0, peers, ("limit", lambda: 1.0))
    assert (there["peer"], there["ratio_peer"], there["ratio_floor"], there["rounds"]) == (4.0, 2.0, 0.5, 3)
    assert (gone["peer"], gone["ratio_peer"], gone["hint"]) == (None, None, "install it")
    assert gone["spread"] == {"ferdist": [2.0, 2.0], "peer": None, "floor": [1.0, 1.0]}


def test_seconds_are_of_one_call_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(time, "perf_counter", lambda: 0.015 * len(calls))
    bench = Bench(SIZES["default"], torch.device("cpu"), tmp_path)
    seconds = bench.seconds(lambda: calls.append(None))
    assert seconds() == pytest.approx(0.015)
    assert len(calls) == 1 + 1 + 2 + 5 + 10 + 20, "more and more, until they last 0.2 s"
    assert seconds() == pytest.approx(0.015)
    assert len(calls) == 1 + 1 + 2 + 5 + 10 + 20 + 20


def test_a_gpu_gets_more_steps_and_a_larger_product() -> None:
    """A step takes milliseconds there: a few are noise."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    size = SIZES["default"]
    assert (size.on(gpu).steps, size.on(gpu).matrix) == (200, 8192)
    assert size.on(gpu).images * 0.7 > size.on(gpu).steps * size.batch
    assert size.on(cpu) == size
    assert SIZES["smallest"].on(gpu) == SIZES["smallest"]
