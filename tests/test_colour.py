"""Colour at 112 pixels, from the raw files to predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from ferdist.cli import main
from ferdist.config import Config
from ferdist.data import prepare
from ferdist.data.beton import BetonLoader, open_beton
from ferdist.evaluation.predictions import Predictions
from ferdist.training.run import run
from tests.data.field import rafdb_tree


@pytest.mark.slow
def test_colour_at_112_pixels_from_raw_files_to_predictions(
    tiny: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = rafdb_tree(tmp_path / "raw", train=64, test=14)
    beton = open_beton(prepare.rafdb(tree, tmp_path, size=112, val_share=0.25))
    assert beton.manifest.image_shape == (3, 112, 112)
    config = tiny("train.epochs=1", "data.batch_size=8", f"data.path={beton.path}")
    run(config)
    command = ["evaluate", config.run_dir, "--occlusion", "--kinds", "square,glasses", "--fills", "mean"]
    assert main([*command, "--split", "test", "--tta", "flip", "--device", "cpu"]) == 0
    assert main(["evaluate", config.run_dir, "--split", "test", "--device", "cpu"]) == 0
    stored = Predictions.load(Path(config.run_dir) / "predictions" / "rafdb-test-best.npz")
    faces = (
        next(iter(BetonLoader(beton, batch_size=14, device=torch.device("cpu")).batches(stored.index)))
        .image.cpu()
        .numpy()
    )

    assert main(["export", config.run_dir, "--out", str(tmp_path / "model.onnx")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {"image": faces})
    assert np.abs(given - stored.probabilities).max() < 1e-4

    for number, face in enumerate(faces[:3]):
        (tmp_path / "crops").mkdir(exist_ok=True)
        Image.fromarray(face.transpose(1, 2, 0)).save(tmp_path / "crops" / f"{number}.png")
    capsys.readouterr()
    assert main(["predict", config.run_dir, str(tmp_path / "crops"), "--json", "--device", "cpu"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["box"] for entry in entries] == [[0, 0, 112, 112]] * 3
    rows = [list(entry["probabilities"].values()) for entry in entries]
    assert np.abs(rows - stored.probabilities[:3]).max() < 1e-5
