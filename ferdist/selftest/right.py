"""Whether ferdist computes right here: as elsewhere, in every precision, on all ranks, after a stop."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ferdist.config import Config, from_dict, to_dict
from ferdist.data.beton import Beton, open_beton
from ferdist.data.record import Images
from ferdist.errors import ConfigError, RunError
from ferdist.evaluation.benchmark import Benchmark, checksums, grid, total_checksum
from ferdist.models import ModelConfig, Task, register
from ferdist.runtime import checkpoint
from ferdist.runtime.distributed import World
from ferdist.runtime.folder import RunFolder
from ferdist.runtime.precision import autocast_dtype, configure_kernels, precision_name
from ferdist.selftest.checks import Check, Status
from ferdist.training.build import Setup, build

STEPS: Final = 6
"""Of a training that is compared with another."""
TOLERANCE: Final = {"fp32": 1e-3, "bf16": 0.5, "fp16": 0.25}
"""Of a narrow network's first update, relative to the CPU's in fp32, by precision.

On CPUs bf16 has 0.33 and fp16 0.11, by rounding alone; an update in another direction has 1 or more.
"""
RANKS_TOLERANCE: Final = 1e-4
BENCHMARK_CHECKSUM: Final = "7121ad52e89fce9b9edeff4af0f13a9e37820d734d84fce664e0d8738ab5e358"
"""Of the benchmark's images of `_pattern`, on every machine."""
KILLED_RUN_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Site:
    """Where the self test works.

    Attributes:
        world: this rank.
        folder: of its own, on the file system of the runs; all ranks share it.
        beton: of drawn faces, in the folder.
    """

    world: World
    folder: Path
    beton: Path

    def open(self) -> Beton:
        """The drawn faces."""
        return open_beton(self.beton)

    def config(self, **changes: Any) -> Config:
        """A short training of a narrow network; ``changes`` name sections, such as ``train={"lr": 0.1}``."""
        values: dict[str, Any] = {
            "data": {"path": str(self.beton), "batch_size": 32},
            "model": {"name": "resnet18_cbam", "width": 8},
            "train": {"epochs": 2, "lr": 0.05, "precision": "fp32", "log_every": 1},
            "run_dir": str(self.folder / "run"),
        }
        for section, keys in changes.items():
            values[section] = {**values.get(section, {}), **keys} if isinstance(keys, dict) else keys
        return from_dict(values, self.folder)

    def build(self, world: World | None = None, **changes: Any) -> Setup:
        """What trains by `config`, for this rank or another."""
        config = self.config(**changes)
        configure_kernels(config.train.deterministic, config.train.precision)
        return build(config, self.open(), world or self.world)


@register("independent")
def _independent(config: ModelConfig, task: Task) -> nn.Module:
    """A small network without batch norm, whose output for a sample does not depend on the others."""
    return nn.Sequential(
        nn.Conv2d(task.channels, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, task.classes),
    )


def agreement(site: Site) -> Iterator[Check]:
    """Whether all ranks compute on the same kind of device, in the same type."""
    world = site.world
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    own = f"{device}, {precision_name(autocast_dtype('auto', world.device))}"
    found = world.gather(own)
    if len(set(found)) == 1:
        yield Check("ranks agree", Status.PASSED, f"{world.size} on {own}" if world.size > 1 else own)
    else:
        ranks = "; ".join(f"rank {rank}: {what}" for rank, what in enumerate(found))
        remedy = "give all ranks the same kind of device, and set train.precision"
        yield Check("ranks agree", Status.FAILED, ranks, remedy)


def step(site: Site, precision: str) -> Iterator[Check]:
    """Whether an update equals the CPU's in fp32, within the tolerance of its precision."""
    name = f"step in {precision}"
    alone = dataclasses.replace(site.world, rank=0, size=1)
    plain = {"augment": {"enabled": False}, "train": {"precision": precision}}
    try:
        here = site.build(alone, **plain)
    except ConfigError as error:
        yield Check(name, Status.SKIPPED, str(error))
        return
    there = site.build(World(0, 1, 0, torch.device("cpu")), augment={"enabled": False})
    if here.engine.dtype is None and site.world.device.type == "cpu":
        yield Check(name, Status.SKIPPED, "the CPU's fp32 is the reference")
        return
    update, reference = _first_update(here), _first_update(there)
    difference = ((update - reference).norm() / reference.norm()).item()
    value = (
        f"{difference:.2g} of the update's length from the CPU's in fp32, at most {TOLERANCE[precision]:g}"
    )
    if difference <= TOLERANCE[precision]:
        yield Check(name, Status.PASSED, value)
    else:
        yield Check(name, Status.FAILED, value, "train in fp32 and report it with the output of --json")


def ranks_equal_one(site: Site) -> Iterator[Check]:
    """Whether the ranks together make the updates that one alone makes of the same samples."""
    world = site.world
    if world.size == 1:
        yield Check("ranks equal one", Status.SKIPPED, "start it under torchrun or srun")
        return
    model = {"name": f"{__name__}:independent"}
    together = _weights(_trained(site.build(model=model), STEPS))
    alone = _weights(_trained(site.build(dataclasses.replace(world, rank=0, size=1), model=model), STEPS))
    difference = ((together - alone).norm() / alone.norm()).item()
    value = f"{world.size} ranks: weights differ by {difference:.2g}, at most {RANKS_TOLERANCE:g}"
    if difference <= RANKS_TOLERANCE:
        yield Check("ranks equal one", Status.PASSED, value)
    else:
        yield Check("ranks equal one", Status.FAILED, value, "report it with the output of --json")


def resume(site: Site, *, compiled: bool) -> Iterator[Check]:
    """Whether a training that goes through a checkpoint ends with the bits of one that does not."""
    name = "resume, compiled" if compiled else "resume"
    if compiled and site.world.device.type == "cpu":
        yield Check(name, Status.SKIPPED, "compiling takes minutes on a CPU, and is off there by default")
        return
    train = {"precision": "auto", "compile": compiled}
    unbroken = _trained(site.build(train=train), STEPS)
    first = _trained(site.build(train=train), STEPS // 2)
    state = first.engine.state()
    path = site.folder / f"resume-{int(compiled)}.pt"
    if site.world.is_main:
        checkpoint.save(path, state)
    site.world.barrier()
    second = site.build(train=train)
    second.engine.load_state(checkpoint.load(path, checkpoint.EngineState))
    _trained(second, STEPS - STEPS // 2)
    different = _different(unbroken.engine.state(), second.engine.state())
    if not site.world.is_main:  # a checkpoint has the batch statistics of rank 0 alone
        one, other = (dict(setup.engine.model.named_parameters()) for setup in (unbroken, second))
        different = _different(one, other)
    if site.world.any(bool(different)):
        value = (
            f"{len(different)} tensors differ, such as {different[0]}"
            if different
            else "another rank's differ"
        )
        remedy = "leave train.compile at false" if compiled else "report it with the output of --json"
        yield Check(name, Status.FAILED, value, remedy)
    else:
        yield Check(name, Status.PASSED, f"{STEPS} steps, stopped after {STEPS // 2}: the same bits")


def kill(site: Site) -> Iterator[Check]:
    """Whether a run that is killed amid its training and started again ends with an unbroken one's bits."""
    name = "kill and resume"
    if site.world.size > 1:
        yield Check(name, Status.SKIPPED, "start it as one process")
        return
    folders = {}
    for case in ("unbroken", "killed"):
        config = site.config(run_dir=str(site.folder / case), device=site.world.device.type)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, checkpoint_steps=4))
        path = site.folder / f"{case}.yaml"
        path.write_text(_yaml(config), encoding="utf-8")
        folders[case] = RunFolder(Path(config.run_dir))
        if case == "killed":
            _kill_at_checkpoint(path, folders[case])
        _run_to_end(path)
    last = [checkpoint.steps(folder.checkpoints)[-1] for folder in folders.values()]
    unbroken, killed = (
        {
            name: value
            for name, value in checkpoint.load(path, checkpoint.EngineState).items()
            if name in ("step", "model", "ema", "optimizer")
        }
        for path in last
    )
    different = _different(unbroken, killed)
    if different:
        value = f"{len(different)} tensors differ, such as {different[0]}"
        yield Check(name, Status.FAILED, value, "report it with the output of --json")
    else:
        yield Check(name, Status.PASSED, "killed after a checkpoint, started again: the same bits")


def no_synchronisation(site: Site) -> Iterator[Check]:
    """Whether a step leaves the device to itself: no value of a tensor is read by the CPU."""
    setup = _trained(site.build(train={"precision": "auto"}, augment={"mixup": {"probability": 0.5}}), 2)
    (batch,) = next(stream := setup.batches())
    stream.close()  # type: ignore[attr-defined]
    readings = _Readings()
    try:
        with _strict(site.world.device), readings:
            setup.engine.train_step([batch])
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        yield Check("no synchronisation", Status.FAILED, reason, "report it with the output of --json")
        return
    if readings.found:
        value = f"a step reads values of tensors: {', '.join(sorted(readings.found))}"
        yield Check("no synchronisation", Status.FAILED, value, "remove .item(), nonzero and boolean indices")
    else:
        yield Check("no synchronisation", Status.PASSED, "a step reads no value of a tensor")


def every_sample_once(site: Site) -> Iterator[Check]:
    """Whether an evaluation scores each sample exactly once, however many ranks share it."""
    setup = site.build()
    index = setup.score().index
    expected = np.sort(setup.val_indices)
    if np.array_equal(index, expected):
        yield Check("every sample once", Status.PASSED, f"{len(index)} of {len(expected)} samples")
    else:
        value = f"{len(index)} scored, {len(np.unique(index))} of {len(expected)} different ones"
        yield Check("every sample once", Status.FAILED, value, "report it with the output of --json")


def benchmark_images() -> Iterator[Check]:
    """Whether the occlusion benchmark's images are those of every other machine."""
    images = _pattern()
    index = np.arange(len(images), dtype=np.int64)
    benchmark = Benchmark((128,), index, index, images)
    rows = [checksums(benchmark.cover(images, index, cell)) for cell in grid()]
    found = total_checksum(np.concatenate(rows))
    if found == BENCHMARK_CHECKSUM:
        yield Check("benchmark images", Status.PASSED, f"{len(rows)} cells: sha256 {found[:12]}")
    else:
        value = f"sha256 {found[:12]}, published {BENCHMARK_CHECKSUM[:12]}"
        remedy = "do not compare with published figures; report it with the output of --json"
        yield Check("benchmark images", Status.FAILED, value, remedy)


def _pattern() -> Images:
    """Eight images, uint8 (8, 1, 48, 48), that no random generator has a hand in."""
    n, y, x = np.ogrid[:8, :48, :48]
    pattern: Images = ((37 * n + 5 * y + 3 * x + x * y * (n + 1)) % 256).astype(np.uint8)[:, None]
    return pattern


def _trained(setup: Setup, steps: int) -> Setup:
    """The setup after so many steps more."""
    stream = setup.batches()
    for _ in range(steps):
        setup.engine.train_step(next(stream))
    stream.close()  # type: ignore[attr-defined]
    return setup


def _weights(setup: Setup) -> Tensor:
    """All parameters in one vector on the CPU, float64."""
    return torch.cat([p.detach().double().cpu().flatten() for p in setup.engine.model.parameters()])


def _first_update(setup: Setup) -> Tensor:
    before = _weights(setup)
    return _weights(_trained(setup, 1)) - before


def _different(one: Any, other: Any, name: str = "") -> list[str]:
    """Names of the tensors and values that are not the same bits."""
    if isinstance(one, Tensor):
        return [] if torch.equal(one.cpu(), other.cpu()) else [name]
    if isinstance(one, dict):
        return [n for key in one for n in _different(one[key], other[key], f"{name}.{key}".lstrip("."))]
    if isinstance(one, list | tuple):
        return [
            n
            for i, (a, b) in enumerate(zip(one, other, strict=True))
            for n in _different(a, b, f"{name}.{i}")
        ]
    return [] if one == other else [name]


class _Readings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the operators that make the CPU wait for a value."""

    _WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.masked_select")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(str(func).startswith(name) for name in self._WAITING):
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def _strict(device: torch.device) -> Iterator[None]:
    """On a GPU, an error at each call that waits for it."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _yaml(config: Config) -> str:
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False)


def _start(config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "ferdist.train", str(config)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _kill_at_checkpoint(config: Path, folder: RunFolder) -> None:
    """Start a run and kill it once it has written a checkpoint."""
    deadline = time.monotonic() + KILLED_RUN_SECONDS
    with _start(config) as process:
        while not checkpoint.steps(folder.checkpoints):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RunError(f"the run wrote no checkpoint: {_last_line(process)}")
            time.sleep(0.005)
        process.kill()


def _run_to_end(config: Path) -> None:
    with _start(config) as process:
        if process.wait(KILLED_RUN_SECONDS):
            raise RunError(f"the run ended with exit code {process.returncode}: {_last_line(process)}")


def _last_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    lines = process.stderr.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
