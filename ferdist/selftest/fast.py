"""How fast ferdist is here, and which settings suit this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
import torch.distributed as dist

from ferdist.data.beton import Batch
from ferdist.models import multiply_adds
from ferdist.runtime.precision import precision_name
from ferdist.selftest.checks import Check, Status
from ferdist.selftest.right import Site
from ferdist.table import count
from ferdist.training.engine import OutOfMemory

NETWORK: Final = "resnet18_cbam"
"""What is timed: the full width, stem stride2."""
BATCHES: Final = {"cpu": (32, 128), "cuda": (128, 512, 2048)}
"""Samples of a rank in a step."""
SECONDS: Final = {"cpu": 4.0, "cuda": 2.0}
"""How long a measurement takes, at least."""
STEPS: Final = {"cpu": 3, "cuda": 200}
"""Steps of a measurement, at most; on a GPU at least 20."""
PRODUCT: Final = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product tells the device's peak."""
TRAINING_PASSES: Final = 3
"""A step's work in forward passes: the backward pass is about two."""
NEAR_BEST: Final = 0.9
"""The smallest batch that reaches so much of the best throughput is recommended."""


class Speed:
    """The measurements, and the settings that follow from them.

    Args:
        site: where the self test works; its faces fill a global batch of the largest size.

    Attributes:
        settings: config keys with the values that suit this machine.
    """

    def __init__(self, site: Site) -> None:
        self.site, self.world = site, site.world
        self.kind = site.world.device.type
        self.settings: dict[str, Any] = {}
        self._rates: dict[tuple[int, bool], float] = {}

    def peak(self) -> Iterator[Check]:
        """The device's rate in a large matrix product, in the type that training computes in."""
        dtype = self._build(BATCHES[self.kind][0]).engine.dtype
        side = PRODUCT[self.kind]
        matrix = torch.ones(side, side, device=self.world.device, dtype=dtype or torch.float32)
        self._peak = 2 * side**3 * self._rate(lambda: torch.mm(matrix, matrix))
        product = f"{precision_name(dtype)}, product of {side} x {side}"
        yield Check("peak", Status.FOUND, f"{self._peak / 1e12:.3g} TFLOP/s ({product})")

    def steps(self) -> Iterator[Check]:
        """Images a second of training, by batch, eager and compiled."""
        for compiled in (False, True) if self.kind == "cuda" else (False,):
            for batch in BATCHES[self.kind]:
                name = f"train, batch {batch}{', compiled' if compiled else ''}"
                try:
                    rate, work = self._train(batch, compiled=compiled)
                except (torch.OutOfMemoryError, OutOfMemory):
                    yield Check(name, Status.SKIPPED, "out of memory")
                    continue
                self._rates[batch, compiled] = rate
                share = rate / self.world.size * work / self._peak
                yield Check(
                    name,
                    Status.FOUND,
                    f"{rate:,.0f} images/s on {count(self.world.size, 'rank')}, {share:.0%} of the peak",
                )
        if not self._rates:
            return
        best = max(self._rates.values())
        batch, compiled = min(key for key, rate in self._rates.items() if rate >= NEAR_BEST * best)
        self.settings |= {"data.batch_size": batch * self.world.size, "train.compile": compiled}

    def idle(self) -> Iterator[Check]:
        """Share of a step in which the GPU has nothing to do."""
        if self.kind != "cuda":
            yield Check("GPU idle", Status.SKIPPED, "no GPU")
            return
        if not self._rates:
            yield Check("GPU idle", Status.SKIPPED, "no batch fits into its memory")
            return
        batch = self.settings["data.batch_size"] // self.world.size
        step = self._step(batch, compiled=self.settings["train.compile"])
        for _ in range(5):
            step()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            started = time.perf_counter()
            for _ in range(20):
                step()
            torch.cuda.synchronize()
            seconds = time.perf_counter() - started
        busy = sum(event.device_time_total for event in profile.events()) / 1e6
        idle = max(0.0, 1 - busy / seconds)
        status = Status.WARNING if idle > 0.3 else Status.FOUND
        remedy = "raise data.batch_size, or set train.compile=true" if idle > 0.3 else ""
        yield Check("GPU idle", status, f"{idle:.0%} of a step at batch {batch}", remedy)

    def loader(self) -> Iterator[Check]:
        """Whether the loader reads faster than a step needs."""
        if not self._rates:
            yield Check("loader", Status.SKIPPED, "no step to compare it with")
            return
        setup = self._build(BATCHES[self.kind][-1], data={"cache": "none"})
        for _ in setup.loader.batches(setup.train_indices):
            pass  # FFCV compiles at the first reading
        read, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < SECONDS[self.kind] / 2:
            read += sum(len(batch.index) for batch in setup.loader.batches(setup.train_indices))
        rate, needed = read / seconds, max(self._rates.values()) / self.world.size
        value = f"{rate:,.0f} images/s a rank, {rate / needed:.1f} times what a step takes"
        if rate < needed:
            yield Check("loader", Status.WARNING, value, "set data.cache=device, or raise data.workers")
            self.settings["data.cache"] = "device"
        else:
            yield Check("loader", Status.PASSED, value)

    def all_reduce(self) -> Iterator[Check]:
        """Bandwidth of the ranks' sums of gradients."""
        if self.world.size == 1:
            yield Check("all-reduce", Status.SKIPPED, "one rank")
            return
        gradients = torch.zeros(11_000_000, device=self.world.device)
        rate = self._rate(lambda: dist.all_reduce(gradients))
        share = 2 * (self.world.size - 1) / self.world.size
        bandwidth = share * gradients.numel() * gradients.element_size() * rate
        yield Check(
            "all-reduce", Status.FOUND, f"{1000 / rate:.1f} ms for 44 MB, {bandwidth / 1e9:.2f} GB/s a rank"
        )

    def _build(self, batch: int, **changes: Any) -> Any:
        changes["data"] = {**changes.get("data", {}), "batch_size": batch * self.world.size}
        changes["model"] = {"name": NETWORK, "width": 64}
        changes["train"] = {"precision": "auto", **changes.get("train", {})}
        return self.site.build(**changes)

    def _step(self, batch: int, *, compiled: bool) -> Callable[[], None]:
        setup = self._build(batch, train={"compile": compiled})
        first: list[Batch] = next(stream := setup.batches())
        stream.close()
        return lambda: setup.engine.train_step(first)

    def _train(self, batch: int, *, compiled: bool) -> tuple[float, float]:
        """Images a second of all ranks, and a rank's floating-point operations for one image."""
        setup = self._build(batch, train={"compile": compiled})
        first = next(stream := setup.batches())
        stream.close()
        rate = self._rate(lambda: setup.engine.train_step(first)) * batch * self.world.size
        return rate, 2 * TRAINING_PASSES * multiply_adds(setup.engine.ema.model, setup.card.task)

    def _rate(self, work: Callable[[], Any]) -> float:
        """How often a second all ranks can do some work; the slowest rank's."""
        for _ in range(2):
            work()
        self._wait()
        self.world.barrier()
        started, done = time.perf_counter(), 0
        while True:
            work()
            done += 1
            enough = time.perf_counter() - started >= SECONDS[self.kind] and done >= min(20, STEPS[self.kind])
            if done >= STEPS[self.kind] or self.world.any(enough):
                break
        self._wait()
        seconds = time.perf_counter() - started
        return done / max(self.world.gather(seconds))

    def _wait(self) -> None:
        if self.kind == "cuda":
            torch.cuda.synchronize()
