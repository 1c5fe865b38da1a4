"""One stage in a process of its own, whose memory and threads are only its own: ``scale`` and ``memory``.

Started as ``python -m ferdist.bench.child JSON``, alone or by torchrun; each rank prints one line of JSON.
Imports come inside the functions, so that a process holds no more than its stage needs.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ferdist.errors import RunError

if TYPE_CHECKING:
    from ferdist.bench.trainer import Trainer
    from ferdist.data.record import Integers

WARM_UP_STEPS: Final = 2
"""DistributedDataParallel arranges its buckets after the first step."""


@dataclass(frozen=True)
class Job:
    """What a child does.

    Attributes:
        task: a name in ``TASKS``.
        path: the csv for ``convert`` and ``by_hand``, else the beton.
        fold: that is held out, where the beton has no splits.
        out: an existing folder, for ``convert`` and ``by_hand``.
        device: cpu or cuda.
        threads: of this process.
        batch: samples in a step, over all processes.
        steps: that ``train`` measures, after a few that it does not.
        stem: of the network.
    """

    task: str
    path: str
    fold: int | None = None
    out: str = ""
    device: str = "cpu"
    threads: int = 1
    batch: int = 0
    steps: int = 1
    stem: str = "stride2"


@dataclass(frozen=True)
class Outcome:
    """What a rank of a child says.

    Attributes:
        seconds: of the work, without imports and warm-up.
        images: that the work handled, over all ranks.
        start_mib: resident memory before the work, imports done, in MiB.
        peak_mib: the most that was resident.
        device_mib: the most that PyTorch held on the GPU, None without one.
    """

    seconds: float
    images: int
    start_mib: float
    peak_mib: float
    device_mib: float | None


def start(job: Job, processes: int = 1) -> list[Outcome]:
    """Run a job in so many new processes; an outcome per rank.

    Raises:
        RunError: if one fails, with the last line of its stderr.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [
            sys.executable,
            *(launcher if processes > 1 else []),
            "-m",
            "ferdist.bench.child",
            json.dumps(asdict(job)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(job.threads)},
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != processes:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunError(f"bench: a process for {job.task} ended with {done.returncode}: {reason}")
    return [Outcome(**json.loads(line)) for line in lines]


def _convert(job: Job, stack: ExitStack) -> Callable[[], int]:
    from ferdist.data import prepare

    return lambda: _count(prepare.fer2013(Path(job.path), Path(job.out)).with_suffix(".samples.csv"))


def _by_hand(job: Job, stack: ExitStack) -> Callable[[], int]:
    from ferdist.bench.byhand import rows_by_hand

    def work() -> int:
        rows_by_hand(Path(job.path), Path(job.out))
        return _count(Path(job.path))

    return work


def _count(table: Path) -> int:
    with table.open("rb") as file:
        return sum(1 for _ in file) - 1


def _load(job: Job, stack: ExitStack) -> Callable[[], int]:
    import torch

    from ferdist.data.beton import BetonLoader, open_beton

    beton = open_beton(Path(job.path))
    indices = beton.indices("train")
    loader = BetonLoader(beton, batch_size=job.batch, device=torch.device(job.device))

    def read(order: Integers) -> int:
        return sum(len(batch.label) for batch in loader.batches(order))

    read(indices[:1])  # FFCV compiles its pipeline
    return lambda: read(indices)


def _train(job: Job, stack: ExitStack) -> Callable[[], int]:
    trainer = _trainer(job, stack)
    trainer.train(WARM_UP_STEPS)

    def work() -> int:
        trainer.train(job.steps)
        return job.steps * job.batch

    return work


def _evaluate(job: Job, stack: ExitStack) -> Callable[[], int]:
    trainer = _trainer(job, stack)
    trainer.score(1)

    def work() -> int:
        trainer.score()
        return len(trainer.scored)

    return work


def _trainer(job: Job, stack: ExitStack) -> Trainer:
    import torch

    from ferdist.bench.trainer import Trainer
    from ferdist.config import Config, DataConfig, TrainConfig
    from ferdist.models import ModelConfig
    from ferdist.runtime.distributed import join_world

    torch.set_num_threads(job.threads)
    world = stack.enter_context(join_world(job.device))
    config = Config(
        data=DataConfig(path=job.path, fold=job.fold, batch_size=job.batch),
        model=ModelConfig(stem=job.stem),
        train=TrainConfig(epochs=1000),
        device=job.device,
    )
    trainer = Trainer(config, world)
    stack.callback(trainer.close)
    return trainer


TASKS = {"convert": _convert, "by_hand": _by_hand, "load": _load, "train": _train, "evaluate": _evaluate}


def main(job: Job) -> Outcome:
    """Prepare and do a job in this process."""
    with ExitStack() as stack:
        work = TASKS[job.task](job, stack)
        before = _resident("VmRSS")
        start = time.perf_counter()
        images = work()
        seconds = time.perf_counter() - start
    device_mib = None
    if job.device == "cuda":
        import torch

        device_mib = torch.cuda.max_memory_allocated() / 2**20
    return Outcome(seconds, images, before, _resident("VmHWM"), device_mib)


def _resident(field: str) -> float:
    """VmRSS, resident now, or VmHWM, its peak, in MiB.

    Not from `resource` where it can be helped: Linux starts its peak with what the parent held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    outcome = json.dumps(asdict(main(Job(**json.loads(sys.argv[1])))))
    sys.stdout.write(outcome + "\n")  # one write: torchrun's workers share the pipe, and do not buffer
