"""Trainings as real processes: start them, see how far they are, signal them, wait for their end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ferdist.config import Config, load_config, to_dict
from ferdist.runtime import checkpoint
from tests.conftest import PATIENCE, ROOT
from tests.forking import Forked, ranks
from tests.resting import REST, SECONDS

SMALL = (
    "model.name=tests.resting:net",
    "model.stem=imagenet",
    "model.width=8",
    "data.batch_size=16",
    "train.epochs=3",
    "train.precision=fp32",
    "train.log_every=4",
    "train.ema=0.9",
    "train.lr=0.02",
    "train.checkpoint_seconds=0",
    "train.keep_checkpoints=6",
    "device=cpu",
)
"""Overrides for runs of 140 drawn faces: 3 epochs of 6 steps, each with a checkpoint."""

STEPS, STEPS_PER_EPOCH = 18, 6
ENDS: list[str] = []
"""A line for each fault: what was left, the exit code and the seconds to it; shown after the tests."""


def small_config(beton: Path, run_dir: Path, *overrides: str) -> Config:
    """The config of a small run."""
    places = (f"data.path={beton}", f"run_dir={run_dir}")
    return load_config(ROOT / "configs" / "base.yaml", [*SMALL, *places, *overrides])


@dataclass(frozen=True)
class End:
    """How a training ended."""

    code: int
    errors: str


class Training:
    """A training that runs in processes of its own.

    Args:
        config: of the run; it is handed over as a file.
        processes: ranks; 0 for one process that is not told of others.
        torchrun: options of torchrun, which then starts the ranks.
        command: what runs a training: ``ferdist.train``, or ``ferdist train``.
        rest: whether the network rests (see ``tests.resting``), so that the training can be met amid it.
        wrapper: what starts a Python of its own.

    Attributes:
        processes: what was started: torchrun, or each rank.
    """

    def __init__(
        self,
        config: Config,
        processes: int = 0,
        *,
        torchrun: Sequence[str] | None = None,
        command: Sequence[str] = ("ferdist.train",),
        rest: bool = True,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.folder = Path(config.run_dir)
        file = self.folder.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(to_dict(config)))
        self._log = self.folder.with_suffix(f".{time.monotonic_ns()}.log")
        environment = {REST: SECONDS if rest else "0"}
        self.processes: list[Forked] | list[subprocess.Popen[bytes]]
        if torchrun is None and not wrapper:
            self.processes = [
                Forked([*command, str(file)], environment={**environment, **variables}, stderr=self._log)
                for variables in (ranks(processes) if processes else [{}])
            ]
        else:
            launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            launcher = [] if torchrun is None else [*launcher, *torchrun, "-m"]
            with self._log.open("w") as log:
                started = subprocess.Popen(
                    [*wrapper, sys.executable, "-m", *launcher, *command, str(file)],
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    cwd=ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                    start_new_session=True,
                )
            self.processes = [started]
        self.fault_now()

    @property
    def pid(self) -> int:
        """Of torchrun, or of rank 0."""
        return self.processes[0].pid

    def runs(self) -> bool:
        """Whether none of its processes has ended."""
        return all(process.poll() is None for process in self.processes)

    def wait_until(self, condition: Callable[[], object], poll: float = 0.005) -> None:
        """Wait for a condition while the training runs."""
        start = time.monotonic()
        while not condition():
            assert self.runs() or condition(), f"ended too early: {self._log.read_text()}"
            assert time.monotonic() - start < PATIENCE, f"never came about: {self._log.read_text()}"
            time.sleep(poll)

    def wait_for_step(self, step: int) -> None:
        """Wait for the checkpoint of a step."""
        self.wait_until(lambda: newest_step(self.folder) >= step)

    def stop_at_write(self) -> None:
        """Wait for a checkpoint that is being written, and hold the process there (SIGSTOP)."""
        while True:
            self.wait_until(self._is_writing, poll=0.0005)
            os.kill(self.pid, signal.SIGSTOP)
            self.wait_until(lambda: _is_stopped(self.pid))
            if self._is_writing():  # the write may have ended before it stopped
                return
            os.kill(self.pid, signal.SIGCONT)

    def _is_writing(self) -> bool:
        return any((self.folder / "checkpoints").glob(".step-*.pt.*.tmp"))

    def rank(self, rank: int) -> int:
        """The process id of a rank."""
        if len(self.processes) > 1:
            return self.processes[rank].pid
        for pid in children(self.pid):
            if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
                return pid
        raise AssertionError(f"torchrun has no rank {rank}")

    def fault_now(self) -> None:
        """Count the seconds to the end from here: a fault is made now."""
        self._fault_at = time.monotonic()

    def signal(self, number: signal.Signals, pid: int | None = None) -> None:
        """Send a signal, by default to torchrun or rank 0."""
        self.fault_now()
        os.kill(pid or self.pid, number)

    def kill(self) -> None:
        """SIGKILL to all processes of the training, and wait until they are gone."""
        self.fault_now()
        pids = [pid for process in self.processes for pid in (process.pid, *children(process.pid))]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()
        wait_until_gone(pids)

    def end(self, fault: str | None = None, ranks: Sequence[int] = ()) -> End:
        """Wait for the end, also of ranks that torchrun has left alone, and note how long it took."""
        code = next(filter(None, [process.wait(PATIENCE) for process in self.processes]), 0)
        wait_until_gone(ranks)
        seconds = time.monotonic() - self._fault_at
        if fault:
            ENDS.append(f"{fault} | {seconds:.1f} | {code} | {self.left()}")
        return End(code, self._log.read_text())

    def left(self) -> str:
        """What lies in the run's folder, in words."""
        names = [p.name for p in checkpoint.steps(self.folder / "checkpoints")]
        unfinished = len(list((self.folder / "checkpoints").glob(".*.tmp")))
        state = status_of(self.folder).get("state", "no status.json")
        return f"{state}, newest {names[-1] if names else 'none'}" + ", a temporary file" * unfinished

    def close(self) -> None:
        """End what still runs."""
        if any(process.poll() is None for process in self.processes):
            self.kill()


def _is_stopped(pid: int) -> bool:
    """Whether every thread has stopped; the kernel lets a system call end first."""
    return {_state(thread) for thread in Path(f"/proc/{pid}/task").iterdir()} == {"T"}


def wait_until_gone(pids: Sequence[int]) -> None:
    """Wait for the end of processes that need not be our children."""
    limit = time.monotonic() + PATIENCE
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < limit, f"still running: {pids}"
        time.sleep(0.005)


def finish(config: Config, processes: int = 0, **options: Sequence[str]) -> End:
    """Train to the end; options are those of `Training`."""
    training = Training(config, processes, rest=False, **options)  # type: ignore[arg-type]
    try:
        end = training.end()
    finally:
        training.close()
    assert end.code == 0, end.errors
    assert status_of(training.folder)["state"] == "finished"
    assert not list((training.folder / "checkpoints").glob(".*.tmp"))
    return end


def status_of(folder: Path) -> dict[str, Any]:
    """status.json, empty where there is none."""
    file = folder / "status.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl without times and rates."""
    file = folder / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [
        {k: v for k, v in json.loads(line).items() if k != "time" and not k.startswith("rate/")}
        for line in text.splitlines(keepends=True)
        if line.endswith("\n")
    ]


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    names = checkpoint.steps(folder / "checkpoints")
    return int(names[-1].stem.removeprefix("step-")) if names else 0


def unequal(a: Path, b: Path) -> list[str]:
    """What differs between two finished runs, bit for bit; nothing if they are the same."""
    states = [checkpoint.load_newest(folder / "checkpoints") for folder in (a, b)]
    assert states[0] is not None
    assert states[1] is not None
    parts = ("step", "model", "ema", "optimizer", "scaler", "counters")
    found = [part for part in parts if not _same(states[0][part], states[1][part])]
    if metrics_of(a) != metrics_of(b):
        found.append("metrics.jsonl")
    for file in sorted((a / "predictions").glob("*.npz")):
        with np.load(file) as mine, np.load(b / "predictions" / file.name) as other:
            if not np.array_equal(mine["probabilities"], other["probabilities"]):
                found.append(file.name)
    return found


def copy_until(whole: Path, target: Path, step: int) -> None:
    """A copy of a run as it was at a step; the checkpoints are hard links, to be replaced only as a whole."""
    shutil.copytree(whole, target, ignore=shutil.ignore_patterns("checkpoints", "results.json"))
    (target / "checkpoints").mkdir()
    for path in (whole / "checkpoints").iterdir():
        if not path.name.startswith("step-") or int(path.name[5:13]) <= step:
            os.link(path, target / "checkpoints" / path.name)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def _alive(pid: int) -> bool:
    return _state(Path(f"/proc/{pid}")) not in "ZX"


def _state(process: Path) -> str:
    """The state letter of a process or thread (proc(5)); X once it is gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
