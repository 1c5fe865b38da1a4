"""The throw-away SLURM starts beside another one, survives a crash of its controller, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import PATIENCE, ROOT

SCRIPT = str(ROOT / "tests" / "slurm" / "onehost.py")


def onehost(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests/slurm/onehost.py."""
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def members(conf: Path) -> list[str]:
    """The processes of a cluster and of its jobs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_CONF={conf}".encode() in variables:
            found.append(process.name)
    return found


def test_it_runs_beside_another_and_leaves_nothing_even_without_a_controller(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nexec srun sleep 600\n")
    with tempfile.TemporaryDirectory(prefix="onehost-test-") as parent:  # a shorter path than pytest's own
        folder = Path(parent) / "cluster"
        saved = f"[ $(stat --format=%Y {folder}/state/job_state) -gt $now ]"  # slurmctld saves seconds later
        command = (
            "set -e\n"
            "sinfo --noheader --Node --partition=main --format='%N %T %G'\n"
            f"sbatch --output=/dev/null --gpus=1 {script}\n"
            "until squeue --steps --noheader | grep --quiet sleep; do sleep 0.1; done\n"
            f"now=$(date +%s); until {saved}; do sleep 0.1; done\n"
            f"{sys.executable} {SCRIPT} kill-controller {folder}\n"
            f"{sys.executable} {SCRIPT} start-controller {folder}\n"
            "squeue --noheader --format=%T\n"
            f"{sys.executable} {SCRIPT} kill-controller {folder}\n"
            "exit 7\n"
        )
        done = onehost("run", "--folder", str(folder), "--", "sh", "-c", command)
        assert done.returncode == 7, done.stderr
        first, second, _, state = done.stdout.splitlines()
        assert (first, second) == ("127.0.0.1 idle gpu:2", "127.0.0.2 idle gpu:2")
        assert state == "RUNNING"
        assert members(folder / "slurm.conf") == []
        assert not folder.exists()


def test_it_refuses_a_folder_that_holds_something() -> None:
    with tempfile.TemporaryDirectory(prefix="onehost-test-") as parent:
        (Path(parent) / "mine.txt").write_text("mine")
        for action, message in (("start", "not empty"), ("stop", "no cluster of onehost.py in this folder")):
            done = onehost(action, *(["--folder"] if action == "start" else []), parent)
            assert done.returncode == 1
            assert message in done.stderr
        assert (Path(parent) / "mine.txt").read_text() == "mine"
