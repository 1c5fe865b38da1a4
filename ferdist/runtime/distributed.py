"""Ranks, devices and the few collectives that training and evaluation need."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ferdist.errors import ConfigError, RunError

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
ANSWER_TIMEOUT = timedelta(seconds=1)


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
        """Give every rank the parameters and buffers of rank 0's copy."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

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

    Raises:
        ConfigError: if it is none of the three, or ``cuda`` and there is none for this rank.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {name!r}: it must be auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and not available):
        return torch.device("cpu")
    if not available:
        raise ConfigError("device is cuda, but PyTorch finds no CUDA device: use device=cpu or device=auto")
    seen = torch.cuda.device_count()
    if seen == 1 and os.environ.get("SLURM_LOCALID") == str(local_rank):
        return torch.device("cuda", 0)  # SLURM may show each of its tasks its own GPU alone
    if local_rank >= seen:
        raise ConfigError(
            f"local rank {local_rank} has no GPU: this process sees {seen} of this host's; "
            "start at most that many processes on it"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes that torchrun (or anything that sets its variables) started; leave at the end.

    After an exception the process has to end: see ``ferdist.cli.leave``.

    Without RANK and WORLD_SIZE in the environment this is one process on its own.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    world = World(rank, size, local_rank, choose_device(device, local_rank))
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if size == 1:
        yield world
        return
    # Both at once: gradients travel over nccl, small host-side values (votes, predictions) over gloo.
    backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=_attempt_store(rank, size), rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT
    )
    yield world
    # Only where all went well: nccl would wait here for peers that are still in a collective.
    dist.destroy_process_group()


def _attempt_store(rank: int, size: int) -> Store | None:
    """Where the ranks find each other: under torchrun a part of its store that is this attempt's own.

    torchrun keeps its store when it restarts the workers, and the addresses in it lead to the dead ones.
    TORCHELASTIC_RESTART_COUNT does not tell the attempts apart, it differs between hosts. So rank 0 names
    the attempt, and each other rank takes a name only from a rank 0 that answers.

    Returns:
        None where there is no torchrun: then torch's own way is right.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store, _, _ = next(rendezvous("env://", rank, size, timeout=COLLECTIVE_TIMEOUT))
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
