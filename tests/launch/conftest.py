"""A data set of two folds, and launchers as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ferdist.data import prepare
from tests.conftest import ROOT
from tests.faults.processes import SMALL
from tests.resting import REST, SECONDS


@pytest.fixture(scope="session")
def two_folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A beton of 140 drawn faces in the layout of CK+, with two folds."""
    place = tmp_path_factory.mktemp("two-folds")
    raw = prepare.synthetic(place / "raw", images=140, seed=1, format="ckplus48")
    return prepare.ckplus(raw, place, folds=2)


def command(launcher: str, beton: Path, out: Path, *arguments: str) -> list[str]:
    """The arguments of `python -m` for a launcher with small runs in a folder."""
    config = str(ROOT / "configs" / "base.yaml")
    data = f"data.path={beton}"
    return [f"launch.{launcher}", config, "--out", str(out), "--cpus", "1", *SMALL, data, *arguments]


def begin(*arguments: str) -> subprocess.Popen[str]:
    """Start ``python -m ARGUMENTS`` and leave it running; its trainings rest (see ``tests.resting``)."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, REST: SECONDS},
    )
