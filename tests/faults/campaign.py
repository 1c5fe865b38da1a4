"""A campaign of faults: each command is hit at random moments, and must end as if nothing had happened.

``python -m tests.faults.campaign [SCENARIO]... [--tries N] [--seed S] [--json FILE]``, as root for the faults
that need mounts. A scenario is a command and a fault, such as ``prepare:SIGKILL``; ``'train*:*'`` names
several. Each try is a line of FILE, and those that are there are not made again: a campaign that was stopped
goes on with the same command. The exit code is 1 where a promise was broken.

A try lays the state before the command, starts it, makes the fault, and checks that

1. each part of the state (a set, results.json, a file of predictions, a checkpoint, ...) is the old or the
   new one, whole; nothing that was good has been lost; a command that ended with 0 has done all;
2. the same command, started again, ends with the very figures of an undisturbed run;
3. there are the same files then as after an undisturbed run: no temporary ones.

Commands run in processes that are forked with the imports made, every tenth try as a Python, or torchrun, of
its own.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import numpy as np
import torch

from ferdist.data.beton import open_beton
from ferdist.errors import FerdistError
from ferdist.evaluation.predictions import Predictions
from ferdist.evaluation.records import read_results
from ferdist.models import weights
from ferdist.runtime import checkpoint
from ferdist.runtime.folder import RunFolder
from ferdist.table import Table, count
from tests.faults.campaign_lab import (
    Command,
    Disk,
    Ended,
    Lab,
    Measured,
    Parts,
    Started,
    memory_of,
    with_mounts,
)
from tests.faults.processes import metrics_of
from tests.forking import ROOT

RERUNS = 3
"""How often the same command may be started again: jobs that a killed launcher left may have to end first."""

SMALL = (
    *("model.stem=imagenet", "model.width=8", "data.batch_size=16", "device=cpu", "train.precision=fp32"),
    *("train.epochs=1", "train.log_every=2", "train.ema=0.9", "train.lr=0.02"),
    *("train.checkpoint_seconds=0", "train.keep_checkpoints=99"),
)
"""Overrides for runs of 140 drawn faces: an epoch of 6 steps, each with a checkpoint."""


def digest(value: Any) -> str:
    """Of nested containers, tensors and plain values."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return hashlib.sha256(f"{value.dtype}{value.shape}".encode() + value.tobytes()).hexdigest()
    if isinstance(value, dict):
        value = {str(key): digest(one) for key, one in value.items()}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    if isinstance(value, list | tuple):
        return digest({str(number): one for number, one in enumerate(value)})
    return repr(value)


def read_set(folder: Path) -> Parts:
    """The set that ``prepare`` leaves, every byte of it verified."""
    beton = open_beton(folder / "set" / "synthetic.beton", checksum=True)
    return {"set": f"{beton.manifest.sha256} {beton.manifest.samples_sha256}"}


def read_run(run: Path) -> Parts:
    """Results, predictions, metrics and checkpoints of a run."""
    folder, parts = RunFolder(run), {}
    if folder.results.exists():
        content = read_results(folder.results).content
        parts["results"] = digest({k: v for k, v in content.items() if k not in ("config", "environment")})
    for path in sorted(folder.predictions.rglob("*.npz")):
        parts[str(path.relative_to(run))] = digest(vars(Predictions.load(path)) | {"cells": None})
    for number, line in enumerate(metrics_of(run)):
        parts[f"metrics {number}"] = digest(line)
    for path in checkpoint.steps(folder.checkpoints):
        state = checkpoint.load(path, dict)
        state = {key: state[key] for key in ("step", "model", "ema", "optimizer", "scaler", "counters")}
        parts[path.name] = digest(state)
    best = folder.checkpoints / checkpoint.BEST
    weights = digest(checkpoint.load(best, dict)) if best.exists() else "none"
    if folder.state() == "finished":  # until then, others may have been the best
        parts["finished"] = weights
    return parts


def read_files(folder: Path) -> Parts:
    """The files of a report and of exported models: their bytes, or the content where bytes have no order."""
    names = [path for name in ("report", "out") for path in sorted((folder / name).rglob("[!.]*"))]
    return {
        str(path.relative_to(folder)): digest(
            weights.read(path) if path.suffix == weights.SUFFIX else path.read_bytes()
        )
        for path in names
        if path.is_file()
    }


def read_runs(folder: Path) -> Parts:
    """All runs below a folder."""
    runs = sorted(path.parent for path in folder.rglob("checkpoints"))
    return {f"{run.relative_to(folder)} {name}": one for run in runs for name, one in read_run(run).items()}


OVERRIDES = " ".join(SMALL)
FACES = "ferdist prepare synthetic --images 140 --seed 1 --out VIEW/faces"
TRAIN = f"ferdist train configs/base.yaml data.path=VIEW/faces/synthetic.beton run_dir=VIEW/run {OVERRIDES}"
EVALUATE = "ferdist evaluate VIEW/run --device cpu --occlusion --kinds square --fills zero"
REPORT = "ferdist report VIEW/run --no-faces --out VIEW/report"
OTHER = "ferdist export ferdist/weights/fer2013_resnet18_cbam.safetensors --out VIEW/out/model"
EXPORT = "ferdist export VIEW/run --out VIEW/out/model"
FOLDS = (
    "ferdist prepare synthetic --format ckplus48 --images 140 --seed 1 --out VIEW/raw",
    "ferdist prepare ckplus --source VIEW/raw --folds 2 --out VIEW/faces",
)
LOCAL = "--out VIEW/experiment --cluster local --cpu 1 --retry data.path=VIEW/faces"
RUN = (FACES, TRAIN)


COMMANDS = {
    "prepare": Command(
        "ferdist prepare synthetic --images 150 --seed 2 --out VIEW/set",
        read_set,
        ("ferdist prepare synthetic --images 120 --seed 1 --out VIEW/set",),
    ),
    "evaluate": Command(EVALUATE, read_runs, RUN),
    "report": Command(REPORT, read_files, (*RUN, REPORT, EVALUATE)),
    "export-onnx": Command(f"{EXPORT}.onnx", read_files, (*RUN, f"{OTHER}.onnx"), kills=100),
    "export-weights": Command(f"{EXPORT}.safetensors", read_files, (*RUN, f"{OTHER}.safetensors"), kills=100),
    "train": Command(TRAIN, read_runs, (FACES,), kills=50),
    "train-2": Command(TRAIN, read_runs, (FACES,), kills=50, size=2),
    "train-4": Command(TRAIN, read_runs, (FACES,), kills=50, size=4),
    "kfold": Command(
        f"launch.kfold configs/base.yaml {LOCAL}/ckplus.beton {OVERRIDES}", read_runs, FOLDS, kills=50
    ),
    "table1": Command(
        f"launch.table1 --datasets fer2013 --models resnet18,kernel_cnn {LOCAL}/synthetic.beton {OVERRIDES}",
        read_runs,
        (FACES,),
        kills=50,
    ),
}


@dataclass
class Try:
    """How a try ended: a line of the campaign's file.

    Attributes:
        share: where in its range the fault is to strike, [0, 1): uniform, and stratified over the tries.
        real: whether a Python of its own is started.
        code, said: how the command ended under the fault, and its last line.
        refused: whether it said in one line that it cannot go on.
        reruns: how often it was started again until it ended with 0.
        wrong, lost, left, unexpected: which promises were broken, in words.
    """

    scenario: str
    number: int
    seed: int
    revision: str
    share: float
    real: bool
    code: int | None = None
    said: str = ""
    refused: bool = False
    reruns: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def command(self) -> Command:
        """What is started."""
        return COMMANDS[self.scenario.partition(":")[0]]

    @property
    def fault(self) -> Fault:
        """What is made to it."""
        return FAULTS[self.scenario.partition(":")[2]]

    @property
    def broken(self) -> list[str]:
        """All promises that were broken."""
        return [*self.wrong, *self.lost, *self.left, *self.unexpected]


def carry_out(lab: Lab, one: Try) -> None:
    """Make a try and write down how it ended."""
    begin, whole = time.monotonic(), lab.measured(one.command)
    lab.lay(one.command)
    ended = one.fault.make(lab, one)
    one.code, one.refused, one.said = ended.code, ended.refused, ended.said
    if ended.code is None:
        one.unexpected.append("hangs")
    elif ended.code and (one.fault.survived or (one.fault.told and not ended.refused)):
        one.unexpected.append(f"ends with {ended.code}: {one.said}")
    parts = read(one, lab.disk.view, one.lost if whole.old else one.wrong)
    if parts is not None:
        right = {part: (whole.old.get(part), whole.new.get(part)) for part in parts}
        one.wrong += [f"{part}: neither old nor new" for part in parts if parts[part] not in right[part]]
        one.lost += [f"{part}: lost" for part in whole.old.keys() & whole.new.keys() - parts.keys()]
        if ended.code == 0 and parts != whole.new:
            one.wrong.append("ended with 0, and has not done all")
    start_again(lab, one, whole)
    one.seconds = round(time.monotonic() - begin, 1)


def start_again(lab: Lab, one: Try, whole: Measured) -> None:
    """Start the same command again until it ends well, and compare what it leaves."""
    while one.reruns < RERUNS:
        one.reruns += 1
        ended = lab.start(one.command, real=one.real).end()
        if not ended.refused:
            break
    if ended.code != 0:
        one.wrong.append(f"does not go on: {ended.said}")
        return
    parts, names = read(one, lab.disk.view, one.wrong) or {}, lab.disk.names()
    different = sorted({part for part, _ in parts.items() ^ whole.new.items()})
    one.wrong += [f"{part}: another end" for part in different]
    one.wrong += [f"{path}: missing" for path in sorted(whole.names - names)]
    one.left += [f"{path}: left" for path in sorted(names - whole.names)]


def read(one: Try, view: Path, refusals: list[str]) -> Parts | None:
    """The parts of the state; None, and why it is refused, where it is."""
    try:
        return one.command.read(view)
    except FerdistError as error:
        refusals.append(f"refused: {error}")
    except Exception as error:
        one.wrong.append(f"cannot be read: {error!r:.200}")
    return None


def started(lab: Lab, one: Try, *wrapper: object) -> Started:
    """The command, once it has run for the try's share of an undisturbed run."""
    seconds = one.share * lab.measured(one.command, *wrapper, real=one.real).seconds
    lab.lay(one.command)
    running = lab.start(one.command, *wrapper, real=one.real)
    time.sleep(seconds)
    return running


def kill(lab: Lab, one: Try) -> Ended:
    """SIGKILL to all; every second time of a launcher, to it alone, so that its jobs go on."""
    return started(lab, one).kill(alone=one.command.launches and one.number % 2 == 1)


def kill_on_slow_disk(lab: Lab, one: Try) -> Ended:
    """SIGKILL, where most of the time passes between two operations on files."""
    return started(lab, one, "disk", lab.disk.view, 0.03).kill()


def full_disk(lab: Lab, one: Try) -> Ended:
    """From nothing to what it needs is free: any write of a page fails, or the making of any file."""
    whole = lab.measured(one.command)
    inodes = one.number % 4 == 3
    free = int(one.share * ((whole.inodes if inodes else whole.pages) + 1))
    lab.disk.leave_free(**{"inodes" if inodes else "pages": free})
    try:
        return lab.start(one.command, real=one.real).end()
    finally:
        lab.disk.leave_free()


def read_only(lab: Lab, one: Try) -> Ended:
    """All of the command's folders are read-only."""
    lab.disk.set_writable(False)
    try:
        return lab.start(one.command, real=one.real).end()
    finally:
        lab.disk.set_writable(True)


def lost_disk(lab: Lab, one: Try) -> Ended:
    """The file system is taken away, and is there again for the next start."""
    running = started(lab, one)
    lab.disk.take_away()
    try:
        return running.end()
    finally:
        lab.disk.bring_back()


def clock(lab: Lab, one: Try) -> Ended:
    """The clock jumps by up to ten days, and what lies there is from the future."""
    days = 86400.0 * 10
    for path in lab.disk.view.rglob("*"):
        os.utime(path, (time.time() + days,) * 2)
    return lab.start(one.command, "clock", lab.disk.view, (2 * one.share - 1) * days, real=one.real).end()


def little_memory(lab: Lab, one: Try) -> Ended:
    """From nothing to what it needs can be allocated (RLIMIT_AS)."""
    one.real = False  # the imports of its own would need most of it
    memory = int(one.share * lab.measured(one.command).memory)
    lab.lay(one.command)
    running = lab.start(one.command)
    limit = memory_of(running.pids[0]) + memory
    resource.prlimit(running.pids[0], resource.RLIMIT_AS, (limit, limit))
    return running.end()


def pause(lab: Lab, one: Try) -> Ended:
    """One rank is stopped for a while."""
    running = started(lab, one)
    rank = running.rank(one.number % one.command.size)
    with suppress(ProcessLookupError):
        os.kill(rank, SIGSTOP)
        time.sleep(lab.pause)
        os.kill(rank, SIGCONT)
    return running.end()


def without_tensorboard(lab: Lab, one: Try) -> Ended:
    """TensorBoard's folder is deleted."""
    running = started(lab, one)
    shutil.rmtree(lab.disk.view / "run" / "tb", ignore_errors=True)
    return running.end()


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        make: runs the command and makes it.
        commands: that it is made to.
        tries: in a whole campaign; None for as many as the command has kills.
        mounts: whether it needs a file system of its own.
        survived: whether the command goes on by itself, to its end.
        told: whether a command that cannot go on says so in one line.
    """

    make: Callable[[Lab, Try], Ended]
    commands: str
    tries: int | None = 20
    mounts: bool = False
    survived: bool = False
    told: bool = True


SINGLE = "prepare evaluate report export-onnx export-weights train"
FAULTS = {
    "SIGKILL": Fault(kill, " ".join(COMMANDS), tries=None, told=False),
    "SIGKILL-slow-disk": Fault(kill_on_slow_disk, SINGLE, tries=50, told=False),
    "full-disk": Fault(full_disk, SINGLE, tries=100, mounts=True),
    "read-only": Fault(read_only, SINGLE, tries=2, mounts=True),
    "lost-disk": Fault(lost_disk, SINGLE, tries=20, mounts=True),
    "clock": Fault(clock, SINGLE, tries=10, survived=True),
    "memory": Fault(little_memory, SINGLE, tries=20, told=False),
    "SIGSTOP": Fault(pause, "train-2", tries=4, survived=True),
    "no-tensorboard": Fault(without_tensorboard, "evaluate train", tries=10, survived=True),
}
SCENARIOS = [f"{command}:{name}" for name, fault in FAULTS.items() for command in fault.commands.split()]


def plan(patterns: Sequence[str], tries: int | None, seed: int) -> Iterator[Try]:
    """The tries of the scenarios that the patterns name."""
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout.strip()
    for scenario in SCENARIOS:
        name, _, fault = scenario.partition(":")
        if patterns and not any(fnmatch.fnmatch(scenario, pattern) for pattern in patterns):
            continue
        total = (FAULTS[fault].tries or COMMANDS[name].kills) if tries is None else tries
        for number in range(total):
            share = (number + random.Random(f"{seed} {scenario} {number}").random()) / total
            yield Try(scenario, number, seed, revision, share, real=number % 10 == 9)


def table(tries: Sequence[Try]) -> Table:
    """A row for each scenario."""
    rows = []
    for scenario in dict.fromkeys(one.scenario for one in tries):
        own = [one for one in tries if one.scenario == scenario]
        columns = {
            "tries": [True for _ in own],
            "real processes": [one.real for one in own],
            "killed amid it": [one.code == -SIGKILL for one in own],
            "same figures": [not one.wrong for one in own],
            "refused in a line": [one.refused for one in own],
            "wrong results": [bool(one.wrong) for one in own],
            "lost sets": [bool(one.lost) for one in own],
            "leftovers": [bool(one.left) for one in own],
            "unexpected errors": [bool(one.unexpected) for one in own],
            "seconds": [one.seconds for one in own],
        }
        rows.append({"scenario": scenario, **{k: count(round(sum(v))) for k, v in columns.items()}})
    return Table.of("", rows)


def main() -> int:
    """Make the tries that are not in the file yet, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {' '.join(SCENARIOS)}")
    parser.add_argument("--tries", type=int, help="of each scenario; 0 for the table alone")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--pause", type=float, default=60.0, help="seconds of a SIGSTOP")
    parser.add_argument("--json", type=Path, default=Path("runs/campaign.jsonl"), metavar="FILE")
    options = parser.parse_args()
    with_mounts()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.touch()
    tries = [Try(**json.loads(line)) for line in options.json.read_text().splitlines()]
    done = {(one.scenario, one.seed, one.share) for one in tries}
    wanted = [
        one
        for one in plan(options.scenarios, options.tries, options.seed)
        if (one.scenario, one.seed, one.share) not in done
    ]
    with (
        tempfile.TemporaryDirectory(prefix="ferdist-campaign-") as place,
        closing(Disk(Path(place))) as disk,
        options.json.open("a") as file,
    ):
        os.environ["TMPDIR"] = place
        lab = Lab(disk, Path(place) / "stderr", options.pause)
        left_out = {one.scenario for one in wanted if one.fault.mounts and not disk.mounts}
        for one in wanted:
            if one.scenario not in left_out:
                carry_out(lab, one)
                tries.append(one)
                print(json.dumps(asdict(one)), file=file, flush=True)
                words = "; ".join(one.broken) or "as promised"
                print(f"{one.scenario} {one.number + 1}, {one.seconds} s: {words}", flush=True)
    for scenario in sorted(left_out):
        print(f"{scenario}: left out: it needs mounts; run it as root")
    print(table(tries).markdown())
    return int(any(one.broken for one in tries))


if __name__ == "__main__":
    raise SystemExit(main())
