"""`launch.kfold` and `launch.train` on a real SLURM: arrays, summaries, two launchers, failures, retries."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from submitit.slurm.slurm import SlurmJob

from ferdist.data import prepare
from ferdist.data.beton import open_beton
from ferdist.evaluation.predictions import Predictions
from tests.faults.processes import status_of, unequal
from tests.slurm.jobs import ask
from tests.slurm.launchers import Launcher, has_begun, wait_for

Unbroken = Callable[[int], Path]


@pytest.fixture(scope="module")
def four_folds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A beton of 140 drawn faces in the layout of CK+, with four folds."""
    place = tmp_path_factory.mktemp("four-folds")
    raw = prepare.synthetic(place / "raw", images=140, seed=1, format="ckplus48")
    yield prepare.ckplus(raw, place, folds=4)
    shutil.rmtree(place)


@pytest.fixture
def four(four_folds: Path, place: Path) -> Launcher:
    """The launcher for four folds, two of them at a time."""
    return Launcher(
        "kfold", four_folds, place / "x", "--cpu", "1", "--array-parallelism", "2", "train.epochs=3"
    )


def test_ten_folds_to_a_summary(faces: Path, place: Path) -> None:
    kfold = Launcher("kfold", faces, place / "x", "--cpu", "1", "--array-parallelism", "2", "train.epochs=3")
    launched = kfold("--wait")
    assert launched.code == 0, launched.errors
    assert launched.out == f"{place}/x/summary.md\n"
    for state in ("PENDING", "finished"):
        assert f"ferdist: fold-09-seed-0 {state}\n" in launched.errors
    assert " RUNNING\n" in launched.errors
    names = [f"fold-{fold:02d}-seed-0" for fold in range(10)]
    jobs = [kfold.job(name) for name in names]
    assert [job.id for job in jobs] == [f"{jobs[0].id.partition('_')[0]}_{fold}" for fold in range(10)]
    wait_for(lambda: [SlurmJob(place / "x" / "jobs", job.id).state for job in jobs] == ["COMPLETED"] * 10)
    assert [job.end() for job in jobs] == [["COMPLETED"]] * 10

    beton = open_beton(faces)
    right = np.full(beton.manifest.samples, -1)
    for fold, name in enumerate(names):
        found = Predictions.load(place / "x" / name / "predictions" / f"synthetic-val-fold{fold}-last.npz")
        right[found.index] = found.probabilities.argmax(1) == beton.label[found.index]
    assert (right >= 0).all()
    image = kfold.content("summary.json")["evaluations"][0]
    assert image["over_seeds"]["accuracy"]["mean"] == pytest.approx(right.mean())
    assert len(image["per_fold"]) == 10

    again = kfold("--retry", "--wait")
    assert again.code == 0
    assert set(kfold.attempts().values()) == {1}, "what is finished is left alone"


def test_two_nodes_with_two_ranks_train_what_torchrun_does_with_four(
    faces: Path, place: Path, unbroken: Unbroken
) -> None:
    train = Launcher("train", faces, place / "x", "--nodes", "2", "--cpu", "2")
    launched = train("--wait")
    assert launched.code == 0, launched.errors
    job = train.job("seed-0")
    assert job.end() == ["COMPLETED"]
    assert job.fields("NNodes,NCPUS") == "2|4"
    assert status_of(place / "x" / "seed-0")["world_size"] == 4
    assert unequal(unbroken(4), place / "x" / "seed-0") == []


def test_two_launchers_at_once_send_one_array(four: Launcher) -> None:
    first, second = four.begin("--wait"), four.begin("--wait")
    both = [second.end(), first.end()]
    refused = [launched for launched in both if launched.code]
    assert len(refused) == 1, [launched.errors for launched in both]
    assert refused[0].errors == (
        f"ferdist: {four.folder}: another launcher is working on this experiment: wait for it, "
        "or choose another --out\n"
    )
    assert set(four.attempts().values()) == {1}
    assert set(four.standings().values()) == {"finished"}


def test_half_of_the_array_is_cancelled(four: Launcher) -> None:
    """Two folds that run and write a checkpoint, and two that never began, in turn."""
    launched = four("train.epochs=12")
    assert launched.code == 0, launched.errors
    assert set(four.standings().values()) <= {"pending", "running"}
    assert four("--retry", "train.epochs=12").code == 0
    assert set(four.attempts().values()) == {1}, "what waits or runs is not sent again"
    wait_for(lambda: has_begun(four.folder / "fold-00-seed-0"))
    ask("scancel", four.job("fold-00-seed-0").id, four.job("fold-03-seed-0").id)
    watched = four("--wait", "train.epochs=12")
    assert watched.code == 1
    assert "ferdist: 2 of 4 runs failed" in watched.errors
    standings = [four.standings()[f"fold-{fold:02d}-seed-0"] for fold in range(4)]
    assert standings == ["failed", "finished", "finished", "failed"]
    assert four("train.epochs=12").code == 1
    assert "CANCELLED" in four.reason("fold-00-seed-0")
    assert "stopped by a signal at step" in four.reason("fold-00-seed-0")
    # SLURM's accounting never hears of an element that is cancelled while it waits.
    assert "its job ended before the training began" in four.reason("fold-03-seed-0")
    retried = four("--retry", "--wait", "train.epochs=12")
    assert retried.code == 0, retried.errors
    assert four.attempts() == {f"fold-{fold:02d}-seed-0": 1 + (fold in (0, 3)) for fold in range(4)}


def test_a_refusal_of_slurm_is_told_in_a_line(faces: Path, place: Path) -> None:
    train = Launcher("train", faces, place / "x", "--cpu", "1", "--partition", "none")
    launched = train()
    assert launched.code == 1
    assert launched.errors.count("\n") == 1
    assert "ferdist: cannot submit the jobs: " in launched.errors
    assert "invalid partition" in launched.errors
    assert train.content("experiment.json")["jobs"] == {}


def test_the_launcher_finds_slurm_by_itself_and_ranks_get_gpus(faces: Path, place: Path) -> None:
    """The GPUs are fakes: SLURM counts them, and PyTorch finds none."""
    options = ("--gpus-per-node", "2", "train.epochs=1", "--cluster", "auto")
    refused = Launcher("train", faces, place / "y", *options, "device=auto")("--wait")
    assert refused.code == 1
    assert "device is cuda, but " in refused.errors
    train = Launcher("train", faces, place / "x", *options)
    launched = train("--wait")
    assert launched.code == 0, launched.errors
    assert train.content("experiment.json")["jobs"]["seed-0"][0]["cluster"] == "slurm"
    assert "gres/gpu=2" in train.job("seed-0").fields("AllocTRES")
    assert status_of(place / "x" / "seed-0")["world_size"] == 2
