"""The occlusion benchmark in TensorBoard."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.board import show_benchmark
from tests.evaluation.conftest import evaluation


def test_curves_over_the_covered_share_are_replaced(tmp_path: Path) -> None:
    square = [evaluation(0.6, Cell("square", 1, "zero")), evaluation(0.5, Cell("square", 2, "zero"))]
    show_benchmark(tmp_path / "val", square, [], [])
    show_benchmark(tmp_path / "val", [*square, evaluation(0.25, Cell("gaussian_noise", 4, "none"))], [], [])
    events = EventAccumulator(str(tmp_path / "val")).Reload()
    points = [(e.step, round(e.value, 4)) for e in events.Scalars("occlusion/square, zero")]
    assert points == [(3, 0.6), (11, 0.5)]
    assert [e.step for e in events.Scalars("occlusion/gaussian_noise, none")] == [4]


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tb").touch()
    with caplog.at_level(logging.WARNING):
        show_benchmark(tmp_path / "tb" / "val", [evaluation(0.6, Cell("square", 1, "zero"))], [], [])
    (message,) = caplog.messages
    assert "not written, so TensorBoard lacks the benchmark" in message


def test_an_evaluation_under_occlusion_shows_curves_and_attention(evaluated_run: Path) -> None:
    (folder,) = (evaluated_run / "tb" / "occlusion").iterdir()
    assert folder.name == "synthetic-val-best"
    events = EventAccumulator(str(folder)).Reload()
    assert len(events.Scalars("occlusion/square, zero")) == 5
    assert events.Tags()["images"] == [
        "attention/eye band",
        "attention/mouth band",
        "attention/glasses",
        "attention/mask",
    ]
    (shown,) = events.Images("attention/mask")
    picture = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)))
    assert picture.shape == (7 * 48, 6 * 48, 3), "a row for each class; face, gate and Grad-CAM, twice"
    (said,) = events.Tensors("attention/mask/text_summary")
    text = said.tensor_proto.string_val[0].decode()
    assert "face, spatial gate, evidence (Grad-CAM)" in text
    assert text.count("- sample ") == 7
