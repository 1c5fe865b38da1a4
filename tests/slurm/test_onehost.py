"""The throw-away SLURM: it starts beside another, outlives a crash of its controller, leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, ROOT

NOBODY = 65534


def onehost(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests/slurm/onehost.py."""
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "slurm" / "onehost.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def ask(conf: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM against the cluster with that configuration."""
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False
    )


def members(conf: Path) -> list[str]:
    """The processes of a cluster and of its jobs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"SLURM_CONF={conf}".encode() in variables:
            found.append(f"{process.name} {command}")
    return found


def wait_for_step(conf: Path) -> None:
    """Wait until a job's processes run."""
    limit = time.monotonic() + PATIENCE
    while not any(line.endswith(" sleep 600 ") for line in members(conf)):
        assert time.monotonic() < limit, ask(conf, "squeue").stdout
        time.sleep(0.1)


def wait_for_saved_state(folder: Path) -> None:
    """Wait until slurmctld has saved what is now: it does so seconds later; a crash loses the rest."""
    now = time.time()
    while (folder / "state" / "job_state").stat().st_mtime <= now:
        assert time.time() - now < PATIENCE
        time.sleep(0.1)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is not there yet, with a shorter path than pytest's own."""
    with tempfile.TemporaryDirectory(prefix="onehost-test-") as parent:
        yield Path(parent) / "cluster"


def test_it_starts_beside_another_and_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    conf = folder / "slurm.conf"
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nexec srun sleep 600\n")
    started = onehost("start", "--folder", str(folder))
    try:
        assert started.returncode == 0, started.stderr
        assert started.stdout.splitlines()[0] == f"export SLURM_CONF={conf}"
        nodes = ask(conf, "sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T %G")
        assert nodes.stdout.splitlines() == ["127.0.0.1 idle gpu:2", "127.0.0.2 idle gpu:2"]

        sent = ask(conf, "sbatch", "--parsable", "--output=/dev/null", "--gpus=1", str(script))
        job = sent.stdout.strip()
        wait_for_step(conf)
        wait_for_saved_state(folder)
        assert onehost("kill-controller", str(folder)).returncode == 0
        assert "runs already" not in onehost("start-controller", str(folder)).stderr
        assert ask(conf, "squeue", "--noheader", "--format=%i %T").stdout.split() == [job, "RUNNING"]
        account = ask(
            conf, "sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job}", "--format=State"
        )
        assert account.stdout.split() == ["RUNNING"]
        assert len(members(conf)) >= 7
    finally:
        stopped = onehost("stop", str(folder))
    assert stopped.returncode == 0, stopped.stderr
    assert members(conf) == []
    assert not folder.exists()


def test_a_command_is_run_against_one_and_its_jobs_are_ended_even_without_a_controller(
    tmp_path: Path, folder: Path
) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nexec srun sleep 600\n")
    command = (
        f"sbatch --output=/dev/null {script}\n"
        "until squeue --steps --noheader | grep sleep; do sleep 0.1; done\n"
        f"{sys.executable} {ROOT}/tests/slurm/onehost.py kill-controller {folder} && exit 7"
    )
    done = onehost("run", "--folder", str(folder), "--", "sh", "-c", command)
    assert done.returncode == 7, done.stderr
    assert members(folder / "slurm.conf") == []
    assert not folder.exists()


def test_it_refuses_what_it_cannot_do(folder: Path) -> None:
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    for arguments, message in (
        (("start", "--folder", str(folder)), "not empty"),
        (("start", "--folder", str(folder / ("long" * 20))), "too long"),
        (("stop", str(folder)), "no cluster of onehost.py in this folder"),
    ):
        done = onehost(*arguments)
        assert done.returncode == 1
        assert message in done.stderr
    assert (folder / "mine.txt").read_text() == "mine"


def test_it_needs_root() -> None:
    """Python itself may lie where only root can read, so it becomes another user when it has started."""
    program = (
        "import os, runpy, sys\n"
        "names = runpy.run_path(sys.argv[1])\n"
        "os.seteuid(int(sys.argv[2]))\n"
        "sys.exit(names['main'](['start']))\n"
    )
    script = str(ROOT / "tests" / "slurm" / "onehost.py")
    command = [sys.executable, "-c", program, script, str(NOBODY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "become root" in done.stderr
