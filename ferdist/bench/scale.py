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
    with a process's share of the threads reaches alone with that batch.
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
        "strong": measure(processes, share, batch),
        "weak": measure(processes, share, batch * processes),
        "one": measure(1, share, batch),
    }
    if not gpu:
        measures["one, strong"] = measure(1, share * processes, batch)
        measures["one, weak"] = measure(1, share * processes, batch * processes)
    figures = interleave(measures, size.process_rounds, warm_up=False)
    limit = figures["one"].times(processes)
    return [
        Row(
            "scale",
            f"{kind}, {what}: {processes} processes, {each} each",
            "img/s",
            figures[kind],
            figures.get(f"one, {kind}"),
            None if gpu else f"1 process, {share * processes} threads, the same global batch",
            limit,
            f"{processes} x 1 process, {each}, batch {batch}",
        )
        for kind, what in (("strong", f"global batch {batch}"), ("weak", f"batch {batch} per process"))
    ]
