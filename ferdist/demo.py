"""The whole way on drawn faces: beton, training on two processes, evaluation clean and covered, report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from ferdist.data import prepare
from ferdist.errors import ConfigError, RunError
from ferdist.io import MIB, read_untrusted
from ferdist.reporting import write_report
from ferdist.runtime.folder import RunFolder
from ferdist.use import inspect

CONFIG = Path("configs/demo.yaml")
PROCESSES = 2
MARKER = ".ferdist-demo"
"""File in the demo's folder that lists, a name a line, what the demo has written there."""


def run_demo(out: Path, images: int) -> tuple[Path, Path]:
    """Run the main job on data that it makes itself.

    Args:
        out: the run's folder. What a former demo wrote there is removed first; anything else stays.
        images: number of drawn faces.

    Returns:
        results.json and report.html.

    Raises:
        ConfigError: if ``out`` holds something and is not a former demo's.
        RunError: if a step fails; the step has said why on stderr.
    """
    _remove_former(out)
    _say(f"draw {images} faces and write them as a beton")
    beton = prepare.synthetic(_claim(out, "data"), images=images)
    print(inspect.as_text(inspect.inspect(beton)), file=sys.stderr)
    inspect.save_grid(beton, _claim(out, "faces.png"), None)
    inspect.save_grid(beton, _claim(out, "augmented.png"), CONFIG)
    _say(f"train on {PROCESSES} processes, as on as many GPUs")
    device = "cpu" if torch.cuda.device_count() < PROCESSES else "cuda"
    settings = [f"data.path={beton}", f"run_dir={out}", f"device={device}"]
    for path in RunFolder(out).contents():
        _claim(out, path.name)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    threads = max(1, len(os.sched_getaffinity(0)) // PROCESSES)  # torchrun would set 1, and say so at length
    _start([*launcher, "-m", "ferdist.train", str(CONFIG), *settings], OMP_NUM_THREADS=str(threads))
    _say("evaluate on subjects that it never saw, clean and covered")
    few = ["--kinds", "square,circle", "--fills", "zero"]
    _start(["-m", "ferdist", "evaluate", str(out), "--occlusion", *few])
    _start(["-m", "ferdist", "evaluate", str(out), "--split", "test"])
    _say("write the report")
    page = write_report([out], _claim(out, "report"))
    return out / "results.json", page


def _claim(out: Path, name: str) -> Path:
    """Note in the marker that the demo writes ``name``, which is not there yet; its path."""
    if (out / name).exists():
        raise ConfigError(
            f"{out / name}: not written by an earlier demo: move it, or give --out another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    with (out / MARKER).open("a", encoding="utf-8") as marker:
        marker.write(f"{name}\n")
    return out / name


def _remove_former(out: Path) -> None:
    """Remove what the marker lists, and nothing else; a link goes, not what it leads to."""
    marker = out / MARKER
    if not marker.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out}: not empty and not from an earlier demo: give --out another folder")
        return
    for name in read_untrusted(marker, MIB).decode("utf-8").splitlines():
        path = out / name
        if path.parent != out or name in ("", ".", ".."):
            raise ConfigError(f"{marker}: {name!r} is not a name in this folder: remove the folder by hand")
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    marker.unlink()


def _say(step: str) -> None:
    print(f"\n== {step}", file=sys.stderr, flush=True)


def _start(arguments: list[str], **environment: str) -> None:
    code = subprocess.run(
        [sys.executable, *arguments], env={**environment, **os.environ}, check=False
    ).returncode
    if code:
        raise RunError(f"`python {' '.join(arguments)}` ended with exit code {code}: see its message above")
