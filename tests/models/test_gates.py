"""Attention that attends: gates differ between images, and no weight decay outweighs what is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ferdist.config import TrainConfig
from ferdist.data.synthetic import synthesize
from ferdist.models import ModelConfig, Task, build_model, model_names
from ferdist.training.liveness import DEAD, constant_gates, gate_statistics
from ferdist.training.optim import decayed_parameters, make_optimizer

GRAY = Task(1, 48, 48, 7)
NETWORKS = [name for name in model_names() if ":" not in name]
RATES = {"alexnet": 0.005, "vgg16": 0.01, "aprnet50": 0.01}
SMALL = ModelConfig(width=16, reduction=4)
"""ResNet-18 with CBAM, a quarter as wide, with as many hidden units in its attention as at full width."""


@pytest.fixture(scope="module")
def faces() -> tuple[Tensor, Tensor]:
    """Normalised images (140, 1, 48, 48) and labels of drawn faces."""
    drawn = synthesize(140, seed=1)
    images = torch.from_numpy(drawn.images).float().div(255).sub(0.5).div(0.25)
    return images, torch.from_numpy(drawn.labels).long()


def train(
    network: nn.Module,
    faces: tuple[Tensor, Tensor],
    steps: int,
    config: TrainConfig,
    batch: int = 35,
) -> Iterator[None]:
    """Train, and stop before each update."""
    images, labels = faces
    optimizer = make_optimizer(network, config)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randperm(len(images), generator=draw)[:batch]
        loss = cross_entropy(network(images[chosen]), labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        yield
        optimizer.step()
        optimizer.zero_grad()


def gates_after(
    faces: tuple[Tensor, Tensor], seed: int, model: ModelConfig, config: TrainConfig, steps: int = 30
) -> dict[str, float]:
    """The deviation across images of each gate after a short training."""
    torch.manual_seed(seed)
    network = build_model(model, GRAY)
    for _ in train(network, faces, steps, config):
        pass
    found = gate_statistics(network.eval(), faces[0])
    return {name: value for name, value in found.items() if name.endswith("/sd_images")}


@pytest.mark.parametrize("seed", range(2))
def test_every_gate_differs_between_images(faces: tuple[Tensor, Tensor], seed: int) -> None:
    across = gates_after(faces, seed, SMALL, TrainConfig(lr=0.05))
    assert len(across) == 16
    assert min(across.values()) > DEAD / 2, across


@pytest.mark.parametrize("seed", range(2))
def test_a_high_rate_leaves_the_hidden_units_of_channel_gates_alive(
    faces: tuple[Tensor, Tensor], seed: int
) -> None:
    """Without the norm of the scores, the ReLU of whole MLPs is dead for every image after these steps."""
    across = gates_after(faces, seed, SMALL, TrainConfig(lr=0.1), steps=60)
    channel = [value for name, value in across.items() if ".channel/" in name]
    assert min(channel) > 2 * DEAD, channel


def test_gates_that_start_at_a_sigmoids_end_are_constants(faces: tuple[Tensor, Tensor]) -> None:
    """What the test above is there to catch: the form, the start and the decay of before."""
    former = replace(SMALL, gate="sigmoid")
    across = gates_after(faces, 0, former, TrainConfig(lr=0.05, attention_decay=True))
    channel = [value for name, value in across.items() if ".channel/" in name]
    assert max(channel) < DEAD


LARGE = ("alexnet", "aprnet50", "vgg16")
LATER = {"aprnet50": "layer"}
"""Prefix of tensors whose gradient begins at 0: each of APRNET50's blocks starts as the identity, its last
norm's weight being 0. Until that has grown they are decayed, which the batch norm after each cancels."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in NETWORKS]
)
def test_no_decay_outweighs_the_gradient(name: str, faces: tuple[Tensor, Tensor]) -> None:
    """Over the first 20 steps, of each tensor that is decayed: the mean norm of its gradient is no less."""
    torch.manual_seed(0)
    network = build_model(replace(SMALL, name=name), GRAY)
    config = TrainConfig(lr=RATES.get(name, 0.05))
    names = {id(p): key for key, p in network.named_parameters()}
    watched = {names[id(p)]: p for p in decayed_parameters(network, config)}
    watched = {key: p for key, p in watched.items() if not key.startswith(LATER.get(name, "-"))}
    norms = dict.fromkeys(watched, 0.0)
    for _ in train(network, faces, 20, config, batch=14):
        for key, parameter in watched.items():
            assert parameter.grad is not None, key
            norms[key] += parameter.grad.norm().item() / 20
    weak = {
        key: round(norms[key] / (config.weight_decay * parameter.norm().item()), 3)
        for key, parameter in watched.items()
        if norms[key] < config.weight_decay * parameter.norm().item()
    }
    assert weak == {}, "gradient over decay"


def test_statistics_of_gates() -> None:
    network = build_model(SMALL, GRAY).eval()
    images = torch.randn(5, 1, 48, 48)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, gate: seen.update({name: gate})

    network.layer2[1].attention.channel.gate.register_forward_hook(keep("layer2.1.channel"))
    network.layer2[1].attention.spatial.gate.register_forward_hook(keep("layer2.1.spatial"))
    found = gate_statistics(network, images)
    assert len(found) == 8 * 2 * 3
    for name, gate in seen.items():
        flat = gate.flatten(1)
        assert found[f"gate/{name}/mean"] == pytest.approx(flat.mean().item())
        assert found[f"gate/{name}/sd_places"] == pytest.approx(flat.mean(0).std().item(), rel=1e-4)
        assert found[f"gate/{name}/sd_images"] == pytest.approx(flat.std(0).mean().item(), rel=1e-4)
    assert gate_statistics(build_model(replace(SMALL, name="resnet18"), GRAY).eval(), images) == {}
    assert len(gate_statistics(build_model(replace(SMALL, name="mianet"), GRAY).eval(), images)) == 9 * 3


def test_constant_gates_are_those_over_channels() -> None:
    across = {"a.channel": 0.001, "b.channel": 0.1, "c.spatial": 0.0}
    numbers = {f"gate/{name}/sd_images": value for name, value in across.items()} | {"val/loss": 0.0}
    for name in across:
        numbers |= {f"gate/{name}/mean": 0.9, f"gate/{name}/sd_places": 0.0}
    assert constant_gates(numbers) == (["a.channel"], 2)
