"""What every network must do, and what each one is."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ferdist.data.synthetic import synthesize
from ferdist.errors import ConfigError
from ferdist.models import (
    ModelConfig,
    Task,
    build_model,
    check_resolution,
    is_reconstruction,
    model_names,
    multiply_adds,
    parameter_count,
)
from ferdist.models.aprnet import PyramidAttention, PyramidBottleneck
from ferdist.models.mianet import ECA, AttentiveInception

GRAY = Task(1, 48, 48, 7)

COSTS = {
    "alexnet": (57_010_887, 146_100_224),
    "aprnet50": (20_518_226, 639_164_800),
    "kernel_cnn": (1_344_263, 417_562_624),
    "kernel_cnn2": (2_091_911, 291_497_984),
    "mianet": (2_672_212, 89_948_640),
    "resnet18": (11_171_271, 311_762_432),
    "resnet18_cbam": (11_264_991, 312_086_452),
    "vgg16": (14_725_575, 702_041_600),
}
"""Parameters and multiply-adds for a gray image of 48x48 pixels and 7 classes, stem stride2."""

PUBLISHED = [
    # torchvision's AlexNet
    ("alexnet", "imagenet", Task(3, 224, 224, 1000), 61_100_840),
    # VGG-16 with batch norm and one linear layer, as public code for 32 pixels has it
    ("vgg16", "stride2", Task(3, 32, 32, 7), 14_726_727),
    # EPSANet-50
    ("aprnet50", "imagenet", Task(3, 224, 224, 1000), 22_561_715),
]

RECONSTRUCTIONS = {"aprnet50", "kernel_cnn", "kernel_cnn2", "mianet"}


def build(name: str, task: Task = GRAY, seed: int = 0, **settings: object) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(ModelConfig(name=name, **settings), task)  # type: ignore[arg-type]


def test_the_table_of_costs_has_every_network() -> None:
    assert [name for name in model_names() if ":" not in name] == sorted(COSTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COSTS))
def test_a_graph_of_it_takes_any_number_of_images(name: str) -> None:
    network = build(name).eval()
    images = torch.rand(3, 1, 48, 48)
    graph = torch.export.export(network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(graph.module()(images), network(images))


@pytest.mark.parametrize("name", COSTS)
def test_parameters_and_multiply_adds(name: str) -> None:
    network = build(name)
    assert (parameter_count(network), multiply_adds(network, GRAY)) == COSTS[name]
    assert network.training


@pytest.mark.parametrize("name", COSTS)
def test_colour_and_larger_images(name: str) -> None:
    """Larger images cost as many parameters, and colour some in the first layers."""
    for channels, side in product((1, 3), (112, 224)):
        with torch.device("meta"):
            network = build(name, Task(channels, side, side, 8)).eval()
            assert network(torch.empty(2, channels, side, side)).shape == (2, 8)
        more = parameter_count(network) - COSTS[name][0]
        assert 0 < more < 0.1 * COSTS[name][0]


@pytest.mark.parametrize(("name", "stem", "task", "parameters"), PUBLISHED, ids=str)
def test_published_parameter_counts(name: str, stem: str, task: Task, parameters: int) -> None:
    assert parameter_count(build(name, task, stem=stem)) == parameters


@pytest.mark.parametrize("name", COSTS)
def test_reconstructions_are_called_so(name: str) -> None:
    assert is_reconstruction(name) == (name in RECONSTRUCTIONS)


def test_multiply_adds_of_a_layer_are_those_of_paper_and_pencil() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 6 * 5, 7))
    assert multiply_adds(network, Task(1, 6, 5, 7)) == 6 * 5 * 9 * 4 + 4 * 6 * 5 * 7


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", COSTS)
def test_logits_for_images_of_several_sizes(name: str, channels: int) -> None:
    for height, width, classes in ((48, 48, 7), (64, 48, 8), (96, 96, 3)):
        network = build(name, Task(channels, height, width, classes)).eval()
        with torch.no_grad():
            assert network(torch.zeros(2, channels, height, width)).shape == (2, classes)


@pytest.mark.parametrize("name", COSTS)
def test_training_on_smaller_images_than_the_datas(name: str) -> None:
    """As train.resolution does: the weights depend on the size of no image."""
    network = build(name)
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, 7)


def one_step(network: nn.Module) -> Tensor:
    images = torch.randn(4, 1, 48, 48).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    loss = cross_entropy(logits.float(), torch.arange(4))
    loss.backward()
    return loss


@pytest.mark.parametrize("name", COSTS)
def test_a_step_in_bf16_reaches_every_parameter(name: str) -> None:
    network = build(name).to(memory_format=torch.channels_last)
    assert math.isfinite(one_step(network).item())
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", COSTS)
def test_a_seed_gives_the_same_weights_and_another_gives_others(name: str) -> None:
    first, again, other = (build(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


LEARNING_RATES = {"alexnet": 0.003, "vgg16": 0.01, "aprnet50": 0.01, "resnet18_cbam": 0.02}
STEPS = {"alexnet": 60}  # no batch norm, and a tenth of the rate


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTS)
def test_it_learns_drawn_faces(name: str) -> None:
    """The loss of a few faces falls within a few steps: the initialisation lets the signal through."""
    faces = synthesize(28, seed=1)
    images = torch.from_numpy(faces.images).float().div(255).sub(0.5).div(0.25)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(faces.labels).long()
    stem = "stride1" if name == "alexnet" else "stride2"
    network = build(name, stem=stem).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATES.get(name, 0.05), 0.9, nesterov=True)
    losses = []
    for _ in range(STEPS.get(name, 30)):
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        loss = cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.6 * math.log(7), losses


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [PyramidBottleneck(256, 64), AttentiveInception(256, 64, 96, 128, 16, 32, 32)],
    ids=["aprnet50", "mianet"],
)
def test_a_compiled_block_is_the_same_function(block: nn.Module) -> None:
    block.eval()
    images = torch.randn(2, 256, 6, 6)
    compiled = torch.compile(block, fullgraph=True, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), block(images), rtol=1e-3, atol=1e-4)


def test_an_image_that_is_too_small_is_refused_with_the_limit() -> None:
    for name, side in (("vgg16", 32), ("alexnet", 29), ("mianet", 16)):
        network = build(name, Task(1, side, side, 7))
        assert network(torch.rand(2, 1, side, side)).shape == (2, 7)
        with pytest.raises(ConfigError, match=f"takes images of {side}x{side} pixels and larger"):
            build(name, Task(1, side, side - 1, 7))
    with pytest.raises(ConfigError, match=r"model.stem is 'imagenet', .* 63x63 .* use stride1 or stride2"):
        build("alexnet", stem="imagenet")
    assert build("alexnet", Task(1, 63, 63, 7), stem="imagenet")(torch.rand(1, 1, 63, 63)).shape == (1, 7)


def test_a_resolution_that_is_too_small_is_refused_with_the_limit() -> None:
    network, config = build("vgg16"), ModelConfig(name="vgg16")
    check_resolution(network, config, GRAY, [1.0, 0.667])
    with pytest.raises(ConfigError, match=r"resolution has a share of 0.5 .* 32x32 pixels .* not 24x24"):
        check_resolution(network, config, GRAY, [1.0, 0.5])


def test_eca_agrees_with_timms() -> None:
    from timm.layers.eca import EcaModule

    for channels in (256, 480, 1024):
        ours, theirs = ECA(channels), EcaModule(channels)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(2, channels, 5, 4)
        torch.testing.assert_close(ours(x), theirs(x))


def test_pyramid_attention_weighs_the_scales_against_each_other() -> None:
    attention = PyramidAttention(64, stride=2)
    x = torch.randn(2, 64, 12, 12)
    plain = torch.cat([conv(x) for conv in attention.convs], 1)
    nn.init.zeros_(attention.excite.weight)
    nn.init.zeros_(attention.excite.bias)
    torch.testing.assert_close(attention(x), plain / 4)  # equal gates: a quarter each
    nn.init.normal_(attention.excite.weight)
    weights = (attention(x) / plain).unflatten(1, (4, 16))
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 16, 6, 6), rtol=1e-3, atol=1e-3)
