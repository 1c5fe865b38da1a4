"""The weights that ferdist ships: what lies beside them, and that they reach what their card says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ferdist.cli import main
from ferdist.evaluation.model import load_trained
from ferdist.evaluation.results import read_results
from ferdist.models import weights
from tests.conftest import ROOT

NAME = "fer2013_resnet18_cbam"


def test_every_shipped_file_is_small_and_has_a_card_and_its_facts() -> None:
    assert NAME in weights.shipped()
    for name in weights.shipped():
        path = ROOT / "ferdist" / "weights" / f"{name}.safetensors"
        assert path.stat().st_size <= 25e6
        assert name in path.with_suffix(".md").read_text(encoding="utf-8")
        _, facts = weights.read(path)
        assert facts["val"][0]["accuracy"] > 0.5
        card = load_trained(name, None, torch.device("cpu")).card
        assert len(card.classes) == card.task.classes == 7
        assert card.config.model.name in name


def test_they_reach_on_real_faces_what_their_card_says(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(real_data / "fer2013_folders.zip")
    assert main(["prepare", "fer2013", "--source", source, "--out", "data"]) == 0
    call = ["evaluate", NAME, "--data", "data/fer2013.beton", "--split", "val", "--device", "cpu"]
    assert main(call) == 0
    entries = read_results(Path("runs") / "weights" / NAME / "results.json")["evaluations"]
    found = {entry["subset"]: (entry["samples"], entry["accuracy"]) for entry in entries}
    # An image or two of 3,589 turn over with the CPU's kernels and precision.
    assert found["all"] == (3589, pytest.approx(0.6863, abs=0.002))
    assert found["no_copies"] == (3309, pytest.approx(0.6661, abs=0.002))
