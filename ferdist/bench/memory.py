"""Peak memory of each stage, and how time and memory grow with the images and the processes."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from ferdist.bench import child
from ferdist.bench.byhand import NAME
from ferdist.bench.child import Job, Outcome
from ferdist.bench.settings import Bench
from ferdist.bench.timing import Figure, Row
from ferdist.data.rawformats import write_fer2013_csv
from ferdist.data.synthetic import synthesize

PROCESSES = 2
STAGES = ("convert", "load", "train", "evaluate")
BY_HAND = "by_hand"

Outcomes = dict[int, list[Outcome]]
"""Number of images to an outcome per round."""


def run(bench: Bench) -> list[Row]:
    """The peak resident memory (MiB) and the time (s) of a process per stage and number of images.

    ``train`` takes the same few steps whatever the number of images, ``evaluate`` scores all of val. The
    floor of a peak is what is resident before the work: interpreter, imports, network.
    """
    sets = _csvs(bench)
    tasks = (STAGES[0], BY_HAND, *STAGES[1:])  # what is converted is read by the others
    jobs = {(task, n): _job(bench, task, csv) for task in tasks for n, csv in sets.items()}
    outcomes: dict[tuple[str, int], list[Outcome]] = {key: [] for key in jobs}
    for _ in range(bench.size.process_rounds):
        for key, job in jobs.items():
            outcomes[key].append(child.start(job)[0])
    rows: list[Row] = []
    for stage in STAGES:
        theirs = {n: outcomes[BY_HAND, n] for n in sets} if stage == "convert" else {}
        rows += _rows(stage, {n: outcomes[stage, n] for n in sets}, theirs)
    if bench.device.type == "cpu" or torch.cuda.device_count() >= PROCESSES:
        rows.append(_each_rank(bench, jobs["train", max(sets)], max(sets)))
    return rows


def _each_rank(bench: Bench, job: Job, images: int) -> Row:
    """The peak of the largest of several processes that train together."""
    shared = replace(job, threads=max(1, job.threads // PROCESSES))
    ranks = [child.start(shared, PROCESSES) for _ in range(bench.size.process_rounds)]
    peaks = [max(rank, key=lambda outcome: outcome.peak_mib) for rank in ranks]
    return _peak_row(f"train, {images:,} images, the larger of {PROCESSES} processes", peaks, [])


def _csvs(bench: Bench) -> dict[int, Path]:
    """Drawn faces as a fer2013.csv of each size; the smaller ones are the largest one's first rows."""
    counts = [bench.size.growth * multiple for multiple in bench.size.multiples]
    folders = {n: bench.fresh_folder(f"growth-{n}") for n in counts}
    largest = write_fer2013_csv(synthesize(counts[-1]), folders[counts[-1]] / "fer2013.csv")
    for n in counts[:-1]:
        with largest.open() as rows, (folders[n] / "fer2013.csv").open("w") as out:
            out.writelines(islice(rows, n + 1))
    return {n: folder / "fer2013.csv" for n, folder in folders.items()}


def _job(bench: Bench, task: str, csv: Path) -> Job:
    converts = task in ("convert", BY_HAND)
    return Job(
        task,
        str(csv if converts else csv.parent / "fer2013.beton"),
        out=str(csv.parent),
        device="cpu" if converts else bench.device.type,
        threads=torch.get_num_threads(),
        batch=bench.size.batch // PROCESSES * PROCESSES,
        steps=bench.size.steps,
        stem=bench.size.stem,
    )


def _rows(stage: str, ours: Outcomes, by_hand: Outcomes) -> list[Row]:
    """Peak and time for each number of images, and the growth of the peak."""
    rows = []
    for n, outcomes in ours.items():
        theirs = by_hand.get(n, [])
        name = f"{stage}, {n:,} images"
        rows.append(_peak_row(name, outcomes, theirs))
        rows.append(Row("memory", name, "s", _seconds(outcomes), _seconds(theirs), _peer_name(theirs)))
        if all(outcome.device_mib is not None for outcome in outcomes):
            on_device = Figure(tuple(outcome.device_mib or 0.0 for outcome in outcomes))
            rows.append(Row("memory", f"{name}, on the GPU", "MiB", on_device))
    growth = f"{stage}, more peak per 1,000 images"
    theirs = by_hand.get(min(ours), [])
    rows.append(Row("memory", growth, "MiB", _growth(ours), _growth(by_hand), _peer_name(theirs)))
    return rows


def _peak_row(name: str, outcomes: list[Outcome], theirs: list[Outcome]) -> Row:
    before = Figure(tuple(outcome.start_mib for outcome in outcomes))
    return Row(
        "memory",
        name,
        "MiB",
        Figure(tuple(outcome.peak_mib for outcome in outcomes)),
        Figure(tuple(outcome.peak_mib for outcome in theirs)) if theirs else None,
        _peer_name(theirs),
        before,
        "before the work",
    )


def _seconds(outcomes: list[Outcome]) -> Figure | None:
    return Figure(tuple(outcome.seconds for outcome in outcomes)) if outcomes else None


def _growth(outcomes: Outcomes) -> Figure | None:
    if not outcomes:
        return None
    few, many = min(outcomes), max(outcomes)
    thousands = (many - few) / 1000
    pairs = zip(outcomes[few], outcomes[many], strict=True)
    return Figure(tuple((large.peak_mib - small.peak_mib) / thousands for small, large in pairs))


def _peer_name(theirs: list[Outcome]) -> str | None:
    return NAME if theirs else None
