"""The stages that need processes of their own: several against one, and how memory grows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ferdist.bench.byhand import NAME
from ferdist.bench.child import Outcome, start
from ferdist.bench.harness import NOBODY, Measure, Row, Side, interleave, make_row
from ferdist.bench.setting import Bench
from ferdist.config import to_dict
from ferdist.data.rawformats import write_fer2013_csv
from ferdist.data.synthetic import synthesize

PROCESSES = 2
BEFORE = "before the work"


def scale(bench: Bench) -> list[Row]:
    """Training images per second, loader and augmentation included, networks not compiled.

    On CPUs N processes share the threads that one process has: 2 processes with half of them each. Strong
    scaling keeps the global batch, weak scaling the batch per process. The limit is N times what one process
    with a process's share of the threads reaches alone with that batch.
    """
    gpu, size = bench.device.type == "cuda", bench.size
    processes = torch.cuda.device_count() if gpu else PROCESSES
    if processes < 2:
        hint = "scale needs two GPUs, this machine has one: --device cpu measures gloo"
        return [make_row("strong", "img/s", None, hint=hint)]
    share = max(1, torch.get_num_threads() // (1 if gpu else processes))
    batch = size.batch // processes * processes
    each = f"{share} thread{'s' if share > 1 else ''}"

    def measure(count: int, threads: int, samples: int) -> Measure:
        work = partial(start, "train", to_dict(bench.config(batch=samples)), threads, size.steps, count)
        return lambda: size.steps * samples / max(outcome["seconds"] for outcome in work())

    measures = {
        "strong": measure(processes, share, batch),
        "weak": measure(processes, share, batch * processes),
        "one": measure(1, share, batch),
    }
    if not gpu:
        measures["one, strong"] = measure(1, share * processes, batch)
        measures["one, weak"] = measure(1, share * processes, batch * processes)
    numbers = interleave(measures, size.process_rounds, warm_up=False)
    peer = None if gpu else f"1 process, {share * processes} threads, the same global batch"
    floor = f"{processes} x 1 process, {each}, batch {batch}"
    return [
        make_row(
            f"{kind}, {what}: {processes} processes, {each} each",
            "img/s",
            numbers[kind],
            (peer, numbers.get(f"one, {kind}")),
            (floor, [one * processes for one in numbers["one"]]),
        )
        for kind, what in (("strong", f"global batch {batch}"), ("weak", f"batch {batch} per process"))
    ]


def memory(bench: Bench) -> list[Row]:
    """The peak resident memory (MiB) and the time (s) of a process per stage and number of images.

    ``train`` takes the same few steps whatever the number of images, ``evaluate`` scores all of val. The
    floor of a peak is what is resident before the work: interpreter, imports, network.
    """
    size, threads = bench.size, torch.get_num_threads()
    batch = size.batch // PROCESSES * PROCESSES
    configs = {n: to_dict(bench.config(path=path, batch=batch)) for n, path in _betons(bench).items()}
    works = {  # what is converted first is read by the others
        (name, n): partial(start, name, config, threads, size.steps)
        for name in ("convert", "by_hand", "load", "train", "evaluate")
        for n, config in configs.items()
    }
    outcomes: dict[tuple[str, int], list[Outcome]] = {key: [] for key in works}
    for _ in range(size.process_rounds):
        for key, work in works.items():
            outcomes[key] += work()
    few, many = size.growth[0], size.growth[-1]

    def rounds(field: str, n: int) -> Callable[[str], list[float]]:
        return lambda name: [outcome[field] for outcome in outcomes[name, n]]

    def growth(name: str) -> list[float]:
        pairs = zip(outcomes[name, few], outcomes[name, many], strict=True)
        return [(large["peak_mib"] - small["peak_mib"]) / (many - few) * 1000 for small, large in pairs]

    rows: list[Row] = []

    def add(
        stage: str, name: str, unit: str, numbers: Callable[[str], list[float]], floor: Side = NOBODY
    ) -> None:
        peer = (NAME, numbers("by_hand")) if stage == "convert" else NOBODY
        rows.append(make_row(f"{stage}, {name}", unit, numbers(stage), peer, floor))

    for stage in ("convert", "load", "train", "evaluate"):
        for n in size.growth:
            name, before = f"{n:,} images", rounds("start_mib", n)(stage)
            add(stage, name, "MiB", rounds("peak_mib", n), (BEFORE, before))
            add(stage, name, "s", rounds("seconds", n))
            if "device_mib" in outcomes[stage, n][0]:
                add(stage, f"{name}, on the GPU", "MiB", rounds("device_mib", n))
        add(stage, "more peak per 1,000 images", "MiB", growth)
    if bench.device.type == "cpu" or torch.cuda.device_count() >= PROCESSES:
        share = max(1, threads // PROCESSES)
        worlds = [
            start("train", configs[many], share, size.steps, PROCESSES) for _ in range(size.process_rounds)
        ]
        largest = [max(ranks, key=lambda rank: rank["peak_mib"]) for ranks in worlds]
        peaks, before = ([rank[field] for rank in largest] for field in ("peak_mib", "start_mib"))
        name = f"train, {many:,} images, the larger of {PROCESSES} processes"
        rows.append(make_row(name, "MiB", peaks, floor=(BEFORE, before)))
    return rows


def _betons(bench: Bench) -> dict[int, Path]:
    """Where the beton of each size will be; beside it its fer2013.csv, the first rows of the largest one."""
    drawn = write_fer2013_csv(synthesize(max(bench.size.growth)), bench.folder / "growth.csv")
    lines = drawn.read_text().splitlines(keepends=True)
    paths = {n: bench.fresh_folder(f"growth-{n}") / "fer2013.beton" for n in bench.size.growth}
    for n, path in paths.items():
        path.with_suffix(".csv").write_text("".join(lines[: n + 1]))
    return paths
