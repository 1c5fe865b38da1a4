"""Run stages of the bench."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ferdist import environment
from ferdist.bench import augment, convert, epoch, evaluate, load, memory, scale, step
from ferdist.bench.settings import Bench, size_of
from ferdist.bench.timing import Row
from ferdist.errors import ConfigError, DataError
from ferdist.runtime.distributed import choose_device
from ferdist.runtime.precision import keep_freed_memory

STAGES: dict[str, Callable[[Bench], list[Row]]] = {
    "convert": convert.run,
    "load": load.run,
    "augment": augment.run,
    "step": step.run,
    "epoch": epoch.run,
    "scale": scale.run,
    "evaluate": evaluate.run,
    "memory": memory.run,
}


def run_bench(
    stages: Sequence[str] = (),
    *,
    size: str = "default",
    images: int | None = None,
    data: Path | None = None,
    csv: Path | None = None,
    device: str = "auto",
) -> tuple[list[Row], str]:
    """Measure ferdist, its peers and the limits, in this process and its children.

    Args:
        stages: names in ``STAGES``; none for all, in that order.
        size: ``smallest`` or ``default``.
        images: drawn faces, instead of the size's number.
        data: a beton instead of drawn faces.
        csv: a fer2013.csv instead of drawn faces; without ``data`` the beton is made from it.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        The rows, and a line that says what they were measured on and with.

    Raises:
        ConfigError: if there is no such stage, size or device.
        DataError: if a file is missing or damaged.
    """
    for name in stages:
        if name not in STAGES:
            raise ConfigError(f"bench {name}: there is no such stage; choose from {', '.join(STAGES)}")
    if csv is not None and not csv.is_file():
        raise DataError(f"{csv}: no such file; give fer2013.csv")
    chosen = size_of(size, images)
    where = choose_device(device, 0)
    keep_freed_memory()  # as a run does, for the peers too
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="ferdist-bench-") as folder, _kernels_restored():
        bench = Bench(chosen, where, Path(folder), data, csv)
        for number, name in enumerate(stages or STAGES, start=1):
            _say(f"{name} ({number} of {len(stages or STAGES)})")
            begin = time.perf_counter()
            rows += STAGES[name](bench)
            _say(f"{name}: {time.perf_counter() - begin:.0f} s")
    described = environment.describe(where, 1)
    machine = described["cpu"] if where.type == "cpu" else f"{described['device']}, {described['cpu']}"
    subject = data or csv or f"{chosen.images:,} drawn faces"
    return rows, (
        f"{machine}; {described['threads']} threads on {described['cpus']} CPUs; torch {described['torch']}; "
        f"ferdist {described['git_revision'] or described['ferdist']}; {subject}; size {size}, "
        f"batch {chosen.batch}; {described['date']}"
    )


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


@contextmanager
def _kernels_restored() -> Iterator[None]:
    """Leave the process's choice of kernels as it was."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
