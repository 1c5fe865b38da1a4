"""Stops that are part of a cluster's everyday: a signal asks, all ranks agree, a checkpoint is written."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NamedTuple

import torch
import torch.distributed as dist

from ferdist.runtime.distributed import World

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""SIGUSR2 is what SLURM is told to send before a time limit; NCCL may catch SIGUSR1."""
ONE_PRESS_SECONDS: Final = 2.0
"""SIGINTs so close together are one Ctrl-C: the terminal's, and torchrun's that passes it on."""

_PR_SET_PDEATHSIG: Final = 1
_PARENT: Final = os.getppid()
"""Of this process as it started. torchrun can be process 1, in a container, as can what adopts orphans."""

_log = logging.getLogger(__name__)


class StopRequest:
    """Which stop signals have arrived; their handler notes them, but a second Ctrl-C ends the process."""

    def __init__(self) -> None:
        self._signals: dict[int, float] = {}

    def note(self, number: int, _frame: FrameType | None) -> None:
        """The handler: the same signal again changes nothing.

        Raises:
            KeyboardInterrupt: at a SIGINT that comes well after another one.
        """
        before = self._signals.setdefault(number, now := time.monotonic())
        if number == signal.SIGINT and now - before > ONE_PRESS_SECONDS:
            raise KeyboardInterrupt

    @property
    def stop(self) -> bool:
        """Whether any of them asks for a stop."""
        return bool(self._signals)

    @property
    def requeue(self) -> bool:
        """Whether the run is wanted again: SIGUSR2 announces a time limit or a preemption.

        SIGTERM alone does not say so: it comes with scancel, and where SLURM requeues the job itself.
        """
        return signal.SIGUSR2 in self._signals


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Note SIGTERM, SIGUSR2 and Ctrl-C instead of dying of them; the old handlers come back at the end.

    Outside of a process's main thread Python has no say over signals: then nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        _log.warning("training outside the main thread: stop signals will be ignored")
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in STOP_SIGNALS}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _stop_without_parent(request)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_without_parent(request: StopRequest) -> None:
    """Ask for a stop when torchrun has gone: it may be killed, and its workers would train on unwatched.

    Linux only; see prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != _PARENT:  # it went before
        request.note(signal.SIGTERM, None)


class Decision(NamedTuple):
    """What all ranks do at this step boundary."""

    stop: bool
    save: bool


class Agreement:
    """Lets any rank's wish become all ranks' decision at the same step boundary.

    The votes of a step travel while the next step computes, so nobody waits for them: a decision comes one
    step after the wish. One process decides at once.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._votes: torch.Tensor | None = None
        self._work: dist.Work | None = None

    def propose(self, *, stop: bool, save: bool) -> Decision:
        """Cast this rank's votes at a step boundary; all ranks must call at every boundary.

        Returns:
            The decision that all ranks take now.
        """
        if self._world.size == 1:
            return Decision(stop, save)
        decision = Decision(False, False)
        if self._votes is not None and self._work is not None:
            self._work.wait()
            decision = Decision(*(bool(vote) for vote in self._votes.tolist()))
        # A wish that is carried out now is not voted for again.
        self._votes = torch.tensor([int(stop), int(save and not decision.save)])
        self._work = dist.all_reduce(self._votes, op=dist.ReduceOp.MAX, async_op=True)
        return decision

    def close(self) -> None:
        """Take in the votes that are still under way."""
        if self._work is not None:
            self._work.wait()
            self._work = None
