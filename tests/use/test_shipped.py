"""The weights that ferdist ships: what lies beside them, and that their cards say what they hold."""

from __future__ import annotations

from hashlib import sha256

import pytest
import torch

from ferdist.evaluation.model import load_trained
from ferdist.models import weights
from ferdist.reporting.load import load_run, predictions_of
from tests.conftest import ROOT

PREDICTIONS = ROOT / "docs" / "results"


def test_each_data_set_has_its_weights() -> None:
    assert weights.shipped() == ["fer2013_resnet18_cbam", "ferplus_resnet18_cbam"]
    assert [weights.find(short) for short in weights.SHORT_NAMES] == [
        weights.SHIPPED / f"{name}.safetensors" for name in weights.shipped()
    ]


@pytest.mark.parametrize("name", weights.shipped())
def test_every_shipped_file_is_small_and_has_a_card_with_its_facts(name: str) -> None:
    path = ROOT / "ferdist" / "weights" / f"{name}.safetensors"
    assert path.stat().st_size <= 25e6
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    _, facts = weights.read(path)
    assert f"# {name}\n" in page
    if "calibration" in facts:
        assert f"{facts['calibration']['temperature']:.3f}" in page
    assert [100 * one["accuracy"] for one in facts["val"] if f"{100 * one['accuracy']:.2f}" not in page] == []
    card = load_trained(name, None, torch.device("cpu")).card
    assert len(card.classes) == card.task.classes
    assert card.config.model.name in name
    assert card.config.model.gate == "unit"


@pytest.mark.parametrize("name", weights.shipped())
def test_the_figures_of_a_card_follow_from_the_predictions_that_come_with_it(name: str) -> None:
    run = load_run(PREDICTIONS / name)
    page = (weights.SHIPPED / f"{name}.md").read_text(encoding="utf-8")
    whole = {one.tta: one for one in run.evaluations if one.subset == "all"}
    assert whole.keys() == {"none", "flip"}
    for one in whole.values():
        predictions = predictions_of(run, one)
        assert predictions is not None
        assert one.accuracy == predictions.correct().mean()
        assert f"{100 * one.accuracy:.2f} %" in page
    record, file = run.content["environment"]["training"], weights.SHIPPED / f"{name}.safetensors"
    assert record["weights_sha256"] == sha256(file.read_bytes()).hexdigest()


def test_the_predictions_are_small() -> None:
    assert sum(path.stat().st_size for path in PREDICTIONS.rglob("*") if path.is_file()) <= 1e6
