"""`ferdist selftest`, from the first look to the table."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

import numpy as np

from ferdist.errors import RunError
from ferdist.runtime.distributed import World, join_world
from ferdist.selftest import machine
from ferdist.selftest.checks import Check, Findings, Probe, Status, look, merge
from ferdist.table import Table

FACES: Final = 640
"""That are drawn; a large batch has them several times."""
TRAIN_SHARE: Final = 0.6
"""Of the drawn faces at least so many are in the training part."""


def run_selftest(folder: Path, device: str = "auto") -> Findings:
    """Look at this machine, compute on it, and time it; under torchrun or srun every rank calls this.

    Args:
        folder: where runs are to be written; what the test writes there is removed at its end.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        What was found, on every rank the same.

    Raises:
        RunError: if the folder cannot be written.
    """
    with join_world(device) as world, _own_folder(folder, world) as own:
        groups = {"machine": _together(world, _machine(world, own))}
        if any(
            check.status == Status.FAILED and check.name in ("cv2", "ffcv", "disk")
            for check in groups["machine"]
        ):
            return Findings(groups, {})
        from ferdist.selftest.fast import BATCHES, Speed
        from ferdist.selftest.right import Site

        site = Site(world, own, _draw(own, world, BATCHES[world.device.type][-1] * world.size))
        groups["computes right"] = _together(world, _right(site))
        speed = Speed(site)
        probes: dict[str, Probe] = {
            name: getattr(speed, name) for name in ("peak", "steps", "idle", "loader", "all_reduce")
        }
        groups["speed"] = _together(world, probes)
        return Findings(groups, speed.settings)


def _machine(world: World, folder: Path) -> dict[str, Probe]:
    return {
        "versions": machine.versions,
        "GPU": partial(machine.gpus, world),
        "links between GPUs": partial(machine.links, world),
        "cores": machine.cores,
        "shared memory": machine.shared_memory,
        "disk": partial(machine.disk, folder, world.rank),
        "locks": partial(machine.locks, folder, world.rank),
        "libraries": machine.libraries,
        "fonts": machine.fonts,
    }


def _right(site: object) -> dict[str, Probe]:
    from ferdist.selftest import right

    assert isinstance(site, right.Site)
    return {
        "ranks agree": partial(right.agreement, site),
        **{f"step in {name}": partial(right.step, site, name) for name in right.TOLERANCE},
        "ranks equal one": partial(right.ranks_equal_one, site),
        "resume": partial(right.resume, site, compiled=False),
        "resume, compiled": partial(right.resume, site, compiled=True),
        "kill and resume": partial(right.kill, site),
        "no synchronisation": partial(right.no_synchronisation, site),
        "every sample once": partial(right.every_sample_once, site),
        "benchmark images": right.benchmark_images,
    }


def _together(world: World, probes: dict[str, Probe]) -> list[Check]:
    """The checks of all ranks."""
    checks = []
    for name, probe in probes.items():
        if world.is_main:
            _show(name)
        checks += merge(world.gather(list(look(name, probe))))
    if world.is_main:
        _show("")
    return checks


def _show(name: str) -> None:
    """What is looked at, on a terminal's last line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{name}", end="", file=sys.stderr, flush=True)


@contextmanager
def _own_folder(folder: Path, world: World) -> Iterator[Path]:
    """A folder that all ranks share, removed at the end."""
    own = ""
    if world.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            own = mkdtemp(prefix=".selftest-", dir=folder)
        except OSError as error:
            own = f"\0{error.strerror}"
    own = world.gather(own)[0]
    if own.startswith("\0"):
        raise RunError(f"{folder}: cannot be written: {own[1:]}: choose another folder with --dir")
    try:
        yield Path(own).resolve()
    finally:
        if world.is_main:
            shutil.rmtree(own, ignore_errors=True)


def _draw(folder: Path, world: World, batch: int) -> Path:
    """Drawn faces as a beton, so many that a batch of the training part can be filled."""
    from ferdist.data.beton import write_beton
    from ferdist.data.synthetic import synthesize

    path = folder / "drawn.beton"
    if world.is_main:
        few = synthesize(FACES)
        rows = np.arange(max(FACES, int(np.ceil(batch / TRAIN_SHARE)))) % FACES
        faces = replace(
            few,
            name=path.stem,
            images=np.asarray(few.images)[rows],
            labels=few.labels[rows],
            split=few.split[rows],
            subject=few.subject[rows],
            sequence=few.sequence[rows],
            fold=few.fold[rows],
            source_id=[f"{number}/{few.source_id[row]}" for number, row in enumerate(rows.tolist())],
        )
        write_beton(faces, folder)
    world.barrier()
    return path


def as_text(findings: Findings) -> str:
    """A table for each group, what to do about each warning and failure, and the settings for a config."""
    parts = []
    for group, checks in findings.groups.items():
        rows = tuple((check.name, check.status.value, check.value) for check in checks)
        parts.append(Table(group, (group, "result", "found"), rows).text())
    for checks in findings.groups.values():
        parts += [
            f"{check.status.upper()}: {check.name}: {check.value}"
            + (f": {check.remedy}" if check.remedy else "")
            for check in checks
            if check.status in (Status.WARNING, Status.FAILED)
        ]
    if findings.settings:
        values = " ".join(f"{key}={str(value).lower()}" for key, value in findings.settings.items())
        parts.append(f"Settings for this machine: {values}")
    parts.append(
        "All that ferdist promises holds here." if findings.passed else "The self test failed: see above."
    )
    return "\n\n".join(parts)
