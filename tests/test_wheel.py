"""What is installed from a wheel does all of it without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DATA = "data.path=data/synthetic.beton"
SMALL = ("train.epochs=1", "model.width=8", "data.batch_size=32", "train.log_every=2", "device=cpu")


@pytest.mark.slow
def test_a_wheel_works_in_any_folder(tmp_path: Path) -> None:
    """Configs by name, shipped weights and the report's template are in it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels, place, here = tmp_path / "wheels", tmp_path / "installed", tmp_path / "here"
    here.mkdir()
    build = ["wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={wheels}", str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", f"--target={place}", str(wheel)], check=True)

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(place) in run("-c", "import ferdist; print(ferdist.__file__)")
    run("-m", "ferdist", "prepare", "synthetic", "--out", "data", "--images", "120")
    run("-m", "ferdist", "train", "demo", "data.path=data/synthetic.beton", "run_dir=runs/a", *SMALL)
    run(
        "-m",
        "ferdist",
        "train",
        "configs/demo.yaml",
        "data.path=data/synthetic.beton",
        "run_dir=runs/b",
        *SMALL,
    )
    assert "accuracy" in run("-m", "ferdist", "evaluate", "runs/a")
    run("-m", "ferdist", "report", "runs/a", "--out", "report")
    run("-m", "ferdist", "inspect", "data/synthetic.beton", "--grid", "faces.png")
    assert "faces.png" in run(
        "-m", "ferdist", "predict", "fer2013_resnet18_cbam", "faces.png", "--whole-image"
    )
    launched = [
        "demo",
        "data.path=data/synthetic.beton",
        "--cluster",
        "slurm",
        "--partition",
        "x",
        "--dry-run",
    ]
    run("-m", "launch.kfold", *launched)
