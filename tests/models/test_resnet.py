from __future__ import annotations

import pytest
import torch

from ferdist.errors import ConfigError
from ferdist.models import ModelConfig, Task, build_model, parameter_count
from ferdist.models.cbam import CBAM, ChannelAttention, MeanAndMax, SpatialAttention


@pytest.mark.parametrize(
    ("name", "stem", "channels", "classes", "parameters"),
    [
        ("resnet18_cbam", "imagenet", 3, 1000, 11_779_392),
        ("resnet18_cbam", "imagenet", 3, 7, 11_269_983),
        ("resnet18_cbam", "stride2", 3, 7, 11_262_303),
        ("resnet18_cbam", "stride1", 1, 7, 11_261_151),
        ("resnet18", "stride1", 3, 7, 11_262_303 - 89_880),
        ("resnet18", "imagenet", 3, 1000, 11_689_512),
    ],
)
@pytest.mark.parametrize("placement", ["after", "inside"])
def test_parameter_counts(
    name: str, stem: str, channels: int, classes: int, parameters: int, placement: str
) -> None:
    config = ModelConfig(name=name, stem=stem, placement=placement, gate="sigmoid")
    assert parameter_count(build_model(config, Task(channels, 48, 48, classes))) == parameters


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 12), ("stride2", 24), ("stride1", 48)])
def test_a_stem_sets_the_resolution_of_the_first_stage(stem: str, side: int) -> None:
    network = build_model(ModelConfig(stem=stem), Task(1, 48, 48, 7)).eval()
    seen: list[torch.Size] = []
    network.layer1.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    assert network(torch.zeros(2, 1, 48, 48)).shape == (2, 7)
    assert seen == [torch.Size((2, 64, side, side))]


def test_identity_start_passes_the_signal_and_the_default_does_not() -> None:
    """In the network as it is built, every gate of every block."""
    torch.manual_seed(0)
    x = torch.randn(4, 1, 48, 48)
    for gate, gate_init, low, high in (
        ("unit", "identity", 0.9, 1.1),
        ("sigmoid", "identity", 0.9, 1.0),
        ("sigmoid", "default", 0.4, 0.6),
    ):
        gates: list[float] = []
        network = build_model(ModelConfig(gate=gate, gate_init=gate_init), Task(1, 48, 48, 7))
        for layer in network.modules():
            if isinstance(layer, ChannelAttention | SpatialAttention):
                layer.register_forward_hook(lambda _m, _i, out, seen=gates: seen.append(out.mean().item()))
        network(x)
        assert len(gates) == 16
        assert all(low < gate < high for gate in gates), gates


def test_cbam_follows_the_published_definition() -> None:
    """Against timm's independent CBAM with the same weights: the ``sigmoid`` form is the paper's."""
    from timm.layers.cbam import CbamModule

    torch.manual_seed(0)
    ours = CBAM(64, 16, "sigmoid").eval()
    theirs = CbamModule(64, rd_ratio=1 / 16, spatial_kernel_size=7, mlp_bias=True).eval()
    ours.spatial.norm.running_mean.fill_(0.1)
    ours.spatial.norm.running_var.fill_(2.0)
    state = theirs.state_dict()
    own = {
        "channel.fc1.weight": ours.channel.squeeze.weight[:, :, None, None],
        "channel.fc1.bias": ours.channel.squeeze.bias,
        "channel.fc2.weight": ours.channel.excite.weight[:, :, None, None],
        "channel.fc2.bias": ours.channel.excite.bias,
        "spatial.conv.conv.weight": ours.spatial.conv.weight.flip(1)
        if _max_comes_first(theirs)
        else ours.spatial.conv.weight,
        "spatial.conv.bn.weight": ours.spatial.norm.weight,
        "spatial.conv.bn.bias": ours.spatial.norm.bias,
        "spatial.conv.bn.running_mean": ours.spatial.norm.running_mean,
        "spatial.conv.bn.running_var": ours.spatial.norm.running_var,
    }
    theirs.load_state_dict(own, strict=False)
    assert {k for k in state if "num_batches" not in k} == set(own)
    x = torch.randn(2, 64, 9, 9)
    torch.testing.assert_close(ours(x), theirs(x))


def _max_comes_first(module: torch.nn.Module) -> bool:
    """timm stacks the mean first or the maximum first, by version."""
    x = torch.zeros(1, 64, 9, 9)
    x[:, 0] = 64.0  # the mean over channels is 1, the maximum 64
    seen: list[torch.Tensor] = []
    module.spatial.conv.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    module.spatial(x)
    return bool(seen[0][0, 0, 0, 0] > seen[0][0, 1, 0, 0])


def test_placement_after_gates_the_identity_and_inside_does_not() -> None:
    for placement, gated in (("after", True), ("inside", False)):
        network = build_model(ModelConfig(placement=placement), Task(1, 48, 48, 7)).eval()
        block = network.layer1[0]
        torch.nn.init.zeros_(block.bn2.weight)
        torch.nn.init.zeros_(block.bn2.bias)
        x = torch.rand(1, 64, 24, 24)
        assert torch.equal(block(x), x) != gated


def test_dropout_acts_in_training_only() -> None:
    network = build_model(ModelConfig(dropout=0.5), Task(1, 48, 48, 7))
    x = torch.rand(2, 1, 48, 48)
    network.eval()
    assert torch.equal(network(x), network(x))
    for layer in network.modules():
        layer.train(isinstance(layer, torch.nn.Dropout))
    assert not torch.equal(network(x), network(x))


def test_an_unknown_network_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet18_cbam'"):
        build_model(ModelConfig(name="resnet18_cbma"), Task(1, 48, 48, 7))
    with pytest.raises(ConfigError, match=r"there are alexnet, aprnet50, .*kernel_cnn, .* vgg16"):
        build_model(ModelConfig(name="transformer"), Task(1, 48, 48, 7))


@pytest.mark.parametrize("dims", [(1,), (2, 3)])
def test_the_pooled_gradient_is_that_of_autograds_own_pieces(dims: tuple[int, ...]) -> None:
    """With ties, which share the maximum's gradient, and in the memory format of the features."""
    torch.manual_seed(0)
    values = torch.randint(-3, 3, (2, 5, 4, 6)).double().contiguous(memory_format=torch.channels_last)
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    mean, peak = MeanAndMax.apply(ours, dims)
    expected = theirs.mean(dims, True), theirs.amax(dims, True)
    for got, want in zip((mean, peak), expected, strict=True):
        assert torch.equal(got, want)
    scale = torch.randn_like(mean)
    (mean * scale + peak * scale.square()).sum().backward()
    (expected[0] * scale + expected[1] * scale.square()).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert ours.grad.is_contiguous(memory_format=torch.channels_last)


def test_a_wider_network_has_more_channels_in_every_stage_and_the_stem() -> None:
    network = build_model(ModelConfig(width=24), Task(1, 48, 48, 7)).eval()
    stages = [getattr(network, f"layer{number}")[1].conv2.out_channels for number in range(1, 5)]
    assert (network.conv1.out_channels, stages, network.fc.in_features) == (24, [24, 48, 96, 192], 192)
    assert network(torch.zeros(2, 1, 48, 48)).shape == (2, 7)
    assert network.layer1[0].downsample is None


@pytest.mark.slow
def test_a_compiled_attention_is_the_same_function() -> None:
    torch.manual_seed(0)
    attention = CBAM(8, 4).double().train()  # in float32 the order of sums alone makes a difference
    x = torch.randn(16, 8, 6, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    results = []
    for call in (attention, torch.compile(attention, fullgraph=True, dynamic=False)):
        inputs = x.clone().requires_grad_()
        attention.zero_grad()
        out = call(inputs)
        out.square().sum().backward()
        weight = attention.channel.squeeze.weight.grad
        assert inputs.grad is not None
        assert weight is not None
        results.append((out.detach(), inputs.grad, weight.clone()))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
