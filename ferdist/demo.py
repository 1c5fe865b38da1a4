"""The whole way on drawn faces: beton, training on two processes, evaluation clean and covered, report."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch

from ferdist.beton import inspect
from ferdist.datasets import prepare
from ferdist.errors import ConfigError, RunError
from ferdist.reporting import write_report

CONFIG = Path("configs/demo.yaml")
PROCESSES = 2


def run_demo(out: Path, images: int) -> tuple[Path, Path]:
    """Run the main job on data that it makes itself.

    Args:
        out: the run's folder; removed first.
        images: number of drawn faces.

    Returns:
        results.json and report.html.

    Raises:
        ConfigError: outside of a checkout, where there is no configs/demo.yaml, or if ``out`` holds
            something that is no former demo.
        RunError: if a step fails; the step has said why on stderr.
    """
    if not CONFIG.is_file():
        raise ConfigError(f"{CONFIG}: there is no such file: run the demo in a checkout of ferdist")
    if out.exists() and any(out.iterdir()) and not (out / "data" / "synthetic.beton").exists():
        raise ConfigError(f"{out}: not empty and no former demo: give --out another folder")
    shutil.rmtree(out, ignore_errors=True)
    _say(f"draw {images} faces and write them as a beton")
    beton = prepare.synthetic(out / "data", images=images)
    print(inspect.as_text(inspect.inspect(beton)), file=sys.stderr)
    inspect.save_grid(beton, out / "faces.png", None)
    inspect.save_grid(beton, out / "augmented.png", CONFIG)
    _say(f"train on {PROCESSES} processes, as on as many GPUs")
    device = "cpu" if torch.cuda.device_count() < PROCESSES else "cuda"
    settings = [f"data.path={beton}", f"run_dir={out}", f"device={device}"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    _start([*launcher, "-m", "ferdist.train", str(CONFIG), *settings])
    _say("evaluate on subjects that it never saw, clean and covered")
    few = ["--kinds", "square,circle", "--fills", "zero"]
    _start(["-m", "ferdist", "evaluate", str(out), "--occlusion", *few])
    _start(["-m", "ferdist", "evaluate", str(out), "--split", "test"])
    _say("write the report")
    page = write_report([out], out / "report")
    return out / "results.json", page


def _say(step: str) -> None:
    print(f"\n== {step}", file=sys.stderr, flush=True)


def _start(arguments: list[str]) -> None:
    code = subprocess.run([sys.executable, *arguments], check=False).returncode
    if code:
        raise RunError(f"`python {' '.join(arguments)}` ended with exit code {code}: see its message above")
