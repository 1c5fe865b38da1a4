"""Run stages of the bench."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ferdist import environment
from ferdist.bench.harness import Row
from ferdist.bench.processes import memory, scale
from ferdist.bench.setting import SIZES, Bench
from ferdist.bench.stages import augment, convert, epoch, evaluate, load, step
from ferdist.errors import ConfigError, DataError, tell
from ferdist.runtime.distributed import choose_device
from ferdist.runtime.precision import keep_freed_memory

STAGES: Final[dict[str, Callable[[Bench], list[Row]]]] = {
    stage.__name__: stage for stage in (convert, load, augment, step, epoch, scale, evaluate, memory)
}


def run_bench(
    names: Sequence[str] = (),
    *,
    size: str = "default",
    images: int | None = None,
    data: Path | None = None,
    csv: Path | None = None,
    device: str = "auto",
) -> tuple[list[Row], str]:
    """Measure ferdist, its peers and the limits, in this process and its children.

    Args:
        names: of the stages; none for all.
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
    for name in names:
        if name not in STAGES:
            raise ConfigError(f"bench {name}: there is no such stage; choose from {', '.join(STAGES)}")
    if csv is not None and not csv.is_file():
        raise DataError(f"{csv}: no such file; give fer2013.csv")
    if size not in SIZES:
        raise ConfigError(f"--size {size}: choose one of {', '.join(SIZES)}")
    least = SIZES["smallest"].images
    if images is not None and images < least:
        raise ConfigError(f"--images {images}: give at least {least}")
    where = choose_device(device, 0)
    chosen = SIZES[size].on(where)
    chosen = replace(chosen, images=images or chosen.images)
    keep_freed_memory()  # as a run does, for the peers too
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="ferdist-bench-") as folder:
        bench = Bench(chosen, where, Path(folder), data, csv)
        for number, name in enumerate(names or STAGES, start=1):
            tell(f"bench: {name} ({number} of {len(names or STAGES)})")
            begin = time.perf_counter()
            rows += [{"stage": name} | row for row in STAGES[name](bench)]
            tell(f"bench: {name}: {time.perf_counter() - begin:.0f} s")
    described = environment.describe(where, 1)
    machine = described["cpu"] if where.type == "cpu" else f"{described['device']}, {described['cpu']}"
    subject = data or csv or f"{chosen.images:,} drawn faces"
    return rows, (
        f"{machine}; {described['threads']} threads on {described['cpus']} CPUs; torch {described['torch']}; "
        f"ferdist {described['git_revision'] or described['ferdist']}; {subject}; size {size}, "
        f"batch {chosen.batch}; {described['date']}"
    )
