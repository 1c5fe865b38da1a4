"""Work that is spread over the cores and comes back in order."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from rich.console import Console
from rich.progress import track

THREADS: Final = min(len(os.sched_getaffinity(0)), 16)
"""Threads that work; each may hold the largest image that is decoded."""
_AHEAD: Final = 8
"""Results for each thread that wait to be taken."""

T = TypeVar("T")
R = TypeVar("R")


def in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The results of threads that work on the items, in the items' order; the first error ends it.

    Decoding, unpacking and hashing let other threads run. Only a few results wait to be taken.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == _AHEAD * THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def progress(items: Sequence[T], description: str) -> Iterable[T]:
    """Go through ``items``, with a progress bar on stderr where that is a terminal."""
    return track(
        items,
        description,
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
