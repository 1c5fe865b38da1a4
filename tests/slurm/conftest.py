"""What the tests on a real SLURM share: `make test-slurm` starts one and runs them against it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ferdist.config import Config
from ferdist.datasets import prepare
from tests.faults.processes import finish, small_config
from tests.slurm.jobs import ask

EPOCHS = 6
OVERRIDES = (
    f"train.epochs={EPOCHS}",
    "train.log_every=1",
    "train.evaluate_every=3",
    "train.checkpoint_seconds=100000",  # none but what a signal asks for
)
"""Beside `SMALL`: a run of 140 faces that takes some seconds and of which each step leaves a line."""


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Path:
    """The folder of the SLURM that `slurm/onehost.py run` has started for these tests."""
    conf = os.environ.get("SLURM_CONF")
    if not conf or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.fail("no SLURM answers: run these tests with `make test-slurm`", pytrace=False)
    return Path(conf).parent


@pytest.fixture(autouse=True)
def no_jobs_left() -> Iterator[None]:
    """Each test begins with an empty queue."""
    yield
    ask("scancel", "--user=root")


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A beton of 140 drawn faces in ten folds."""
    return prepare.synthetic(tmp_path_factory.mktemp("faces"), images=140, seed=1)


@pytest.fixture
def small(faces: Path, place: Path) -> Callable[..., Config]:
    """Configs of small runs: ``small("train.lr=1", run="name")``."""

    def make(*overrides: str, run: str = "run") -> Config:
        return small_config(faces, place / run, *OVERRIDES, *overrides)

    return make


@pytest.fixture(scope="session")
def unbroken(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Path]]:
    """The run folder of a training by torchrun, without SLURM, that nothing interrupted: ``unbroken(4)``."""
    place = tmp_path_factory.mktemp("unbroken")

    def run(processes: int) -> Path:
        folder = place / str(processes)
        if not folder.exists():
            finish(small_config(faces, folder, *OVERRIDES), processes)
        return folder

    yield run
    shutil.rmtree(place)
