"""The weights that ferdist ships: what lies beside them, and that they reach what their card says."""

from __future__ import annotations

import torch

from ferdist.evaluation.model import load_trained
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
        assert card.config.model.gate == "sigmoid", "they were trained before there were others"
