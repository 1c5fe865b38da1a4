"""The campaign of faults in short: a few tries of what is quick, at fixed moments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SHORT = (
    *("prepare:SIGKILL*", "evaluate:SIGKILL", "export-weights:SIGKILL", "train:SIGKILL"),
    *("prepare:full-disk", "evaluate:read-only", "train:lost-disk", "train:clock", "train-2:SIGSTOP"),
)


def campaign(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults.campaign", "--json", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_nothing_is_lost_wrong_or_left_and_a_stopped_campaign_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "tries.jsonl"
    done = campaign(file, *SHORT, "--tries", "1", "--pause", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    tries = file.read_text().splitlines()
    assert len(tries) >= 6, "the others need mounts"

    again = campaign(file, *SHORT, "--tries", "1")
    assert again.returncode == 0
    assert file.read_text().splitlines() == tries
    assert again.stdout == done.stdout[-len(again.stdout) :], "the same table"

    broken = json.loads(tries[0]) | {"lost": ["the set"]}
    file.write_text("\n".join([json.dumps(broken), *tries[1:]]))
    assert campaign(file, *SHORT, "--tries", "1").returncode == 1
