"""Every rank makes the same collectives in the same order, or the others would wait for it forever."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ferdist.config import Config, to_dict
from tests.conftest import PATIENCE
from tests.forking import Forked, ranks

pytestmark = pytest.mark.slow

Collective = tuple[str, list[tuple[list[int], str, str]]]


def record(folder: Path, processes: int, *arguments: str) -> list[Forked]:
    """Start a command as so many ranks, which note their collectives in the folder."""
    folder.mkdir()
    return [
        Forked(
            ("tests.distributed.recorded", str(folder), *arguments),
            environment=variables,
            stderr=folder / f"stderr-{number}",
        )
        for number, variables in enumerate(ranks(processes))
    ]


def collectives(folder: Path, started: list[Forked], code: int = 0) -> list[Collective]:
    """The collectives of a command, which are those of each of its ranks, once it has ended."""
    for number, process in enumerate(started):
        assert process.wait(PATIENCE) == code, (folder / f"stderr-{number}").read_text()
    first, *others = [(folder / str(rank)).read_text() for rank in range(len(started))]
    assert all(other == first for other in others)
    return [json.loads(line) for line in first.splitlines()]


@pytest.mark.parametrize("processes", [2, 4])
def test_all_ranks_make_the_same_collectives(
    tiny: Callable[..., Config], tmp_path: Path, processes: int
) -> None:
    """Training, a stop that one rank hears of, its resumption, and an evaluation with occlusion."""
    config = tiny("train.checkpoint_steps=5", "train.tta=flip")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    training = record(tmp_path / "stopped", processes, "ferdist.train", str(path))
    while not (tmp_path / "run" / "checkpoints" / "step-00000005.pt").exists():
        assert training[0].poll() is None, (tmp_path / "stopped" / "stderr-0").read_text()
        time.sleep(0.01)
    os.kill(training[-1].pid, signal.SIGUSR2)
    stopped = collectives(tmp_path / "stopped", training, os.EX_TEMPFAIL)
    resumed = collectives(
        tmp_path / "resumed", record(tmp_path / "resumed", processes, "ferdist.train", str(path))
    )
    command = ("ferdist", "evaluate", config.run_dir, "--occlusion", "--kinds", "square", "--tta", "flip")
    evaluated = collectives(tmp_path / "evaluated", record(tmp_path / "evaluated", processes, *command))
    for name, tensors in [*stopped, *resumed, *evaluated]:
        assert all(device == "cpu" for _, _, device in tensors), f"{name} goes through nccl"
    shared = [shape for name, tensors in resumed if name == "broadcast" for shape, _, _ in tensors]
    large = [shape for shape in shared if shape != [1]]
    assert len(large) <= 2 * (config.train.epochs + 1), "one broadcast for each type shares a network"
    assert {name for name, _ in evaluated} == {"all_gather", "all_reduce"}
