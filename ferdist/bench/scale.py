"""Several processes against one: torchrun, gloo on CPUs and nccl on GPUs."""

from __future__ import annotations

import torch

from ferdist.bench import child
from ferdist.bench.settings import Bench
from ferdist.bench.timing import Measure, Row, interleave


def run(bench: Bench) -> list[Row]:
    """Training images per second, loader and augmentation included, networks not compiled.

    On CPUs N processes share the threads that one process has: 2 processes with half of them each. Strong
    scaling keeps the global batch, weak scaling the batch per process. The limit is N times what one process
    with a process's share reaches alone.
    """
    gpu = bench.device.type == "cuda"
    processes = torch.cuda.device_count() if gpu else 2
    if processes < 2:
        hint = "scale needs two GPUs, this machine has one: --device cpu measures gloo"
        return [Row("scale", "strong", "img/s", None, hint=hint)]
    share = max(1, torch.get_num_threads() // (1 if gpu else processes))
    batch = bench.size.batch // processes * processes
    size, each = bench.size, f"{share} thread{'s' if share > 1 else ''}"

    def measure(count: int, threads: int, samples: int) -> Measure:
        job = child.Job(
            "train",
            str(bench.beton.path),
            fold=bench.fold,
            device=bench.device.type,
            threads=threads,
            batch=samples,
            steps=size.steps,
            stem=size.stem,
        )

        def once() -> float:
            outcomes = child.start(job, count)
            return outcomes[0].images / max(outcome.seconds for outcome in outcomes)

        return once

    measures = {
        "many": measure(processes, share, batch),
        "one": measure(1, share, batch),
        "one, its share": measure(1, share, batch // processes),
    }
    if not gpu:
        measures["one, all threads"] = measure(1, share * processes, batch)
    figures = interleave(measures, size.process_rounds, warm_up=False)
    many, together = figures["many"], figures.get("one, all threads")
    name = f"{processes} processes, {each} each"
    peer_name = None if gpu else f"1 process, {share * processes} threads"
    return [
        Row(
            "scale",
            f"strong, global batch {batch}: {name}",
            "img/s",
            many,
            together,
            peer_name,
            figures["one"].times(processes),
            f"{processes} x 1 process, {each}",
        ),
        Row(
            "scale",
            f"weak, batch {batch // processes} per process: {name}",
            "img/s",
            many,
            floor=figures["one, its share"].times(processes),
            floor_name=f"{processes} x 1 process, {each}",
        ),
    ]
