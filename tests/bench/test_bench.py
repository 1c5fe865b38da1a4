"""The bench at its smallest: every stage runs and says what the contract promises. No time is judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ferdist.bench.report import print_table
from ferdist.bench.run import STAGES
from ferdist.bench.timing import HIGHER_IS_BETTER, LOWER_IS_BETTER, Figure, Row
from ferdist.cli import main
from ferdist.data import prepare

KEYS = {"stage", "name", "ferdist", "peer", "peer_name", "floor", "unit", "ratio_peer", "ratio_floor"}


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
        assert row["unit"] in HIGHER_IS_BETTER + LOWER_IS_BETTER
        assert isinstance(row["ferdist"], float)
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
    rows = [
        Row(
            "load", "plain", "img/s", Figure((1234567.0,)), Figure((2.5, 3.5)), "PIL", Figure((2e6,)), "copy"
        ),
        Row("scale", "strong", "img/s", None, hint="needs two GPUs"),
    ]
    print_table(rows, "a machine")
    header, rule, first, second, *notes = capsys.readouterr().out.splitlines()
    assert header.count("|") == rule.count("|") == first.count("|") == second.count("|") == 9
    assert "1,234,567 | 3.00 (2.75-3.25)<br>PIL | 411,522 | 2,000,000<br>copy | 0.617" in first
    assert second == "| scale | strong | img/s | - |  |  |  |  |"
    assert notes == ["", "a machine", "scale, strong: needs two GPUs"]
