"""A run that was really trained, and drawn faces as pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferdist.config import load_config
from ferdist.data.synthetic import ckplus_sequences
from ferdist.training.run import run
from tests.conftest import ROOT, TINY

FRAME = (640, 490)


@pytest.fixture(scope="session")
def trained_run(beton_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a few seconds; read-only for the tests."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    small = ("model.width=16", "train.lr=0.02", f"data.path={beton_path}", f"run_dir={folder}")
    run(load_config(ROOT / "configs" / "base.yaml", [*TINY, *small]))
    return folder


@pytest.fixture(scope="session")
def photograph() -> Callable[[int], Image.Image]:
    """``photograph(k)``: person k in a gray frame of 640x490, the face about 250 pixels wide."""
    sequences = ckplus_sequences(60, 0)

    def take(number: int) -> Image.Image:
        scene, _ = sequences[number].scene(sequences[number].frames)
        return Image.fromarray(scene).resize(FRAME, Image.Resampling.BICUBIC)

    return take


@pytest.fixture(scope="session")
def blank() -> Image.Image:
    """A picture without a face."""
    return Image.fromarray(np.full((300, 400), 128, dtype=np.uint8))
