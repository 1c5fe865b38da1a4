"""The examples of docs/extending.md, run as they stand."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from ferdist.augment import Augment, AugmentConfig, OcclusionConfig, kinds
from ferdist.augment.occlusion import occluder_mask
from ferdist.config import load_config
from ferdist.data import prepare
from ferdist.data.beton import open_beton
from ferdist.errors import ConfigError, DataError
from ferdist.evaluation import benchmark
from ferdist.evaluation.benchmark import Benchmark, Cell, covered_fraction, grid, seen_in_training
from ferdist.models import Task, build_model
from ferdist.reporting import sections, write_report
from launch import backends, train
from tests.conftest import ROOT, TINY
from tests.faults.processes import status_of


def example(heading: str, number: int = 0) -> str:
    """A Python example under a heading, the first by default."""
    text = (ROOT / "docs" / "extending.md").read_text().partition(f"\n## {heading}")[2]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number]


def test_an_occlusion(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {**kinds.KINDS}
    monkeypatch.setattr(kinds, "KINDS", {**before})
    exec(example("An occlusion"), {"__name__": "example"})
    assert [*kinds.KINDS] == [*before, "diamond"]
    with pytest.raises(ConfigError, match="'diamond' already has the name or the number"):
        exec(example("An occlusion"), {"__name__": "example"})
    monkeypatch.setattr(benchmark, "KINDS", kinds.KINDS)
    faces = np.full((300, 1, 48, 48), 255, dtype=np.uint8)
    maker = Benchmark((130,), np.arange(300), np.arange(2), faces[:2])
    for cell in grid(["diamond"], ["zero"]):
        covered = maker.cover(faces, np.arange(300), cell)[:, 0] == 0
        assert covered.mean() == pytest.approx(covered_fraction(cell), rel=0.02)
        assert (abs(covered.any(1).sum(1) - covered.any(2).sum(1)) <= 1).all(), "wholly inside"
    config = AugmentConfig(occlusion=OcclusionConfig(probability=1, shape="diamond", area=[0.1, 0.1]))
    assert seen_in_training(Cell("diamond", 2, "zero"), config) == "unseen size"
    augment = Augment(config, [0.5], [0.2])
    draws = augment.draw(2000, (1, 48, 48), torch.Generator().manual_seed(0))
    inside = ((draws.centre > 12) & (draws.centre < 35)).all(1)
    mask = occluder_mask(config.occlusion.shapes(), draws.shape, draws.centre, draws.size, 48, 48)[inside]
    assert mask.mean().item() == pytest.approx(0.1, rel=0.02)
    assert augment(torch.zeros(2000, 1, 48, 48, dtype=torch.uint8), draws).isfinite().all()


def test_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extending_networks.py").write_text(example("A network"))
    monkeypatch.syspath_prepend(tmp_path)
    config = load_config(ROOT / "configs" / "fer2013" / "base.yaml", ["model.name=extending_networks:small"])
    assert build_model(config.model, Task(1, 48, 48, 7))(torch.zeros(2, 1, 48, 48)).shape == (2, 7)


def test_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ModuleType("ferdist.data.rafd")
    exec(example("A data set"), reader.__dict__)
    monkeypatch.setitem(sys.modules, reader.__name__, reader)
    monkeypatch.setattr(prepare, "DATA_SETS", {})
    exec(example("A data set", 1), prepare.__dict__)
    monkeypatch.delattr(prepare, "rafd")
    command = typer.Typer()
    command.command()(prepare.DATA_SETS["rafd"])
    for subject in ("01", "02", "03"):
        for number, shown in enumerate(("angry", "happy", "neutral")):
            image = np.full((96, 64), 10 * number, dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / f"Rafd090_{subject}_Caucasian_male_{shown}_left.jpg")
    command(
        ["--source", str(tmp_path), "--out", str(tmp_path / "out"), "--folds", "3"], standalone_mode=False
    )
    beton = open_beton(tmp_path / "out" / "rafd.beton")
    assert beton.manifest.folds["0"]["per_class"] == [1, 0, 0, 1, 0, 0, 1, 0]
    (tmp_path / "odd.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"odd\.png: not named like those of RaFD"):
        reader.read_rafd(tmp_path, 48)


def test_a_figure(evaluated_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec(example("A figure"), names)
    monkeypatch.setattr(sections, "SECTIONS", (*sections.SECTIONS, names["coverage"]))
    page = write_report([evaluated_run], tmp_path / "report", faces=False)
    assert "Selective prediction" in page.read_text()
    assert (tmp_path / "report" / "figures" / "coverage.svg").is_file()


@pytest.mark.slow
def test_a_backend(beton_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over an `ssh` that leads to this host."""
    (tmp_path / "ssh").write_text('#!/bin/sh\n[ "$1" = gpu-07 ] && exec sh -c "$2"\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("FERDIST_HOST", "gpu-07")
    monkeypatch.setitem(backends.BACKENDS, "ssh", backends.Local())  # so that it leaves with the test
    exec(example("A launcher backend"), {"__name__": "example"})
    arguments = ["--cluster", "ssh", "--out", str(tmp_path / "x"), *TINY, "train.epochs=1"]
    assert train.main([str(ROOT / "configs" / "base.yaml"), *arguments, f"data.path={beton_path}"]) == 0
    assert status_of(tmp_path / "x" / "seed-0")["state"] == "finished"
