"""What the tests on a real SLURM share: each process of pytest starts one of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ferdist.config import Config
from ferdist.data import prepare
from tests.conftest import ROOT
from tests.faults.processes import finish, small_config
from tests.resting import REST, SECONDS
from tests.slurm import onehost
from tests.slurm.jobs import ask

EPOCHS = 4
OVERRIDES = (
    f"train.epochs={EPOCHS}",
    "train.log_every=1",
    "train.evaluate_every=2",
    "train.checkpoint_seconds=100000",  # none but what a signal asks for
)
"""Beside `SMALL`: a run of 140 faces that takes some seconds and of which each step leaves a line."""


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[Path]:
    """The folder of a real SLURM of two nodes on this host, which the variables of this process lead to."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.slurm.onehost", "hold"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,  # what interrupts the tests is not to interrupt its stop
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        folder = holder.stdout.readline().strip()
        if not folder:
            pytest.fail("no SLURM could be started here, see above", pytrace=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
            patch.setenv("PATH", onehost.PATH)
            patch.setenv(REST, SECONDS)  # the jobs inherit it
            yield Path(folder)
        holder.stdin.close()


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
