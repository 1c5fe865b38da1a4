"""`launch.kfold` with real jobs of this host: what it submits, what it leaves alone, what it sums up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from ferdist.data.beton import open_beton
from ferdist.evaluation.pool import shared_config
from ferdist.runtime.experiment import Part, Trial
from ferdist.runtime.folder import RunFolder
from launch import kfold as launcher
from launch.backends import BACKENDS, Backend, Request
from launch.experiment import Experiment, claim, default_folder
from tests.conftest import ROOT, start
from tests.faults.processes import small_config, status_of
from tests.launch.conftest import command

LOCAL = ("--cluster", "local", "--cpu", "1")


def content(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


def attempts(folder: Path) -> dict[str, int]:
    """How often each run was submitted."""
    return {name: len(jobs) for name, jobs in content(folder / "experiment.json")["jobs"].items()}


@pytest.mark.slow
def test_a_fold_that_fails_is_named_and_retried_alone(two_folds: Path, place: Path) -> None:
    folder = place / "experiment"
    other = RunFolder(folder / "fold-01-seed-0")
    other.path.mkdir(parents=True)
    other.write_config(small_config(two_folds, other.path, "train.lr=9"), {})
    line = command("kfold", two_folds, folder, *LOCAL)

    first = start(*line)
    assert first.returncode == 1, first.stderr
    assert first.stdout == f"{folder}/summary.md\n"
    assert "ferdist: 1 of 2 runs failed; --retry submits it again\n" in first.stderr
    good, bad = content(folder / "summary.json")["cells"]
    assert (good["state"], bad["state"]) == ("finished", "failed")
    assert "its job ended before the training began" in bad["reason"]
    assert "belongs to another config" in bad["reason"]
    text = (folder / "summary.md").read_text()
    assert "1 of 2 runs finished" in text
    assert "fold-01-seed-0: failed: `its job ended before the training began" in text

    assert start(*line).returncode == 1
    assert attempts(folder) == {"fold-00-seed-0": 1, "fold-01-seed-0": 1}, "what failed waits for --retry"

    shutil.rmtree(other.path)
    trained = (folder / "fold-00-seed-0" / "metrics.jsonl").read_bytes()
    retried = start(*line, "--retry")
    assert retried.returncode == 0, retried.stderr
    assert attempts(folder) == {"fold-00-seed-0": 1, "fold-01-seed-0": 2}
    assert (folder / "fold-00-seed-0" / "metrics.jsonl").read_bytes() == trained
    summary = content(folder / "summary.json")
    assert [one["state"] for one in summary["cells"]] == ["finished", "finished"]
    pooled = summary["evaluations"][0]["over_seeds"]
    assert pooled["samples"] == open_beton(two_folds).manifest.samples
    assert "Unfinished runs" not in (folder / "summary.md").read_text()


@pytest.fixture
def finished(two_folds: Path, place: Path) -> Path:
    """The folder of an experiment whose two folds are finished, without the training."""
    folder = place / "experiment"
    config = shared_config(small_config(two_folds, place))
    sha256 = open_beton(two_folds).manifest.sha256
    one = Experiment(folder, {"": Part(config, sha256)}, [Trial(0, 0), Trial(1, 0)])
    for trial in one.trials:
        run = RunFolder(one.run_dir(trial))
        run.path.mkdir(parents=True)
        run.set_status("finished")
        run.results.write_text("{}")
    one.write()
    return folder


def arguments_of(beton: Path, folder: Path, *arguments: str) -> list[str]:
    return command("kfold", beton, folder, *LOCAL, *arguments)[1:]


def test_what_a_finished_experiment_does_not_let_happen(
    finished: Path, two_folds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*")}
    assert launcher.main(arguments_of(two_folds, finished, "train.lr=0.5")) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds an experiment with another config (train.lr: 0.02 -> 0.5)" in error
    with claim(finished):
        assert launcher.main(arguments_of(two_folds, finished, "--retry")) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"ferdist: {finished}: another launcher is working on this experiment: "
        "wait for it, or choose another --out\n"
    )
    (finished / ".lock").unlink()
    assert {file: file.stat().st_mtime_ns for file in before if file != finished} == {
        file: time for file, time in before.items() if file != finished
    }


def test_a_dry_run_shows_what_is_left_to_submit(
    finished: Path, two_folds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queued = ("--cluster", "slurm", "--dry-run")
    assert launcher.main(arguments_of(two_folds, finished, "--seeds", "2", *queued)) == 0
    assert "#SBATCH --array=0-1%" in capsys.readouterr().out, "the two folds of the second seed"
    assert launcher.main(arguments_of(two_folds, finished, "--retry", "--dry-run")) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "ferdist: there is nothing to submit\n")
    (finished / "fold-01-seed-0" / "results.json").unlink()
    assert launcher.main(arguments_of(two_folds, finished, "--dry-run")) == 0
    assert capsys.readouterr().out == "1 run on this host, 1 at a time: 1 rank with 1 core each\n"
    assert launcher.main(arguments_of(two_folds, finished, *queued)) == 0
    script = capsys.readouterr().out
    assert "--array" not in script
    assert f"--job-name=ferdist-{finished.name}" in script
    assert not (finished / "jobs").exists()


class Meanwhile(Backend):
    """Jobs that end after some looks; while the first one is submitted, another shell does something."""

    name = "meanwhile"

    def __init__(self, other_shell: Callable[[], object]) -> None:
        self.other_shell, self.running, self.number, self.looks = other_shell, set[str](), 0, 0
        self.cancelled: set[str] = set()

    def submit(self, request: Request) -> list[str]:
        self.number += 1
        if self.number == 1:
            self.other_shell()
        self.running.add(str(self.number))
        return [str(self.number)]

    def alive(self, jobs: Collection[str], folder: Path) -> dict[str, str]:
        self.looks += 1
        if self.looks % 9 == 0:
            self.running.clear()
        return dict.fromkeys(self.running.intersection(jobs), "RUNNING")

    def cancel(self, jobs: Collection[str], folder: Path) -> None:
        self.cancelled = set(jobs)
        self.running.difference_update(jobs)


def test_cancelling_ends_a_launcher_that_is_submitting(
    two_folds: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = arguments_of(two_folds, place / "x", "--cluster", Meanwhile.name)
    backend = Meanwhile(lambda: launcher.main([*line, "--cancel"]))
    monkeypatch.setitem(BACKENDS, backend.name, backend)
    assert launcher.main(line) == 1
    told = capsys.readouterr().err.splitlines()
    assert "ferdist: cancelled 0 jobs; --retry resumes the runs" in told
    assert told[-1] == "ferdist: cancelled, 2 of 2 runs not finished; --retry resumes them"
    assert attempts(place / "x") == {"fold-00-seed-0": 1}
    assert backend.cancelled == {"1"}, "also the job that had no number yet"

    monkeypatch.setattr(Meanwhile, "alive", lambda *_: {})
    assert launcher.main([*line, "--retry"]) == 1
    assert "ferdist: 2 of 2 runs failed; --retry" in capsys.readouterr().err
    assert attempts(place / "x") == {"fold-00-seed-0": 2, "fold-01-seed-0": 1}


def test_a_folder_without_an_experiment_is_not_cancelled(
    two_folds: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launcher.main(arguments_of(two_folds, place / "none", "--cancel")) == 1
    assert capsys.readouterr().err == (
        f"ferdist: {place}/none: this folder holds no experiment to cancel: give its --out\n"
    )
    assert not (place / "none").exists()


def test_a_limit_that_was_reached_too_often_is_named(finished: Path, two_folds: Path) -> None:
    run = RunFolder(finished / "fold-01-seed-0")
    run.set_status("preempted", "stopped by a signal at step 7; start it again to resume")
    record = {"cluster": "local", "id": "99999999", "submitted": "2026-01-01T00:00:00Z", "slot": 0}
    (finished / "jobs").mkdir()
    log = finished / "jobs" / "99999999_0_log.out"
    log.write_text("submitit INFO - Requeued job 99999999 (0 remaining timeouts)\n" * 6)
    file = finished / "experiment.json"
    for limit, reason in (({"minutes": 60}, "TIMEOUT (--time 60, 6 times), "), ({}, "")):
        file.write_text(json.dumps(content(file) | {"jobs": {run.path.name: [record | limit]}}))
        standing = Experiment(finished, {}, []).standings()[1]
        assert standing.reason == f"{reason}stopped by a signal at step 7; start it again to resume"


def test_inner_folds_leave_one_fold_out_of_every_run(
    place: Path, beton_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = arguments_of(beton_path, place / "x", "--inner-of", "3")
    assert launcher.main([*arguments, "--cluster", "slurm", "--dry-run"]) == 0
    assert "#SBATCH --array=0-8%" in capsys.readouterr().out, "ten folds but that one"
    config = shared_config(small_config(beton_path, place, "data.fold=3", "data.inner_fold=0"))
    assert (config.data.fold, config.data.inner_fold) == (3, None)
    run = Experiment(place / "x", {"": Part(config, "0" * 64)}, [Trial(5, 1)]).run_config(Trial(5, 1))
    assert (run.data.fold, run.data.inner_fold, run.seed) == (3, 5, 1)
    assert launcher.main(arguments_of(beton_path, place / "x", "--inner-of", "10")) == 1
    assert "there is no fold 10: it has 0 to 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("data.inner_fold=1",), "data.inner_fold=1: the launcher sets this key itself: give --inner-of"),
        (("data.fold=1",), "data.fold=1: the launcher sets this key itself: every fold"),
        (("run_dir=x",), "run_dir=x: the launcher sets this key itself: give --out"),
        (("data.path=''",), "data.path is not set"),
        (("data.path=none.beton",), "none.beton: there is no such file"),
        (("train.epoch=3",), "did you mean train.epochs?"),
    ],
)
def test_what_cannot_be_launched_is_told_in_a_line(
    two_folds: Path, place: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    config = str(ROOT / "configs" / "base.yaml")
    options = ("--out", str(place / "x"), "--cluster", "local")
    assert launcher.main([config, *options, f"data.path={two_folds}", *arguments]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (place / "x").exists()


def test_where_an_experiment_goes_by_default() -> None:
    config = ROOT / "configs" / "ckplus" / "resnet18_cbam.yaml"
    assert default_folder(config, "kfold") == Path("runs/ckplus/resnet18_cbam-kfold")


def test_a_run_differs_from_the_experiment_in_fold_seed_and_folder(two_folds: Path, place: Path) -> None:
    config = small_config(two_folds, place)
    one = Experiment(place / "x", {"": Part(config, "0" * 64)}, [Trial(1, 7), Trial(0, 7)])
    assert [trial.name for trial in one.trials] == ["fold-00-seed-7", "fold-01-seed-7"]
    run = one.run_config(Trial(1, 7))
    assert (run.data.fold, run.seed, run.run_dir) == (1, 7, str(place / "x" / "fold-01-seed-7"))
    assert run.train == config.train


def test_a_broken_experiment_file_is_told(two_folds: Path, place: Path) -> None:
    (place / "x").mkdir()
    (place / "x" / "experiment.json").write_text('{"schema": 1')
    from ferdist.errors import RunError

    with pytest.raises(RunError, match="unreadable experiment file"):
        Experiment(place / "x", {"": Part(small_config(two_folds, place), "0" * 64)}, [])


@pytest.mark.slow
def test_a_debugged_fold_runs_in_the_launcher(two_folds: Path, place: Path) -> None:
    """In a process of its own here: a training changes settings of the whole process."""
    options = ("--cluster", "debug", "train.epochs=1")
    done = start(*command("train", two_folds, place / "x", *options, "data.fold=0"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(place / "x" / "seed-0")
    assert status_of(place / "x" / "seed-0")["state"] == "finished"
