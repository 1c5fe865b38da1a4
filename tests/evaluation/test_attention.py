"""Where a network looks: against networks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ferdist.data.synthetic import synthesize
from ferdist.errors import RunError
from ferdist.evaluation.attention import CELLS, choose_faces, enlarge, heat, look, watch
from ferdist.evaluation.benchmark import Benchmark, covered_fraction
from ferdist.models import Task, build_model
from ferdist.models.config import ModelConfig


class Light(nn.Module):
    """Class 0 for light in one part of the image, class 1 for another part; both in cells of 4 pixels."""

    def __init__(self, first: tuple[slice, slice], second: tuple[slice, slice]) -> None:
        super().__init__()
        self.pool = nn.Conv2d(1, 2, 4, stride=4, bias=False)
        nn.init.constant_(self.pool.weight, 1 / 16)
        self.parts = first, second

    def forward(self, x: Tensor) -> Tensor:
        cells = self.pool(x)
        return torch.stack([cells[:, k, *part].sum((1, 2)) for k, part in enumerate(self.parts)], 1)


UPPER, LOWER, ALL = slice(None, 2), slice(2, None), slice(None)


def test_grad_cam_lies_where_the_evidence_is() -> None:
    images = np.zeros((2, 1, 16, 16), dtype=np.uint8)
    images[0, :, :8] = images[1, :, 8:] = 255  # half of the light does not count
    looks = look(Light((UPPER, UPPER), (LOWER, LOWER)).eval(), images, [0.0], [1.0])
    assert looks.probabilities.argmax(1).tolist() == [0, 1]
    quarter = np.zeros((2, 4, 4))
    quarter[0, :2, :2] = quarter[1, 2:, 2:] = 1
    np.testing.assert_array_equal(looks.evidence, quarter)
    assert looks.gates == {}
    large = enlarge(looks.evidence, 16, 16)
    assert large.shape == (2, 16, 16)
    assert large[0].argmax() == 0


@pytest.mark.parametrize("stem", ["stride2", "stride1"])
def test_cbam_gates_are_those_of_the_last_block_of_each_size(stem: str) -> None:
    torch.manual_seed(0)
    network = build_model(ModelConfig(name="resnet18_cbam", stem=stem, width=8), Task(1, 48, 48, 7)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 48, 48), dtype=np.uint8)
    gates = []
    hook = network.layer4[1].attention.spatial.register_forward_hook(lambda *parts: gates.append(parts[2]))
    looks = look(network, images, [0.5], [0.25])
    hook.remove()
    sizes = [size[0] for size in looks.gates]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 4
    np.testing.assert_array_equal(looks.gates[(sizes[-1], sizes[-1])], gates[0][:, 0].detach().numpy())
    assert all(0 < gate.min() <= gate.max() < 2 for gate in looks.gates.values())
    np.testing.assert_allclose(looks.probabilities.sum(1), 1, rtol=1e-5)
    assert looks.evidence.shape == (3, 12, 12), "the last features that are fine enough, with either stem"
    assert 0 <= looks.evidence.min() <= looks.evidence.max() == 1
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("aprnet50", "layer2"),
        ("vgg16", None),
        ("mianet", None),
        ("timm:resnet50", "layer1"),
        ("timm:vit_tiny_patch16_224", ""),
        ("timm:swin_tiny_patch4_window7_224", ""),
    ],
)
def test_evidence_is_of_whole_blocks(name: str, layer: str | None) -> None:
    """A branch of a block that then grows coarser says nothing about the other; tokens are no picture."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    network = build_model(ModelConfig(name=name), Task(1, 48, 48, 7)).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 48, 48), dtype=np.uint8)
    if layer == "":
        with pytest.raises(RunError, match="no features"):
            look(network, images, [0.5], [0.25])
        return
    seen = []
    if layer:
        network.get_submodule(layer).register_forward_hook(lambda *parts: seen.append(parts[2].shape[2:]))
    evidence = look(network, images, [0.5], [0.25]).evidence
    assert evidence.max() == 1
    assert not seen or evidence.shape[1:] == seen[0]


class Wrapped(nn.Module):
    """A backbone, whose own features are coarse, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        layers = [nn.Conv2d(channels, 4, 3, 2, 1) for channels in (1, 4, 4)]
        self.backbone.first, self.backbone.second, self.backbone.third = layers
        self.backbone.forward = lambda x: layers[2](layers[1](layers[0](x)))
        self.head = nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.backbone(x).mean((2, 3)))
        return scores


@pytest.mark.parametrize(("height", "width"), [(48, 48), (33, 50)])
def test_a_backbone_is_no_block(height: int, width: int) -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (2, 1, height, width), dtype=np.uint8)
    evidence = look(Wrapped().eval(), images, [0.5], [0.25]).evidence
    assert evidence.shape == (2, -(-height // 4), -(-width // 4))


def benchmark(samples: int) -> Benchmark:
    none = np.empty(0, np.int64)
    return Benchmark((128,), np.arange(samples), none, np.empty((0, 1, 48, 48), np.uint8))


def test_evidence_moves_away_from_what_is_covered() -> None:
    images = np.zeros((1, 1, 48, 48), np.uint8)
    images[:, :, 6:24] = 255  # the eyes, rows 10 to 22, are a part of the light
    numbers, label = np.array([5]), np.array([0])
    network = Light((slice(None, 6), ALL), (slice(6, None), ALL)).eval()
    watched = watch(network, images, numbers, label, benchmark(6), [0.0], [1.0])
    assert [one.cell for one in watched] == list(CELLS)
    eyes, mouth = watched[0], watched[1]
    assert eyes.gate_size is None
    assert eyes.gate_inside() is None
    plain, covered = eyes.evidence_inside()[:, 0]
    assert plain > 0.6
    assert covered < plain - 0.2
    assert mouth.evidence_inside()[:, 0].max() < 0.1
    assert eyes.pictures().shape == (1, 4, 48, 48, 3)
    assert (eyes.pictures()[0, 0] == images[0, 0, :, :, None]).all()
    assert (eyes.pictures()[0, 2][10:22] == 0).all(), "the third picture is the covered face"


def test_the_covered_pixels_are_those_that_the_benchmark_covers() -> None:
    faces = synthesize(4, 0).images[:3]
    numbers = np.arange(3)
    torch.manual_seed(0)
    network = build_model(ModelConfig(name="resnet18_cbam", width=8), Task(1, 48, 48, 7)).eval()
    for one in watch(network, faces, numbers, numbers, benchmark(3), [0.5], [0.25]):
        changed = (one.images[0] != one.images[1])[:, 0]
        assert changed.any()
        assert not (changed & ~one.hidden).any()
        assert one.hidden.mean() == pytest.approx(covered_fraction(one.cell), abs=1e-6)
        gate = one.gate_inside()
        assert gate is not None
        assert gate.shape == (2, 3)
        assert one.gate_size == max(one.looks[0].gates)
        assert one.pictures().shape == (3, 6, 48, 48, 3)


def test_heat_is_drawn_over_gray_of_any_number_of_channels() -> None:
    images = np.full((1, 3, 4, 4), 100, np.uint8)
    maps = np.zeros((1, 4, 4), np.float32)
    maps[0, 0, 0] = 7.0
    picture = heat(images, maps)[0].astype(int)
    assert picture.shape == (4, 4, 3)
    assert picture[0, 0, 0] > picture[0, 0, 2], "the most is yellow"
    assert picture[3, 3, 2] > picture[3, 3, 1], "the least is blue"


def test_faces_are_chosen_class_by_class_without_repetition() -> None:
    label = np.array([0] * 50 + [1] * 2 + [2] * 50)
    index = np.arange(5, 102)
    rounds = choose_faces(index, label, rounds=3)
    assert [label[one].tolist() for one in rounds] == [[0, 1, 2], [0, 1, 2], [0, 2]]
    chosen = np.concatenate(rounds)
    assert len(set(chosen)) == len(chosen)
    assert np.isin(chosen, index).all()
    again = choose_faces(index[::-1], label, rounds=3)
    assert all((a == b).all() for a, b in zip(rounds, again, strict=True))
    assert choose_faces(np.array([50]), label, rounds=3) == [50], "one round with one face"


def test_a_network_without_features_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    with pytest.raises(RunError, match="no Grad-CAM"):
        look(network, np.zeros((1, 1, 8, 8), dtype=np.uint8), [0.5], [0.5])
