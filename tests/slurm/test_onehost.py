"""The throw-away SLURM: it starts beside another, outlives a crash of its controller, leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NOBODY = 65534


def onehost(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run slurm/onehost.py."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, str(ROOT / "slurm" / "onehost.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        **options,
    )


def ask(conf: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM against the cluster with that configuration."""
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


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


def test_it_starts_beside_another_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
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
        ask(conf, "scontrol", "wait_job", job)
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
    tmp_path: Path,
) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nexec srun sleep 600\n")
    folder = tmp_path / "cluster"
    command = (
        f"sbatch --parsable --output=/dev/null {script} && scontrol wait_job $(squeue -h -o %i) "
        f"&& {sys.executable} {ROOT}/slurm/onehost.py kill-controller {folder} && exit 7"
    )
    done = onehost("run", "--folder", str(folder), "--", "sh", "-c", command)
    assert done.returncode == 7, done.stderr
    assert members(folder / "slurm.conf") == []
    assert not folder.exists()


def test_it_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for arguments, message in (
        (("start", "--folder", str(tmp_path)), "not empty"),
        (("stop", str(tmp_path)), "no cluster of onehost.py in this folder"),
    ):
        done = onehost(*arguments)
        assert done.returncode == 1
        assert message in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "mine"
    done = onehost("start", user=NOBODY)
    assert done.returncode == 1
    assert "become root" in done.stderr
