"""What the tests share: drawn faces as a beton, the real data where they are, commands as users give them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ferdist.config import Config, load_config
from ferdist.datasets import prepare

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets; tests that need it are skipped where there is none."""
    folder = Path(os.environ.get("FERDIST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: set FERDIST_DATA")
    return folder


@pytest.fixture(scope="session")
def beton_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A beton of 420 drawn faces, with splits and folds; read-only for the tests."""
    return prepare.synthetic(tmp_path_factory.mktemp("synthetic"), images=420, seed=1)


TINY = (
    "model.stem=imagenet",  # the fastest: feature maps of 12 pixels at most
    "data.batch_size=32",
    "train.epochs=2",
    "train.precision=fp32",
    "train.log_every=3",
    "train.ema=0.9",
    "device=cpu",
)
"""Overrides that make a run of a few seconds."""


@pytest.fixture
def tiny(beton_path: Path, tmp_path: Path) -> Callable[..., Config]:
    """Configs of runs of a few seconds: ``tiny("train.lr=1", run="name")``."""

    def make(*overrides: str, run: str = "run") -> Config:
        places = (f"data.path={beton_path}", f"run_dir={tmp_path / run}")
        return load_config(ROOT / "configs" / "base.yaml", [*TINY, *places, *overrides])

    return make


KINDS = ("square", "patch", "eye_band", "mask", "gaussian_noise")


@pytest.fixture(scope="session")
def evaluated_run(beton_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few seconds on drawn faces, scored on val as they are and under a cell of each sort of
    ``KINDS``; read-only for the tests."""
    from ferdist.evaluation.evaluate import Plan, evaluate
    from ferdist.evaluation.occlusion import grid
    from ferdist.training.run import run

    folder = tmp_path_factory.mktemp("runs") / "drawn"
    own = (f"data.path={beton_path}", f"run_dir={folder}", "model.width=8", "train.epochs=1")
    run(load_config(ROOT / "configs" / "base.yaml", [*TINY, *own]))
    evaluate(str(folder), plan=Plan(grid(KINDS, ["zero"])), device="cpu")
    return folder


def start(
    *arguments: str, processes: int = 0, seconds: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m ARGUMENTS``, under torchrun where ``processes`` is given; what it printed."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return subprocess.run(
        [sys.executable, "-m", *(launcher if processes else []), *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that is removed after the test: checkpoints are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)
