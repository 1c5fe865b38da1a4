"""`launch.table1` on a real SLURM: the whole grid is one array, and ends in table1.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ferdist.data import prepare
from tests.conftest import start
from tests.faults.processes import status_of
from tests.launch.grids import write_grid
from tests.slurm.jobs import ask

NAMES = ["fer2013/resnet18/seed-0", "ckplus/resnet18/fold-00-seed-0", "ckplus/resnet18/fold-01-seed-0"]


def test_a_grid_is_one_array_and_what_was_lost_is_sent_again(place: Path) -> None:
    raw = prepare.synthetic(place / "raw-ckplus", images=140, seed=1, format="ckplus48")
    configs = write_grid(place, prepare.ckplus(raw, place, folds=2))
    out = place / "grid"
    command = ["launch.table1", "--configs", str(configs), "--models", "resnet18", "--out", str(out)]
    command += ["--cluster", "slurm", "--cpu", "1", "--cpus", "1", "--mem-gb", "1"]

    dry = start(*command, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "#SBATCH --array=0-2" in dry.stdout
    assert not out.exists()

    sent = start(*command, "--array-parallelism", "2", "--wait")
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout == f"{out}/table1.md\n"
    jobs = json.loads((out / "experiment.json").read_text())["jobs"]
    numbers = [jobs[name][0]["id"] for name in NAMES]
    array = numbers[0].partition("_")[0]
    assert numbers == [f"{array}_{element}" for element in range(3)]
    states = ask("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={array}", "--format=State")
    assert states.split() == ["COMPLETED"] * 3
    assert [status_of(out / name)["state"] for name in NAMES] == ["finished"] * 3

    shutil.rmtree(out / NAMES[2])
    again = start(*command, "--retry", "--wait")
    assert again.returncode == 0, again.stderr
    jobs = json.loads((out / "experiment.json").read_text())["jobs"]
    assert [len(jobs[name]) for name in NAMES] == [1, 1, 2]
    assert "2 folds by subject, last of 2 epochs |" in (out / "table1.md").read_text()
