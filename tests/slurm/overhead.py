"""How long a launcher takes for its jobs, and a job to its first step: `python -m tests.slurm.overhead`.

Needs a SLURM: `python -m tests.slurm.onehost run -- python -m tests.slurm.overhead`. The arrays of the first
part are held back and cancelled; the job of the second trains.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ferdist.data import prepare
from ferdist.data.beton import open_beton
from ferdist.evaluation.pool import shared_config
from ferdist.runtime.experiment import Part, Trial
from launch.backends import Options
from launch.experiment import Experiment
from tests.conftest import ROOT
from tests.faults.processes import small_config
from tests.slurm.launchers import Launcher, has_begun, wait_for


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="*", default=[10, 50], help="sizes of the arrays")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        faces = prepare.synthetic(place / "data", images=140, seed=1)
        for jobs in arguments.jobs:
            seconds = submission(faces, place / f"array-{jobs}", jobs)
            print(f"an array of {jobs}: {seconds:.2f} s, {1000 * seconds / jobs:.1f} ms a job", flush=True)
        whole, launcher = first_step(faces, place / "first")
        print(f"from the command to the first step: {whole:.1f} s, of which the launcher {launcher:.1f} s")


def submission(faces: Path, folder: Path, jobs: int) -> float:
    """Seconds from known trials to noted job numbers; the jobs never start."""
    beton = open_beton(faces)
    trials = [Trial(number % 10, number // 10) for number in range(jobs)]
    config = shared_config(small_config(faces, folder))
    experiment = Experiment(folder, {"": Part(config, beton.manifest.sha256)}, trials)
    folder.mkdir()
    begun = time.monotonic()
    experiment.submit(trials, Options(cluster="slurm", cpu=1, cpus=1, sbatch=["hold"]))
    seconds = time.monotonic() - begun
    subprocess.run(["scancel", f"--name={experiment.job_name}"], check=True)
    return seconds


def first_step(faces: Path, folder: Path) -> tuple[float, float]:
    """Seconds from a user's command to the first line of metrics, and to the launcher's end."""
    train = Launcher("train", faces, folder, "--cpu", "1")
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", *train.arguments], cwd=ROOT, check=True)  # with its imports
    launcher = time.monotonic() - begun
    wait_for(lambda: has_begun(folder / "seed-0"))
    whole = time.monotonic() - begun
    subprocess.run(["scancel", train.job("seed-0").id], check=True)
    wait_for(lambda: not subprocess.run(["squeue", "--noheader"], capture_output=True, check=True).stdout)
    return whole, launcher


if __name__ == "__main__":
    main()
