"""The stages that need processes of their own: several against one, and how memory grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from ferdist.bench import child
from ferdist.bench.byhand import NAME
from ferdist.bench.child import Outcome, Work
from ferdist.bench.harness import Measure, Row, interleave
from ferdist.bench.setting import Bench
from ferdist.config import to_dict
from ferdist.data.rawformats import write_fer2013_csv
from ferdist.data.synthetic import synthesize

PROCESSES = 2


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
        return [Row("scale", "strong", "img/s", None, hint=hint)]
    share = max(1, torch.get_num_threads() // (1 if gpu else processes))
    batch = size.batch // processes * processes
    each = f"{share} thread{'s' if share > 1 else ''}"

    def measure(count: int, threads: int, samples: int) -> Measure:
        config = to_dict(bench.config(batch=samples))
        work = Work("train", threads, config=config, steps=size.steps)

        def once() -> float:
            outcomes = child.start(work, count)
            return outcomes[0].images / max(outcome.seconds for outcome in outcomes)

        return once

    measures = {
        "strong": measure(processes, share, batch),
        "weak": measure(processes, share, batch * processes),
        "one": measure(1, share, batch),
    }
    if not gpu:
        measures["one, strong"] = measure(1, share * processes, batch)
        measures["one, weak"] = measure(1, share * processes, batch * processes)
    numbers = interleave(measures, size.process_rounds, warm_up=False)
    return [
        Row(
            "scale",
            f"{kind}, {what}: {processes} processes, {each} each",
            "img/s",
            numbers[kind],
            numbers.get(f"one, {kind}"),
            None if gpu else f"1 process, {share * processes} threads, the same global batch",
            [one * processes for one in numbers["one"]],
            f"{processes} x 1 process, {each}, batch {batch}",
        )
        for kind, what in (("strong", f"global batch {batch}"), ("weak", f"batch {batch} per process"))
    ]


def memory(bench: Bench) -> list[Row]:
    """The peak resident memory (MiB) and the time (s) of a process per stage and number of images.

    ``train`` takes the same few steps whatever the number of images, ``evaluate`` scores all of val. The
    floor of a peak is what is resident before the work: interpreter, imports, network.
    """
    size, csvs = bench.size, _csvs(bench)
    rows: list[Row] = []
    # What is converted first is read by the others.
    works = {(name, n): _work(bench, name, csv) for name in _NAMES for n, csv in csvs.items()}
    outcomes: dict[tuple[str, int], list[Outcome]] = {key: [] for key in works}
    for _ in range(size.process_rounds):
        for key, work in works.items():
            outcomes[key].append(child.start(work)[0])
    few, many = size.growth[0], size.growth[-1]
    for stage in (name for name in _NAMES if name != "by_hand"):
        for n in size.growth:
            ours, theirs = outcomes[stage, n], outcomes["by_hand", n] if stage == "convert" else []
            name, peer = f"{stage}, {n:,} images", (NAME if theirs else None)
            rows.append(_peak(name, ours, theirs))
            seconds = [outcome.seconds for outcome in ours], [outcome.seconds for outcome in theirs] or None
            rows.append(Row("memory", name, "s", *seconds, peer))
            on_device = [outcome.device_mib for outcome in ours if outcome.device_mib is not None]
            if on_device:
                rows.append(Row("memory", f"{name}, on the GPU", "MiB", on_device))
        growth = [
            [
                (large.peak_mib - small.peak_mib) / (many - few) * 1000
                for small, large in zip(outcomes[who, few], outcomes[who, many], strict=True)
            ]
            for who in (stage, "by_hand")
        ]
        name = f"{stage}, more peak per 1,000 images"
        rows.append(Row("memory", name, "MiB", growth[0], growth[1] if peer else None, peer))
    if bench.device.type == "cpu" or torch.cuda.device_count() >= PROCESSES:
        work = works["train", many]
        shared = replace(work, threads=max(1, work.threads // PROCESSES))
        ranks = [child.start(shared, PROCESSES) for _ in range(size.process_rounds)]
        peaks = [max(rank, key=lambda outcome: outcome.peak_mib) for rank in ranks]
        rows.append(_peak(f"train, {many:,} images, the larger of {PROCESSES} processes", peaks, []))
    return rows


_NAMES = ("convert", "by_hand", "load", "train", "evaluate")


def _csvs(bench: Bench) -> dict[int, Path]:
    """Drawn faces as a fer2013.csv of each size; the smaller ones are the largest one's first rows."""
    paths = {n: bench.fresh_folder(f"growth-{n}") / "fer2013.csv" for n in bench.size.growth}
    largest = write_fer2013_csv(synthesize(max(paths)), paths[max(paths)])
    for n, path in paths.items():
        if path != largest:
            with largest.open() as rows, path.open("w") as out:
                out.writelines(islice(rows, n + 1))
    return paths


def _work(bench: Bench, name: str, csv: Path) -> Work:
    threads = torch.get_num_threads()
    if name in ("convert", "by_hand"):
        return Work(name, threads, source=str(csv))
    batch = bench.size.batch // PROCESSES * PROCESSES
    config = bench.config(path=csv.with_suffix(".beton"), batch=batch)
    return Work(name, threads, config=to_dict(config), steps=bench.size.steps)


def _peak(name: str, outcomes: Sequence[Outcome], theirs: Sequence[Outcome]) -> Row:
    return Row(
        "memory",
        name,
        "MiB",
        [outcome.peak_mib for outcome in outcomes],
        [outcome.peak_mib for outcome in theirs] or None,
        NAME if theirs else None,
        [outcome.start_mib for outcome in outcomes],
        "before the work",
    )
