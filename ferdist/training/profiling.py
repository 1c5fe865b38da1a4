"""A torch profiler trace of a few training steps: ``profile=true``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ferdist.io import atomic_path

T = TypeVar("T")

TRACE: Final = "train.pt.trace.json"
"""Name of the trace; by its ending TensorBoard's profiler plugin finds it, and Perfetto opens it as well."""

SKIPPED_STEPS: Final = 5
"""Steps before the profiler starts: those of compilation, first allocations and the choice of kernels."""

WARMUP_STEPS: Final = 2
"""Steps in which the profiler runs but records nothing, since its start itself takes time."""

RECORDED_STEPS: Final = 3
OPERATORS: Final = 10

_log = logging.getLogger(__name__)


def trace_steps(items: Iterable[T], folder: Path, device: torch.device) -> Iterator[T]:
    """The same items; what is done with a few of them, after warm-up, is recorded.

    Writes ``train.pt.trace.json`` into ``folder`` and the costliest operators to stderr. If the items end
    before the recording begins there is no trace, and a warning says so.

    Args:
        items: of a loop that does one step per item.
        folder: for the trace; made where there is none.
        device: where the steps compute.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    seen = 0

    def write(recorded: profile) -> None:
        steps = min(seen - SKIPPED_STEPS - WARMUP_STEPS, RECORDED_STEPS)
        if steps <= 0:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / TRACE) as temporary:
            recorded.export_chrome_trace(str(temporary))
        print(_costliest(recorded, steps), f"trace: {folder / TRACE}", sep="\n", file=sys.stderr)

    plan = schedule(skip_first=SKIPPED_STEPS, wait=0, warmup=WARMUP_STEPS, active=RECORDED_STEPS, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, record_shapes=True) as profiler:
        for item in items:
            yield item
            seen += 1
            profiler.step()
    if seen <= SKIPPED_STEPS + WARMUP_STEPS:
        _log.warning("no profile: it needs more than %d steps", SKIPPED_STEPS + WARMUP_STEPS)


def _costliest(recorded: profile, steps: int) -> str:
    """The operators that take longest by themselves in so many steps, as a table."""
    events = [event for event in recorded.key_averages() if not event.key.startswith("ProfilerStep")]
    on_device = any(event.self_device_time_total > 0 for event in events)
    place = "device" if on_device else "CPU"
    times = {e.key: e.self_device_time_total if on_device else e.self_cpu_time_total for e in events}
    calls = {event.key: event.count for event in events}
    total = sum(times.values()) or 1.0
    lines = [f"{'ms per step':>12}{'share':>8}{'calls':>8}  operator (self {place} time)"]
    for key in sorted(times, key=lambda k: -times[k])[:OPERATORS]:
        milliseconds = times[key] / 1000 / steps
        per_step = calls[key] / steps
        lines.append(f"{milliseconds:>12.2f}{times[key] / total:>8.1%}{per_step:>8.4g}  {key}")
    return "\n".join(lines)
