"""Ranks, devices and the few collectives that training and evaluation need."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ferdist.errors import ConfigError, RunError
from ferdist.runtime.precision import autocast_dtype, configure_kernels, precision_name

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
ANSWER_TIMEOUT = timedelta(seconds=1)
_LAST_WORDS_SECONDS = 10.0
_SIOCGIFADDR = 0x8915
"""Linux's request for the address of a network interface, netdevice(7)."""


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Attributes:
        rank: 0 to size - 1; rank 0 writes the files.
        size: number of processes (world size).
        local_rank: rank on this host.
        device: where this rank computes.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            # A tensor on the CPU goes through gloo, which needs no device to be chosen.
            dist.all_reduce(torch.zeros(1))

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any rank: the same answer on all of them."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def from_main(self, number: int) -> int:
        """Rank 0's number, on every rank."""
        if self.size == 1:
            return number
        shared = torch.tensor([number])
        dist.broadcast(shared, src=0)
        return int(shared.item())

    def share_from_main(self, module: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0's copy: one broadcast for each type."""
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in module.state_dict().values():
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for tensors in by_dtype.values():
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.broadcast(flat, src=0)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def gather(self, value: T) -> list[T]:
        """Each rank's value, a plain one, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Concatenate each rank's rows (counts[rank], ...), on the CPU, in rank order, on every rank."""
        assert len(rows) == counts[self.rank], "a rank evaluated another number of samples than it was given"
        if self.size == 1:
            return rows
        padded = torch.zeros((max(counts), *rows.shape[1:]), dtype=rows.dtype)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device that `device` in the config names, for this local rank.

    ``auto`` is a GPU where there is one, else the CPU; but never the CPU in a SLURM job that was given GPUs.

    Raises:
        ConfigError: if it is none of the three, or a GPU and there is none for this rank.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {name!r}: it must be auto, cpu or cuda")
    available = torch.cuda.is_available()
    given = os.environ.get("SLURM_GPUS_ON_NODE", "0") != "0"
    if name == "cpu" or (name == "auto" and not available and not given):
        return torch.device("cpu")
    if not available:
        wanted = "device is cuda" if name == "cuda" else "SLURM gave this job GPUs"
        raise ConfigError(f"{wanted}, but {why_no_gpu()}, or use device=cpu")
    seen = torch.cuda.device_count()
    if seen == 1 and os.environ.get("SLURM_LOCALID") == str(local_rank):
        return torch.device("cuda", 0)  # SLURM may show each of its tasks its own GPU alone
    if local_rank >= seen:
        raise ConfigError(
            f"local rank {local_rank} has no GPU: this process sees {seen} of this host's; "
            "start at most that many processes on it"
        )
    return torch.device("cuda", local_rank)


def why_no_gpu() -> str:
    """Why PyTorch finds no CUDA device on this host, and what to do."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA: install one that is built for it"
    driver = nvidia_driver()
    if driver is None:
        return "this host has no NVIDIA driver: start on a host with a GPU"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cause = "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible}"
    return (
        f"PyTorch for CUDA {torch.version.cuda} finds no device under driver {driver}{cause}: "
        "update the driver or install PyTorch for an older CUDA, check CUDA_VISIBLE_DEVICES"
    )


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver, None where there is none."""
    path = Path("/proc/driver/nvidia/version")
    if not path.exists():
        return None
    return next((word for word in path.read_text().split() if re.fullmatch(r"\d+(\.\d+)+", word)), "unknown")


@contextmanager
def join_world(device: str, precision: str = "auto", *, deterministic: bool = True) -> Iterator[World]:
    """Join the processes that torchrun (or anything that sets its variables) started; leave at the end.

    After an exception the process has to end: see ``ferdist.cli.leave``.

    Without RANK and WORLD_SIZE in the environment this is one process on its own.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``train.precision``.
        deterministic: ``train.deterministic``.

    Raises:
        ConfigError: if this rank lacks the device or the precision, or another one would compute otherwise.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    world = World(rank, size, local_rank, choose_device(device, local_rank))
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    # Before the group exists: only then does PyTorch keep NCCL from NVLS, whose sums vary from run to run.
    configure_kernels(deterministic, precision)
    if size == 1:
        yield world
        return
    _name_interface(size)
    store = _rendezvous(rank, size)
    _agree(store, world, precision_name(autocast_dtype(precision, world.device)))
    on_gpu = world.device.type == "cuda"
    dist.init_process_group(
        # Both at once: gradients travel over nccl, small host-side values (votes, predictions) over gloo.
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=world.device if on_gpu else None,  # nccl connects now: a broken link shows here
    )
    yield world
    # Only where all went well: nccl would wait here for peers that are still in a collective.
    dist.destroy_process_group()


def _name_interface(size: int) -> None:
    """Name gloo's network interface where the name of this host leads back to it (Debian: 127.0.1.1).

    gloo would tell the other hosts to connect to that address.
    """
    hosts = int(os.environ.get("SLURM_NNODES", "1"))
    if (hosts == 1 and int(os.environ.get("LOCAL_WORLD_SIZE", size)) == size) or (
        "GLOO_SOCKET_IFNAME" in os.environ
    ):
        return
    with suppress(OSError):  # what cannot be found out stays as it is
        if not socket.gethostbyname(socket.gethostname()).startswith("127."):
            return
        main = socket.gethostbyname(os.environ["MASTER_ADDR"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Sends nothing, but chooses a way: to rank 0 or, on its own host, to anywhere (RFC 5737).
            probe.connect(("192.0.2.1" if main.startswith("127.") else main, 9))
            own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            if _address(name) == own:
                os.environ["GLOO_SOCKET_IFNAME"] = name


def _address(interface: str) -> str | None:
    """The IPv4 address of a network interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, suppress(OSError):
        answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        return socket.inet_ntoa(answer[20:24])
    return None


def _agree(store: Store, world: World, precision: str) -> None:
    """Compare what the ranks compute on, before any of them waits for the others in a collective.

    Gradients of fp16 are scaled and those of bf16 are not; a rank on a CPU takes no part in nccl's sums.

    Raises:
        ConfigError: on every rank, if they differ.
    """
    store.set(f"ferdist/computes/{world.rank}", f"{world.device.type} in {precision}")
    kinds = [store.get(f"ferdist/computes/{rank}").decode() for rank in range(world.size)]
    if len(set(kinds)) == 1:
        return
    heard = store.add("ferdist/heard", 1)
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    while world.is_main and heard < world.size and time.monotonic() < deadline:
        time.sleep(0.05)  # the store may be in this process: the others have to read it first
        heard = store.add("ferdist/heard", 0)
    found = "; ".join(
        f"{kind} on rank {', '.join(str(r) for r, other in enumerate(kinds) if other == kind)}"
        for kind in dict.fromkeys(kinds)
    )
    raise ConfigError(
        f"the ranks would compute differently ({found}): set device and train.precision to what all of them "
        "have, or leave out the hosts that differ"
    )


def _rendezvous(rank: int, size: int) -> Store:
    """Where the ranks find each other: under torchrun a part of its store that is this attempt's own.

    torchrun keeps its store when it restarts the workers, and the addresses in it lead to the dead ones.
    TORCHELASTIC_RESTART_COUNT does not tell the attempts apart, it differs between hosts. So rank 0 names
    the attempt, and each other rank takes a name only from a rank 0 that answers.
    """
    store: Store
    store, _, _ = next(rendezvous("env://", rank, size, timeout=COLLECTIVE_TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("ferdist/attempt", own)
        for other in range(1, size):
            caller = store.get(f"{own}/{other}").decode()
            store.set(f"{own}/{caller}", "")
        return PrefixStore(own, store)
    for _ in range(int(COLLECTIVE_TIMEOUT / ANSWER_TIMEOUT)):
        attempt = store.get("ferdist/attempt").decode()
        store.set(f"{attempt}/{rank}", own)
        with suppress(dist.DistStoreError):  # no answer: an earlier attempt's name
            store.wait([f"{attempt}/{own}"], ANSWER_TIMEOUT)
            return PrefixStore(attempt, store)
    raise RunError(f"rank {rank} found no rank 0 within {COLLECTIVE_TIMEOUT}: see rank 0's message")
