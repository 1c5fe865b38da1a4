"""One piece of work in a process of its own, whose memory and threads are only its own.

Started as ``python -m ferdist.bench.child JSON``, alone or by torchrun; each rank prints one line of JSON.
Imports come inside the functions, so that a process holds no more than its work needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from ferdist.errors import RunError

WARM_UP_STEPS: Final = 2
"""DistributedDataParallel arranges its buckets after the first step."""

Outcome = dict[str, float]
"""What a rank reports: ``seconds`` of the work, without imports and warm-up, ``start_mib``, resident before
it, and ``peak_mib``, the most that was; on a GPU also ``device_mib``, the most that PyTorch held there."""


def start(work: str, config: dict[str, Any], threads: int, steps: int, processes: int = 1) -> list[Outcome]:
    """Do a piece of work in so many new processes.

    Args:
        work: ``convert`` or ``by_hand``, which read the fer2013.csv beside the config's beton and write into
            its folder, or ``load``, ``train`` or ``evaluate``.
        config: of a run, as plain values.
        threads: of each process.
        steps: that ``train`` measures, after a few that it does not.
        processes: 1, or as many as torchrun shall start.

    Returns:
        An outcome per rank.

    Raises:
        RunError: if one fails, with the last line of its stderr.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    child = ["-m", "ferdist.bench.child", json.dumps([work, config, threads, steps])]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *child],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != processes:
        reason = (done.stderr.strip().splitlines() or ["it wrote nothing to stderr"])[-1]
        raise RunError(f"bench: a process for {work} ended with {done.returncode}: {reason}")
    return [json.loads(line) for line in lines]


def main(work: str, config: dict[str, Any], threads: int, steps: int) -> Outcome:
    """Prepare and do the work in this process."""
    with ExitStack() as stack:
        do = _prepare(work, config, threads, steps, stack)
        before = _resident("VmRSS")
        start = time.perf_counter()
        do()
        seconds = time.perf_counter() - start
    outcome = {"seconds": seconds, "start_mib": before, "peak_mib": _resident("VmHWM")}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        outcome["device_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return outcome


def _prepare(
    work: str, values: dict[str, Any], threads: int, steps: int, stack: ExitStack
) -> Callable[[], object]:
    """What remains to be done when everything is imported, built and warm."""
    source = Path(values["data"]["path"]).with_suffix(".csv")
    if work == "by_hand":
        from ferdist.bench.byhand import rows_by_hand

        return lambda: rows_by_hand(source, source.parent)
    if work == "convert":
        from ferdist.data import audit, beton, fer2013, ferplus, folds, prepare  # noqa: F401 - it imports late

        return lambda: prepare.fer2013(source, source.parent)

    import torch

    from ferdist.config import from_dict
    from ferdist.data.beton import BetonLoader, open_beton

    torch.set_num_threads(threads)
    config = from_dict(values, Path("bench"))
    opened = open_beton(Path(config.data.path))
    if work == "load":
        loader = BetonLoader(opened, batch_size=config.data.batch_size, device=torch.device(config.device))
        indices = opened.indices("train", config.data.holdout)
        list(loader.batches(indices[:1]))  # FFCV compiles its pipeline
        return lambda: sum(len(batch.label) for batch in loader.batches(indices))

    from ferdist.training.build import build, join_training

    setup = build(config, opened, stack.enter_context(join_training(config)))
    if work == "evaluate":
        setup.score(samples=1)
        return setup.score
    stream = setup.batches()

    def train(steps: int) -> None:
        for _ in range(steps):
            setup.engine.train_step(next(stream))
        setup.engine.read()

    train(WARM_UP_STEPS)
    return lambda: train(steps)


def _resident(field: str) -> float:
    """VmRSS, resident now, or VmHWM, its peak, in MiB; `resource` starts its peak with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    # One write: torchrun's workers share the pipe, and do not buffer.
    sys.stdout.write(json.dumps(main(*json.loads(sys.argv[1]))) + "\n")
