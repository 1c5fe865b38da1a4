"""The leaderboard: models of any kind on the same images, in order, with what cannot be compared."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from ferdist.cli import main
from ferdist.data import prepare
from tests.evaluation.test_external import OWN, write_onnx


def test_a_leaderboard_of_a_run_and_a_model_from_elsewhere(
    evaluated_run: Path,
    beton_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_onnx(tmp_path / "theirs.onnx")
    about = {"trained_on": "<b>drawers</b>", "license": "MIT", "saw": {"synthetic": ["train", "val"]}}
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump({"classes": OWN, **about}))
    board = ["leaderboard", str(evaluated_run), "theirs.yaml", "--out", "board", "--device", "cpu"]
    assert main(board) == 1
    assert "run `ferdist evaluate theirs.yaml --data FILE.beton`" in capsys.readouterr().err
    call = ["evaluate", "theirs.yaml", "--data", str(beton_path), "--device", "cpu"]
    assert main([*call, "--occlusion", "--kinds", "square,eye_band", "--fills", "zero,mean"]) == 0
    assert main(board) == 0

    page, text = (Path("board") / f"leaderboard.{end}" for end in ("html", "md"))
    html = page.read_text()
    assert not re.search(r'(src|href)="(?!#)|url\((?!#)', html)  # but links inside the figure
    assert "&lt;b&gt;drawers&lt;/b&gt;" in html
    lines = text.read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    tables = [dict(zip(cells[at], row, strict=True)) for at in (0, 4, 8) for row in cells[at + 2 : at + 4]]
    assert float(tables[0]["Under occlusion"]) >= float(tables[1]["Under occlusion"])
    assert tables[0]["Difference to first, points"] == tables[0]["95 % interval"] == "–"
    assert float(tables[1]["Difference to first, points"]) <= 0
    assert "–" in tables[1]["95 % interval of clean"]
    used = {row["Model"].partition(". ")[2]: row["Used these images"] for row in tables[:2]}
    assert used == {"drawn": "to choose the epoch", "theirs": "yes"}
    assert tables[2].keys() == {"Model", "square", "eye band"}
    (cost,) = [row for row in tables[4:] if row["Model"] == "theirs"]
    assert cost["Parameters"] == cost["Multiply-adds"] == "16.1 k"
    # The run has squares, the eye band and more, black; the other model has both of them also in gray.
    assert any("6 cells of the benchmark" in line and "left out" in line for line in lines)

    write_onnx(tmp_path / "theirs.onnx", seed=1)
    assert main(board) == 1
    assert "runs/weights/theirs: holds evaluations of weights other than these" in capsys.readouterr().err


def test_models_on_other_data_are_not_compared(
    evaluated_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_onnx(tmp_path / "theirs.onnx")
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump({"classes": OWN}))
    other = prepare.synthetic(tmp_path / "other", images=70, seed=9)
    assert main(["evaluate", "theirs.onnx", "--data", str(other), "--device", "cpu"]) == 0
    capsys.readouterr()
    models = [str(evaluated_run), "theirs.onnx"]
    assert main(["leaderboard", *models, "--out", "board", "--device", "cpu"]) == 1
    assert "have no data in common" in capsys.readouterr().err
    shutil.copytree(evaluated_run, tmp_path / "again")
    assert main(["leaderboard", models[0], "again", "--split", "test", "--out", "board"]) == 1
    assert "nothing" in capsys.readouterr().err
    assert not Path("board").exists()
