"""What this machine has: versions, GPUs, cores, memory, disks, libraries."""

from __future__ import annotations

import errno
import fcntl
import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from ferdist import environment
from ferdist.runtime.distributed import World, nvidia_driver, why_no_gpu
from ferdist.selftest.checks import Check, Status
from ferdist.table import count

SHARED_MEMORY: Final = 64 * 2**20
"""NCCL's ranks on a host speak through so much of it, at least; Docker's default is as little."""
DISK: Final = 2 * 2**30
"""Free bytes that a run of ResNet-18 needs for its checkpoints (135 MB each), predictions and report."""
PROBE_BYTES: Final = 8 * 2**20

_TAKE_LOCK: Final = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(3)
"""


def versions() -> Iterator[Check]:
    """Of ferdist and what it stands on."""
    found = environment.describe(torch.device("cpu"), 1)
    for name in ("ferdist", "torch", "torchvision", "ffcv", "numpy", "python"):
        yield Check(name, Status.FOUND, str(found[name]))
    revision = found["git_revision"]
    yield Check("revision", Status.FOUND, str(revision or "not a checkout"))
    yield Check("system", Status.FOUND, str(found["platform"]))


def gpus(world: World) -> Iterator[Check]:
    """The GPU of this rank, its driver, and whether a driver is there that PyTorch cannot use."""
    if world.device.type == "cuda":
        properties = torch.cuda.get_device_properties(world.device)
        capability = f"compute capability {properties.major}.{properties.minor}"
        size = f"{properties.total_memory / 2**30:.0f} GiB"
        yield Check("GPU", Status.FOUND, f"{properties.name}, {size}, {capability}")
        built = f"PyTorch built for CUDA {torch.version.cuda}"
        yield Check("driver", Status.FOUND, f"{nvidia_driver() or 'unknown'}; {built}")
        version = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        yield Check("NCCL", Status.FOUND, version)
        return
    if nvidia_driver() is None:
        yield Check("GPU", Status.SKIPPED, "none")
    else:
        yield Check("GPU", Status.FAILED, why_no_gpu())


def links(world: World) -> Iterator[Check]:
    """Whether the GPUs of this host reach each other's memory."""
    seen = torch.cuda.device_count() if world.device.type == "cuda" else 0
    if seen < 2:
        yield Check("links between GPUs", Status.SKIPPED, "fewer than two GPUs are visible")
        return
    pairs = [(a, b) for a in range(seen) for b in range(seen) if a != b]
    reached = sum(torch.cuda.can_device_access_peer(a, b) for a, b in pairs)
    if reached == len(pairs):
        yield Check("links between GPUs", Status.PASSED, f"all {len(pairs)} pairs of {seen} GPUs are peers")
    else:
        yield Check(
            "links between GPUs",
            Status.WARNING,
            f"{reached} of {len(pairs)} pairs of GPUs are peers: gradients travel through host memory",
            "see `nvidia-smi topo -m`; on SLURM ask with --gpus-per-node: --gpus-per-task can hide peers",
        )


def cores() -> Iterator[Check]:
    """Cores and threads of this process, against its neighbours' on this host."""
    available = len(os.sched_getaffinity(0))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = torch.get_num_threads()
    share = f"{count(threads, 'thread')} a rank, {count(ranks, 'rank')} on this host"
    value = f"{environment.cpu_name()}: {count(available, 'core')}, {share}"
    if threads * ranks > available:
        fair = max(1, available // ranks)
        yield Check("cores", Status.WARNING, value, f"set OMP_NUM_THREADS={fair}")
    else:
        yield Check("cores", Status.FOUND, value)


def shared_memory() -> Iterator[Check]:
    """What is left of /dev/shm, through which NCCL's ranks on a host speak."""
    place = Path("/dev/shm")
    if not place.is_dir():
        yield Check("shared memory", Status.SKIPPED, "there is no /dev/shm")
        return
    free = shutil.disk_usage(place).free
    value = f"{free / 2**20:.0f} MiB free"
    if free < SHARED_MEMORY:
        yield Check(
            "shared memory", Status.WARNING, value, "start the container with --shm-size=1g or --ipc=host"
        )
    else:
        yield Check("shared memory", Status.PASSED, value)


def disk(folder: Path, rank: int) -> Iterator[Check]:
    """Whether the folder of the runs can be written, flushed and has room."""
    probe = folder / f"disk-{rank}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room" if full else "choose another place with --dir"
        yield Check("disk", Status.FAILED, f"{folder.parent}: cannot be written: {error.strerror}", remedy)
        return
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    value = f"{folder.parent}: {free / 2**30:.1f} GiB free"
    if free < DISK:
        yield Check(
            "disk", Status.WARNING, value, "a run of ResNet-18 needs 2 GiB: make room, or set run_dir"
        )
    else:
        yield Check("disk", Status.PASSED, value)


def locks(folder: Path, rank: int) -> Iterator[Check]:
    """Whether a lock in the folder of the runs keeps another process out."""
    path = folder / f"lock-{rank}"
    remedy = "put run_dir on a file system that locks (NFS: mount without nolock; Lustre: with flock)"
    try:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other = subprocess.run([sys.executable, "-c", _TAKE_LOCK, str(path)], check=False, timeout=60)
    except OSError as error:
        yield Check("locks", Status.FAILED, f"{folder.parent}: cannot lock: {error.strerror}", remedy)
        return
    if other.returncode == 3:
        yield Check("locks", Status.PASSED, "one process at a time has a run folder")
    else:
        yield Check("locks", Status.FAILED, f"{folder.parent}: two processes hold one lock", remedy)


def libraries() -> Iterator[Check]:
    """What ferdist cannot do without, and what some of its commands need."""
    system = "`scripts/system-packages` of a checkout installs what it needs"
    for module, status, purpose, remedy in (
        ("cv2", Status.FAILED, "FFCV and the face detector need it", system),
        ("ffcv", Status.FAILED, "betons are read and written by it", system),
        ("h5py", Status.FAILED, "CK_data.h5 is read by it", "pip install h5py"),
        (
            "onnxruntime",
            Status.WARNING,
            "`ferdist export` checks its graphs with it",
            "pip install onnxruntime",
        ),
    ):
        try:
            # FFCV sets torch's threads to one where it is imported: ferdist's own package puts them back.
            importlib.import_module("ferdist.data.beton" if module == "ffcv" else module)
            yield Check(module, Status.PASSED, _version(module))
        except (ImportError, OSError) as error:
            reason = str(error).splitlines()[0]
            yield Check(module, status, f"cannot be imported: {reason}; {purpose}", remedy)


def fonts() -> Iterator[Check]:
    """The font of the report's charts."""
    from matplotlib import font_manager

    try:
        font_manager.findfont("DejaVu Sans", fallback_to_default=False)
        yield Check("fonts", Status.PASSED, "DejaVu Sans")
    except ValueError:
        yield Check(
            "fonts", Status.WARNING, "DejaVu Sans is missing: charts get another font", "reinstall matplotlib"
        )


def _version(module: str) -> str:
    names = importlib.metadata.packages_distributions().get(module, [module])
    return importlib.metadata.version(names[0])
