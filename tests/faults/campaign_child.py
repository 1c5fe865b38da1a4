"""Run a module as ``python -m`` does, on a disk that is slow or beside a clock that jumps.

``python -m tests.faults.campaign_child FAULT FOLDER VALUE MODULE [ARGUMENT]...``, where FAULT is ``disk``
(VALUE seconds before each file under FOLDER is opened, renamed, removed or flushed) or ``clock`` (VALUE
seconds, also negative, that the clock jumps when the first file under FOLDER is opened).
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")
"""Audit events (PEP 578) of what a disk is asked to do."""


def watch(folder: str, act: Callable[[], None]) -> None:
    """Call ``act`` before anything is done to a file under a folder."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and str(arguments[0]).startswith(folder):
            act()

    sys.addaudithook(hook)


def slow_disk(folder: str, seconds: float) -> None:
    """Let each operation wait."""
    flush = os.fsync

    def fsync(handle: int) -> None:
        time.sleep(seconds)
        flush(handle)

    os.fsync = fsync
    watch(folder, lambda: time.sleep(seconds))


def jumping_clock(folder: str, seconds: float) -> None:
    """Let `time.time` and `time.time_ns` jump; `datetime` asks the system and stays."""
    now, now_ns, jump = time.time, time.time_ns, [0.0]
    time.time = lambda: now() + jump[0]
    time.time_ns = lambda: now_ns() + int(jump[0] * 1e9)
    watch(folder, lambda: jump.__setitem__(0, seconds))


if __name__ == "__main__":
    fault, place, value, module, *rest = sys.argv[1:]
    {"disk": slow_disk, "clock": jumping_clock}[fault](place, float(value))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
