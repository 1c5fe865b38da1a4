"""Models as ONNX and as weights: what they compute elsewhere, and what their metadata says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from ferdist.cli import main
from ferdist.config import Config
from ferdist.data.beton import write_beton
from ferdist.data.record import SPLITS
from ferdist.data.synthetic import synthesize
from ferdist.evaluation.model import load_trained
from ferdist.evaluation.records import read_results
from ferdist.models import weights
from ferdist.training.run import run
from ferdist.use.export import PARITY, ROUNDING, Deployed, facts_of


@pytest.fixture(scope="module")
def exported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's weights as a file; read-only for the tests."""
    path = tmp_path_factory.mktemp("exported") / "small.safetensors"
    assert main(["export", str(trained_run), "--out", str(path)]) == 0
    return path


@pytest.mark.slow
def test_onnx_computes_what_the_network_does(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "model.onnx"
    assert main(["export", str(trained_run), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert str(out) in captured.out
    assert captured.err == ""
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    trained = load_trained(str(trained_run), None, torch.device("cpu"))
    faces = synthesize(7, seed=5).images
    (given,) = session.run(None, {session.get_inputs()[0].name: faces})
    with torch.inference_mode():
        wanted = Deployed(trained.network, trained.card)(torch.from_numpy(faces)).numpy()
    assert np.abs(given - wanted).max() < PARITY
    assert np.ptp(wanted, axis=0).max() > 0.01  # the faces are told apart at all
    facts = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["classes"] == list(trained.card.classes)
    assert facts["beton_sha256"] == trained.card.beton_sha256


def test_weights_say_where_they_are_from(trained_run: Path, exported: Path) -> None:
    tensors, facts = weights.read(exported)
    assert {t.dtype for t in tensors.values() if t.dim() > 1} == {torch.float16}
    assert tensors["bn1.running_var"].dtype == torch.float32
    trained = load_trained(str(trained_run), None, torch.device("cpu"))
    assert facts["classes"] == list(trained.card.classes)
    assert (facts["mean"], facts["std"]) == (list(trained.card.mean), list(trained.card.std))
    assert (facts["data"], facts["beton_sha256"]) == ("synthetic", trained.card.beton_sha256)
    stored = read_results(trained_run / "results.json").evaluations
    assert [v["accuracy"] for v in facts["val"]] == [one.accuracy for one in stored]
    assert str(trained_run.parent) not in json.dumps(facts)  # whose machine it was is nobody's business


@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".onnx", marks=pytest.mark.slow)])
def test_calibrated_probabilities_fit_val_best(trained_run: Path, tmp_path: Path, suffix: str) -> None:
    """No other temperature gives val's labels a higher likelihood."""
    out = tmp_path / f"calibrated{suffix}"
    assert main(["export", str(trained_run), "--calibrated", "--out", str(out)]) == 0
    faces = synthesize(420, seed=1)
    val = np.flatnonzero(faces.split == SPLITS.index("val"))
    images, label = faces.images[val], faces.labels[val]
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        given = session.run(None, {"image": images})[0]
        facts = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    else:
        given, facts = _probabilities(str(out), images), weights.read(out)[1]
    assert facts["calibration"]["samples"] == len(val)
    assert not any("ece" in entry for entry in facts["val"])
    scaled = _probabilities(str(trained_run), images) ** (1 / facts["calibration"]["temperature"])
    assert np.abs(given - scaled / scaled.sum(1, keepdims=True)).max() < ROUNDING

    def loss(temperature: float) -> float:
        logits = np.log(given) / temperature
        return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(label)), label]))

    assert loss(1.0) <= min(loss(0.9), loss(1.1))


def test_only_a_run_can_be_calibrated(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(exported), "--calibrated", "--out", str(tmp_path / "x.safetensors")]) == 1
    assert "no predictions on val" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def _probabilities(model: str, images: np.ndarray) -> np.ndarray:
    trained = load_trained(model, None, torch.device("cpu"))
    with torch.inference_mode():
        return Deployed(trained.network, trained.card)(torch.from_numpy(images)).numpy()


def test_exported_weights_are_evaluated_like_the_run(
    trained_run: Path,
    exported: Path,
    beton_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(exported), "--device", "cpu"]) == 1
    assert "give --data" in capsys.readouterr().err
    call = ["evaluate", str(exported), "--data", str(beton_path), "--device", "cpu"]
    for _ in range(2):
        assert main(call) == 0
    given = read_results(tmp_path / "runs" / "weights" / "small" / "results.json").evaluations
    wanted = read_results(trained_run / "results.json").evaluations
    assert [one.subset for one in given] == [one.subset for one in wanted]
    assert given[0].accuracy == pytest.approx(wanted[0].accuracy, abs=0.02)  # 63 samples, fp16
    other = tmp_path / "small.safetensors"
    tensors, facts = weights.read(exported)
    other.write_bytes(weights.encode(other, tensors, {**facts, "step": 1}))
    capsys.readouterr()
    assert main(["evaluate", str(other), *call[2:]]) == 1
    assert "of weights other than" in capsys.readouterr().err
    assert main([*call, "--checkpoint", "best"]) == 1
    assert "leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(("split", "known"), [("val", True), ("train", False)])
def test_copies_are_left_out_of_other_data_with_the_same_training_images(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, known: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    faces = synthesize(420, seed=1)
    images = faces.images.copy()
    images[np.flatnonzero(faces.split == SPLITS.index(split))[0]] //= 2
    other = replace(faces, images=images)
    beton = write_beton(other, tmp_path)
    assert main(["evaluate", str(exported), "--data", str(beton), "--device", "cpu"]) == 0
    entries = read_results(tmp_path / "runs" / "weights" / "small" / "results.json").evaluations
    assert ("no_copies" in {one.subset for one in entries}) == known


def test_whatever_a_kill_leaves_the_next_export_removes(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary of a temporary would stay for ever."""
    seen, write = [], Path.write_bytes

    def write_and_look(path: Path, content: bytes) -> int:
        seen.extend(path.parent.iterdir())
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_and_look)
    out = tmp_path / "model.safetensors"
    assert main(["export", str(trained_run), "--out", str(out)]) == 0
    assert len(seen) == 1
    shutil.copy(out, seen[0])
    assert main(["export", str(trained_run), "--out", str(out)]) == 0
    assert list(tmp_path.iterdir()) == [out]


def test_shipped_weights_are_found_by_name(
    exported: Path,
    tmp_path: Path,
    tiny: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(exported, tmp_path / "fer2013_resnet18_cbam.safetensors")
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    for name in ("fer2013_resnet18_cbam", "fer2013"):
        assert load_trained(name, None, torch.device("cpu")).card.classes[0] == "angry"
    assert main(["predict", "unknown", str(tmp_path)]) == 1
    assert "available: fer2013_resnet18_cbam" in capsys.readouterr().err
    start = tiny(
        "model.pretrained=fer2013", "model.width=16", "train.epochs=1", "train.lr=1e-9", "train.ema=0"
    )
    run(start)
    began = load_trained(start.run_dir, None, torch.device("cpu")).network.state_dict()
    kept, _ = weights.read(exported)
    assert torch.allclose(began["fc.weight"], kept["fc.weight"].float(), atol=1e-4)


def test_no_path_of_the_trainers_machine_is_exported(trained_run: Path) -> None:
    trained = load_trained(str(trained_run), None, torch.device("cpu"))
    config = trained.card.config
    data = replace(config.data, soft_labels="/a/one.npz, /b/two.npz", stage="/scratch")
    card = replace(trained.card, config=replace(config, data=data))
    facts = facts_of(replace(trained, card=card), str(trained_run))
    assert "/" not in json.dumps(facts["config"])
    assert facts["config"]["data"]["soft_labels"] == "one.npz,two.npz"


def test_what_cannot_be_exported_leaves_nothing(
    trained_run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained_run), "--out", str(tmp_path / "model.pt")]) == 1
    assert "must end in .onnx or .safetensors" in capsys.readouterr().err
    tensors, facts = weights.read(exported)
    broken = {**tensors, "fc.weight": tensors["fc.weight"].float() * float("nan")}
    from safetensors.torch import save_file

    bad = tmp_path / "bad.safetensors"
    save_file(broken, bad, {name: json.dumps(value) for name, value in facts.items()})
    for out in ("model.onnx", "model.safetensors"):
        assert main(["export", str(bad), "--out", str(tmp_path / out)]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]
    (tmp_path / "text.safetensors").write_text("no weights")
    assert main(["predict", str(tmp_path / "text.safetensors"), str(tmp_path)]) == 1
    assert "not a safetensors file" in capsys.readouterr().err
