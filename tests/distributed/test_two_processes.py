"""Several gloo processes against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ferdist.cli import main
from ferdist.config import Config, to_dict
from ferdist.data.beton import open_beton, staged_path
from ferdist.evaluation.benchmark import Cell, grid
from ferdist.evaluation.predictions import Predictions
from ferdist.runtime import checkpoint
from ferdist.training.run import run
from tests.conftest import PATIENCE, ROOT, start
from tests.faults.processes import unequal
from tests.forking import ranks

pytestmark = pytest.mark.slow


def train(config: Config, processes: int, **environment: str) -> None:
    path = Path(config.run_dir).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(to_dict(config)))
    done = start("ferdist.train", str(path), processes=processes, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(Path(config.run_dir) / "results.json")], "rank 0 alone speaks"


def weights(config: Config, step: int) -> dict[str, torch.Tensor]:
    """Parameters after a step. Running statistics follow rank 0's batches alone, so they are left out."""
    state = checkpoint.load(checkpoint.step_path(Path(config.run_dir) / "checkpoints", step), dict)
    return {k: v for k, v in state["model"].items() if "running" not in k and "num_batches" not in k}


def test_two_processes_train_what_one_does_with_more_micro_batches(tiny: Callable[..., Config]) -> None:
    """Four micro-batches on one rank, two on each of two: the same updates within rounding.

    Samples, draws and batch statistics are the same, and so is mixup, which pairs samples within a
    micro-batch. Only the first updates are compared: with 8 samples in a micro-batch this network multiplies
    a difference by a hundred at each step.
    """
    options = (
        "train.epochs=1",
        "train.checkpoint_seconds=0",
        "train.keep_checkpoints=20",
        "augment.mixup.probability=0.5",
        "model.gate_init=default",
    )
    one = tiny("train.accumulate=4", *options, run="one")
    two = tiny("train.accumulate=2", *options, run="two")
    run(one)
    train(two, processes=2)
    first, a, b = weights(one, 1), weights(one, 2), weights(two, 2)  # two ranks agree on a save a step later
    moved = max((a[name] - first[name]).abs().max().item() for name in a)
    apart = max((a[name] - b[name]).abs().max().item() for name in a)
    assert apart < 0.01 * moved, (apart, moved)
    losses = [
        next(json.loads(line)["train/loss"] for line in (Path(c.run_dir) / "metrics.jsonl").open())
        for c in (one, two)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_two_and_three_processes_evaluate_each_sample_once(
    tiny: Callable[..., Config], beton_path: Path
) -> None:
    """Two do not divide the split: nothing is padded, nothing is counted twice."""
    config = tiny("train.epochs=1")
    run(config)
    folder = Path(config.run_dir)
    stored = folder / "predictions" / "synthetic-val-best.npz"
    one = Predictions.load(stored)
    assert np.array_equal(one.index, open_beton(beton_path).indices("val"))
    assert len(one.index) % 2 == 1
    for processes in (2, 3):
        stored.unlink()
        done = start("ferdist", "evaluate", str(folder), processes=processes)
        assert done.returncode == 0, done.stderr
        other = Predictions.load(stored)
        assert np.array_equal(other.index, one.index)
        assert np.array_equal(other.label, one.label)
        np.testing.assert_allclose(other.probabilities, one.probabilities, atol=1e-5)


def test_the_occlusion_benchmark_is_the_same_with_two_processes(tiny: Callable[..., Config]) -> None:
    """The same images, by their checksums, and so the same figures; two runs on them can be compared."""
    config = tiny("train.epochs=1")
    run(config)
    folder = Path(config.run_dir)
    stored = folder / "predictions" / "occlusion" / "synthetic-val-best.npz"
    assert main(["evaluate", str(folder), "--occlusion"]) == 0
    one = Predictions.load(stored)
    stored.unlink()
    done = start("ferdist", "evaluate", str(folder), "--occlusion", processes=2)
    assert done.returncode == 0, done.stderr
    two = Predictions.load(stored)
    assert one.cells == two.cells == grid()
    assert one.checksums == two.checksums
    assert np.array_equal(one.index, two.index)
    np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-5)
    results = json.loads((folder / "results.json").read_text())
    (summary,) = results["robustness"]
    assert summary["cells"] == len(grid())
    few = ["--kinds", "mask,eye_band"]
    assert main(["evaluate", str(folder), "--occlusion", *few, "--reference", str(folder)]) == 0
    repeated = json.loads((folder / "results.json").read_text())
    assert repeated["robustness"][0]["checksum"] == summary["checksum"]
    (comparison,) = repeated["comparisons"]
    assert (comparison["cells"], comparison["difference"]) == (4, 0)
    assert set(Predictions.load(stored).cells) == set(grid()), "the other cells stay"
    scored = dict(zip(one.cells, one.correct().mean(1), strict=True))
    for entry in results["evaluations"]:
        if damage := entry["occlusion"]:
            cell = Cell(damage["kind"], damage["severity"], damage["fill"])
            assert entry["accuracy"] == pytest.approx(scored[cell]), "made again from the file"


def test_more_processes_than_samples(beton_path: Path) -> None:
    """A rank without a single sample takes part all the same."""
    done = start("tests.distributed.two_samples", str(beton_path), processes=3)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "scored [2, 5]\n" * 3


def test_two_processes_train_the_same_on_a_staged_copy(
    tiny: Callable[..., Config], beton_path: Path, tmp_path: Path
) -> None:
    """To the bit; and it is the same run, wherever its copy is."""
    plain = tiny("train.epochs=1", run="plain")
    staged = tiny("train.epochs=1", "data.stage=$NODE_DISK", run="staged")
    train(plain, processes=2)
    train(staged, processes=2, NODE_DISK=str(tmp_path))
    assert staged_path(beton_path, str(tmp_path)).read_bytes() == beton_path.read_bytes()
    assert unequal(Path(plain.run_dir), Path(staged.run_dir)) == []
    (tmp_path / "other").mkdir()
    run(tiny("train.epochs=1", f"data.stage={tmp_path / 'other'}", run="staged"))
    assert staged_path(beton_path, str(tmp_path / "other")).is_file()
    assert unequal(Path(plain.run_dir), Path(staged.run_dir)) == []


def test_a_copy_that_cannot_be_made_ends_all_ranks(tiny: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny(f"data.stage={tmp_path / 'none'}")
    path = Path(config.run_dir).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(to_dict(config)))
    done = start("ferdist.train", str(path), processes=2)
    assert done.returncode == 1
    assert f"ferdist: {tmp_path / 'none'}: data.stage is not a folder on" in done.stderr
    assert not Path(config.run_dir).exists()


def test_every_rank_says_what_is_wrong(tiny: Callable[..., Config]) -> None:
    config = tiny("data.batch_size=33")
    path = Path(config.run_dir).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(to_dict(config)))
    done = start("ferdist.train", str(path), processes=2)
    assert done.returncode == 1
    assert "ferdist: data.batch_size is 33: it must be a multiple of" in done.stderr
    status = json.loads((Path(config.run_dir) / "status.json").read_text())
    assert status["state"] == "failed"
    assert "batch_size is 33" in status["reason"]


def test_parameters_that_are_not_used_are_refused_by_name(tiny: Callable[..., Config]) -> None:
    """DistributedDataParallel would wait for their gradients."""
    name = "tests.distributed.unused:net"
    config = tiny(f"model.name={name}")
    path = Path(config.run_dir).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(to_dict(config)))
    done = start("ferdist.train", str(path), processes=2)
    assert done.returncode == 1
    assert f"ferdist: model.name is {name!r}: 2 of its parameters, such as auxiliary.weight" in done.stderr
    assert "unexpected" not in done.stderr


ELSEWHERE = """
import runpy
import sys
from ferdist.runtime import checkpoint
checkpoint._SEEN_SECONDS = 0.0
sys.argv[0] = "ferdist.train"
runpy.run_module("ferdist.train", run_name="__main__")
"""


@pytest.mark.parametrize("older", [False, True], ids=["new", "another run there"])
def test_hosts_that_do_not_share_the_run_folder_are_told_at_the_start(
    tiny: Callable[..., Config], tmp_path: Path, older: bool
) -> None:
    """Each rank has a working directory of its own, as on a node's own disk."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(tiny()) | {"run_dir": "runs/x"}))
    started = []
    for number, variables in enumerate(ranks(2)):
        host = tmp_path / f"host{number}"
        (host / "runs" / "x").mkdir(parents=True)
        if number and older:
            (host / "runs" / "x" / "config.yaml").write_text(path.read_text())
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", ELSEWHERE, str(path)],
                cwd=host,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            )
        )
    said = [process.communicate(timeout=PATIENCE)[1] for process in started]
    assert [process.returncode for process in started] == [1, 1], said
    assert (
        "runs/x/config.yaml: not as rank 0 has just written it; rank 0 could: the run folder must" in said[1]
    )
    assert "runs/x: another rank cannot read it: see its message" in said[0]
    status = json.loads((tmp_path / "host0" / "runs" / "x" / "status.json").read_text())
    assert status["state"] == "failed"
    assert not (tmp_path / "host0" / "runs" / "x" / "metrics.jsonl").exists(), "nothing was trained"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train(tiny: Callable[..., Config]) -> None:
    config = tiny("train.epochs=1", "train.precision=auto", "device=cuda")
    train(config, processes=2)
    assert (Path(config.run_dir) / "results.json").is_file()
