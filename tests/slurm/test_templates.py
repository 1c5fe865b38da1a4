"""The templates of slurm/ as they are, sent to a real SLURM: trainings end well, stop, come back, fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ferdist.config import Config
from ferdist.data.beton import open_beton
from ferdist.data.folds import Holdout
from ferdist.evaluation.predictions import Predictions
from tests.faults.processes import newest_step, status_of, unequal
from tests.slurm.jobs import Job, ask, submit

Small = Callable[..., Config]
Unbroken = Callable[[int], Path]


def lines(folder: Path) -> str:
    """metrics.jsonl, empty where there is none."""
    file = folder / "metrics.jsonl"
    return file.read_text() if file.exists() else ""


def is_preempted(folder: Path) -> bool:
    """Whether status.json says so."""
    return status_of(folder).get("state") == "preempted"


def stop_and_come_back(job: Job, folder: Path, stop: Callable[[], object]) -> None:
    """Stop a job that trains: it must write a checkpoint, come back and resume from there to a good end.

    A run that started over would have other times in the lines before the stop.
    """
    job.wait_until(lambda: lines(folder))
    stop()
    job.wait_until(lambda: is_preempted(folder))
    before, step = lines(folder), newest_step(folder)
    assert 0 < step < status_of(folder)["total_steps"], "it was to be stopped amid the training"
    turns = job.completes()
    assert len(turns) == 2, f"{turns}: {job.output()}"
    assert turns[0] in ("REQUEUED", "PREEMPTED"), turns
    assert lines(folder).startswith(before), "it did not resume from the checkpoint"
    assert status_of(folder)["state"] == "finished"


def test_a_node_with_two_ranks_is_stopped_and_comes_back(small: Small, unbroken: Unbroken) -> None:
    config = small()
    job = submit("single_node.sbatch", config)
    stop_and_come_back(job, Path(config.run_dir), lambda: job.signal("USR2"))
    assert unequal(unbroken(2), Path(config.run_dir)) == []


def test_two_nodes_are_stopped_and_come_back(small: Small, unbroken: Unbroken) -> None:
    config = small()
    job = submit("multi_node.sbatch", config)
    stop_and_come_back(job, Path(config.run_dir), lambda: job.signal("USR2"))
    assert job.fields("NNodes,NTasks,AllocTRES").startswith("2|")
    assert status_of(Path(config.run_dir))["world_size"] == 4
    assert unequal(unbroken(4), Path(config.run_dir)) == []


def test_torchrun_on_two_nodes_is_stopped_and_comes_back(small: Small, unbroken: Unbroken) -> None:
    config = small()
    job = submit("torchrun.sbatch", config)
    stop_and_come_back(job, Path(config.run_dir), lambda: job.signal("USR2"))
    assert unequal(unbroken(4), Path(config.run_dir)) == []


def test_folds_are_jobs_of_their_own(small: Small, faces: Path, place: Path) -> None:
    """The last element of an array bears the id of the whole array: only that one may be requeued."""
    folds = 3
    config = small()
    array = submit("kfold_array.sbatch", config, options=[f"--array=0-{folds - 1}"])
    jobs = [Job(f"{array.id}_{fold}", array.log) for fold in range(folds)]
    folders = [Path(config.run_dir) / f"fold-{fold}" for fold in range(folds)]
    stop_and_come_back(jobs[-1], folders[-1], lambda: jobs[-1].signal("USR2"))
    assert [job.completes() for job in jobs[:-1]] == [["COMPLETED"]] * (folds - 1)

    beton = open_beton(faces)
    for fold, folder in enumerate(folders):
        assert status_of(folder)["state"] == "finished"
        predictions = Predictions.load(next((folder / "predictions").glob(f"*-val-fold{fold}-*.npz")))
        assert np.array_equal(predictions.index, beton.indices("val", Holdout(fold)))
    again = small(f"data.fold={folds - 1}", run="again")
    submit("single_node.sbatch", again, options=["--ntasks-per-node=1"]).completes()
    assert unequal(Path(again.run_dir), folders[-1]) == []


def test_a_requeue_by_hand_comes_back(small: Small, unbroken: Unbroken) -> None:
    """The processes get SIGTERM; KillWait is time enough for a checkpoint of this size."""
    config = small()
    job = submit("single_node.sbatch", config)
    stop_and_come_back(job, Path(config.run_dir), lambda: ask("scontrol", "requeue", job.id))
    assert unequal(unbroken(2), Path(config.run_dir)) == []


def test_a_cancelled_job_stays_away_and_can_be_sent_again(small: Small, unbroken: Unbroken) -> None:
    config = small()
    folder = Path(config.run_dir)
    job = submit("single_node.sbatch", config)
    job.wait_until(lambda: lines(folder))
    ask("scancel", job.id)
    assert job.end() == ["CANCELLED"]
    job.leaves_the_queue()
    assert is_preempted(folder)
    assert job.turns() == ["CANCELLED"]
    assert submit("single_node.sbatch", config).completes() == ["COMPLETED"]
    assert unequal(unbroken(2), folder) == []


def test_a_rank_that_dies_ends_the_job(small: Small) -> None:
    config = small("train.epochs=1000")
    folder = Path(config.run_dir)
    job = submit("multi_node.sbatch", config)
    job.wait_until(lambda: lines(folder))
    job.kill_ranks(3)
    assert job.end() == ["FAILED"]
    assert status_of(folder)["state"] == "failed"


def test_a_mistake_is_told_and_ends_the_job(small: Small) -> None:
    """A status.json of an earlier turn that says `preempted` must not bring it back."""
    jobs = {}
    for template in ("single_node", "multi_node", "torchrun", "kfold_array"):
        config = small(run=template)
        folder = Path(config.run_dir)
        folder.mkdir()
        (folder / "status.json").write_text('{\n  "state": "preempted"\n}\n')
        options = ["--array=0"] if template == "kfold_array" else []
        jobs[template] = submit(f"{template}.sbatch", config, "train.epoch=3", options=options)
    for template, job in jobs.items():
        assert job.end() == ["FAILED"], template
        assert "train.epoch" in job.output()
