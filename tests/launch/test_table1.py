"""`launch.table1` with real jobs of this host: the grid, what it costs, what it leaves alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ferdist.config import load_config
from ferdist.data.beton import open_beton
from ferdist.evaluation.pool import shared_config
from ferdist.runtime.experiment import Part, Trial
from ferdist.runtime.folder import RunFolder
from launch import table1 as launcher
from launch.backends import Options
from launch.estimate import cost_of_finished, estimate
from launch.experiment import Experiment, wanted
from tests.conftest import start
from tests.faults.processes import SMALL, status_of
from tests.launch.grids import write_grid

LOCAL = ("--cluster", "local", "--cpu", "1", "--cpus", "1")
NAMES = ("fer2013/resnet18/seed-0", "ckplus/resnet18/fold-00-seed-0", "ckplus/resnet18/fold-01-seed-0")


@pytest.fixture(scope="module")
def configs(two_folds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configs for drawn faces in the layouts of FER2013 (splits) and CK+ (two folds)."""
    return write_grid(tmp_path_factory.mktemp("grid"), two_folds)


def grid(configs: Path, out: Path, *arguments: str) -> list[str]:
    places = ("--configs", str(configs), "--out", str(out), "--models", "resnet18")
    return ["launch.table1", *places, *LOCAL, *arguments]


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of an estimate's table by its first column."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row for row in rows}


@pytest.mark.slow
def test_a_grid_is_estimated_run_once_and_reported(configs: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    dry = start(*grid(configs, out, "--dry-run"))
    assert dry.returncode == 0, dry.stderr
    assert not out.exists()
    rows = rows_of(dry.stdout)
    assert [rows[name][1] for name in ("fer2013/resnet18", "ckplus/resnet18", "together")] == ["1", "2", "3"]
    assert rows["fer2013/resnet18"][-1] == "measured here"
    assert "with 1 at a time" in dry.stdout

    done = start(*grid(configs, out))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}/table1.md\n"
    jobs = json.loads((out / "experiment.json").read_text())["jobs"]
    assert {name: len(attempts) for name, attempts in jobs.items()} == dict.fromkeys(NAMES, 1)
    assert [status_of(out / name)["state"] for name in NAMES] == ["finished"] * 3
    assert RunFolder(out / NAMES[2]).stored_config().data.fold == 1
    text = (out / "table1.md").read_text()
    assert "| resnet18 | – |" in text
    assert "2 folds by subject, last of 2 epochs |" in text
    assert "val, which also picked the best of 2 epochs: biased upward |" in text

    again = start(*grid(configs, out))
    assert again.returncode == 0, again.stderr
    assert json.loads((out / "experiment.json").read_text())["jobs"] == jobs
    assert start(*grid(configs, out, "--dry-run")).stderr == "ferdist: there is nothing to submit\n"

    more = start(*grid(configs, out, "--seeds", "2", "--dry-run"))
    assert more.returncode == 0, more.stderr
    assert more.stderr == "", "nothing is measured where there are finished runs"
    assert "2 finished runs" in more.stdout

    report = start("ferdist.cli", "report", str(out), "--out", str(tmp_path / "report"))
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "report" / "figures" / "ckplus-confusion.svg").is_file()


def test_what_only_a_node_can_measure_costs_no_script(
    configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a login node without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    places = ("--configs", str(configs), "--out", str(tmp_path / "x"), "--models", "resnet18")
    assert launcher.main([*places, "--cluster", "slurm", "--dry-run", "device=auto"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    first, shebang, *script = said.out.splitlines()
    assert (first, shebang) == (
        "this host has no GPU, but the jobs will: measure on a node like theirs (srun --pty)",
        "#!/bin/bash",
    )
    assert "#SBATCH --array=0-2%3" in script
    assert "#SBATCH --gpus-per-node=1" in script


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--models", "resnet19"), "resnet19.yaml: not found, and resnet19 is not a network"),
        (("--datasets", "affectnet"), "affectnet/base.yaml: no such config file"),
        (("data.fold=1",), "data.fold=1: the launcher sets this key itself: every fold"),
        (("model.name=x",), "model.name=x: the launcher sets this key itself: give --models"),
        (("data.path=x.beton",), "data.path=x.beton: each data set has a beton of its own"),
        (("train.select=best",), "would pick an epoch on the fold that is scored"),
    ],
)
def test_what_cannot_be_launched_is_told_in_a_line(
    configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert launcher.main(grid(configs, tmp_path / "x", *arguments)[1:]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.fixture
def experiment(configs: Path, tmp_path: Path) -> Experiment:
    """Two configs of the same data, two folds each, of which nothing was run."""
    config = load_config(configs / "ckplus" / "base.yaml", SMALL)
    part = Part(shared_config(config), open_beton(Path(config.data.path)).manifest.sha256)
    trials = [Trial(fold, 0, name) for name in ("a", "b") for fold in (0, 1)]
    return Experiment(tmp_path / "x", {"a": part, "b": part}, trials)


def finish(experiment: Experiment, trial: Trial, seconds: float, rate: float) -> Path:
    """Leave a run's files as if it had trained for so long and been evaluated for 4 seconds more."""
    run = RunFolder(experiment.run_dir(trial))
    run.path.mkdir(parents=True)
    run.write_config(experiment.run_config(trial), {"date": "2026-01-01T00:00:00Z"})
    run.results.write_text("{}")
    run.metrics.write_text(json.dumps({"step": 1, "time": seconds, "rate/images_per_second": rate}) + "\n")
    minutes, rest = divmod(round(seconds) + 4, 60)
    status = {"state": "finished", "reason": None, "updated": f"2026-01-01T00:{minutes:02d}:{rest:02d}Z"}
    run.status.write_text(json.dumps(status))
    return run.path


def test_finished_runs_tell_the_cost_of_the_others(experiment: Experiment) -> None:
    a, b = ([trial for trial in experiment.trials if trial.part == part] for part in ("a", "b"))
    runs = [
        finish(experiment, trial, *measured)
        for trial, measured in zip(a, ((100, 50), (200, 40)), strict=True)
    ]
    cost = cost_of_finished(runs, 5.0)
    assert cost.seconds == 159
    assert cost.images_per_second == 45
    done = [replace(trial, part="b") for trial in a]
    for trial in done[:1]:
        finish(experiment, trial, 300, 10)
    options = Options(cluster="slurm", gpus=2, cpus=4, array_parallelism=1)
    text = estimate(experiment, done[:1], b[1:], options)
    line = rows_of(text)["b"]
    assert line[1:3] == ["1", "10"]
    hours, minutes, seconds = map(int, line[3].split(":"))
    whole = 3600 * hours + 60 * minutes + seconds
    assert whole >= 304
    assert float(line[4]) == pytest.approx(8 * whole / 3600, abs=0.01)
    assert float(line[5]) == pytest.approx(2 * whole / 3600, abs=0.01)


def test_only_what_is_asked_for_is_submitted(experiment: Experiment) -> None:
    experiment.folder.mkdir()
    experiment.write()
    part = experiment.parts["a"]
    later = Experiment(experiment.folder, {"a": part}, [Trial(0, 0, "a"), Trial(0, 1, "a")])
    assert len(later.trials) == 5
    assert [trial.name for trial in wanted(later, later.standings(), retry=False)] == [
        "a/fold-00-seed-0",
        "a/fold-00-seed-1",
    ]
