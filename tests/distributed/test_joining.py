"""How ranks come together: in the right order, on devices that fit, by addresses that lead somewhere."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ferdist.config import Config
from ferdist.data.beton import BetonLoader, open_beton
from ferdist.errors import ConfigError, RunError
from ferdist.runtime import checkpoint, distributed
from ferdist.runtime.checkpoint import TrainingState
from ferdist.runtime.distributed import World, choose_device, join_world
from ferdist.training.engine import COMPILED_STEPS, compiles
from tests.training.test_checkpoint import training_state

GPU = torch.device("cuda", 1)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Four GPUs as torch reports them; what is done with them, in order."""
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set_device", device)))

    def init(backend: str, *, device_id: torch.device, **_: object) -> None:
        calls.append((backend, device_id, torch.are_deterministic_algorithms_enabled()))

    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    torch.use_deterministic_algorithms(False)
    yield calls
    torch.use_deterministic_algorithms(False)


def test_the_device_is_set_and_kernels_are_deterministic_before_the_group_exists(
    gpus: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = dist.HashStore()
    store.set("ferdist/computes/0", "cuda in bf16")
    monkeypatch.setattr(distributed, "_rendezvous", lambda rank, size: store)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with join_world("auto", "auto") as world:
        assert world == World(1, 2, 1, GPU)
    assert gpus == [("set_device", GPU), ("cpu:gloo,cuda:nccl", GPU, True)]


@pytest.mark.parametrize(
    ("others", "refused"),
    [
        (("cpu", "bf16"), "cuda in bf16 on rank 0, 2; cpu in bf16 on rank 1"),
        (("cuda", "fp16"), "cuda in bf16 on rank 0, 2; cuda in fp16 on rank 1"),
        (("cuda", "bf16"), None),
    ],
)
def test_ranks_that_would_compute_differently_all_refuse(
    others: tuple[str, str], refused: str | None
) -> None:
    store, said = dist.HashStore(), {}
    kinds = [("cuda", "bf16"), others, ("cuda", "bf16")]

    def join(rank: int) -> None:
        kind, precision = kinds[rank]
        try:
            distributed._agree(store, World(rank, 3, rank, torch.device(kind)), precision)
            said[rank] = None
        except ConfigError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 3
    assert all((refused in said[rank]) if refused else said[rank] is None for rank in range(3)), said


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error_that_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(distributed, "nvidia_driver", lambda: "470.57.02")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(ConfigError, match=r"driver 470\.57\.02 with CUDA_VISIBLE_DEVICES=7: update the"):
        choose_device("cuda", 0)
    monkeypatch.setattr(distributed, "nvidia_driver", lambda: None)
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    assert choose_device("auto", 0) == torch.device("cpu")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    with pytest.raises(ConfigError, match="SLURM gave this job GPUs, but this host has no NVIDIA driver"):
        choose_device("auto", 0)
    assert choose_device("cpu", 0) == torch.device("cpu")
    with pytest.raises(ConfigError, match="this host has no NVIDIA driver"):
        choose_device("cuda", 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="built without CUDA"):
        choose_device("cuda", 0)


def test_gloo_gets_the_interface_that_other_hosts_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Debian, where a host's own name leads to 127.0.1.1."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "this-host")
    monkeypatch.setattr(socket, "gethostname", lambda: "this-host")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    distributed._name_interface(2)
    assert "GLOO_SOCKET_IFNAME" not in os.environ, "one host: the loopback is right"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    own = {name: distributed._address(name) for _, name in socket.if_nameindex()}
    outward = [name for name, address in own.items() if address and not address.startswith("127.")]
    if not outward:
        pytest.skip("this host has no network")
    distributed._name_interface(4)
    assert os.environ.pop("GLOO_SOCKET_IFNAME") in outward
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.7")
    distributed._name_interface(4)
    assert "GLOO_SOCKET_IFNAME" not in os.environ, "the name leads to the network"


def test_the_reading_thread_chooses_its_gpu(beton_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread starts on GPU 0, whatever the process has chosen."""
    chosen = []

    def set_device(device: torch.device) -> None:
        chosen.append((threading.current_thread() is threading.main_thread(), device))

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    loader = BetonLoader(open_beton(beton_path), batch_size=4, device=torch.device("cpu"))
    loader.device = GPU
    with pytest.raises(RunError, match="thread died"):
        next(loader.batches(np.arange(4)))
    assert chosen == [(False, GPU)]


def test_a_loader_on_the_cpu_pins_no_memory(beton_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host with GPUs that would open a context on one of them."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    loader = BetonLoader(open_beton(beton_path), batch_size=4, device=torch.device("cpu"))
    assert len(list(loader.batches(np.arange(8)))) == 2
    assert pinned == []


def test_a_checkpoint_that_rank_0_has_read_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where another host's file is seen late."""
    path = checkpoint.step_path(tmp_path, 3)
    late = threading.Timer(0.3, checkpoint.save, (path, training_state(3)))
    late.start()
    assert checkpoint.read_soon(lambda: checkpoint.load(path, TrainingState))["step"] == 3
    late.join()
    monkeypatch.setattr(checkpoint, "_SEEN_SECONDS", 0.0)
    with pytest.raises(
        RunError, match=re.escape(f"{tmp_path}/step-00000004.pt: there is no such") + ".*share"
    ):
        checkpoint.read_soon(lambda: checkpoint.load(checkpoint.step_path(tmp_path, 4), TrainingState))


def test_a_thread_writes_whole_checkpoints_or_none(tmp_path: Path) -> None:
    writer = checkpoint.Writer()
    writer.save(tmp_path / "a.pt", {"step": 1})
    writer.save(tmp_path / "a.pt", {"step": 2})
    writer.wait()
    assert checkpoint.load(tmp_path / "a.pt", dict) == {"step": 2}
    (tmp_path / "file").touch()
    writer.save(tmp_path / "file" / "b.pt", {"step": 3})
    with pytest.raises(RunError, match="cannot write the checkpoint"):
        writer.wait()
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "a.pt.sha256", "file"]


def test_long_runs_on_gpus_are_compiled_by_default(tiny: Callable[..., Config]) -> None:
    auto, cpu = tiny("train.compile=auto"), torch.device("cpu")
    assert compiles(auto, GPU, COMPILED_STEPS)
    assert not compiles(auto, GPU, COMPILED_STEPS - 1)
    assert not compiles(auto, cpu, COMPILED_STEPS)
    assert compiles(tiny("train.compile=true"), cpu, 1)
    assert not compiles(tiny("train.compile=false"), GPU, COMPILED_STEPS)
