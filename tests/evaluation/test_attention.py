"""Where a network looks: against networks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ferdist.errors import RunError
from ferdist.evaluation.attention import enlarge, look
from ferdist.models import Task, build_model
from ferdist.models.registry import ModelConfig


class Quadrant(nn.Module):
    """Class 0 for light in the upper left quarter, class 1 for light in the lower right one."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Conv2d(1, 2, 8, stride=8, bias=False)
        nn.init.constant_(self.pool.weight, 1 / 64)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.pool(x)
        return torch.stack([cells[:, 0, 0, 0], cells[:, 1, 1, 1]], 1)


def test_grad_cam_lies_where_the_evidence_is() -> None:
    images = np.zeros((2, 1, 16, 16), dtype=np.uint8)
    images[0, :, :8, :8] = images[1, :, 8:, 8:] = 255
    looks = look(Quadrant().eval(), images, [0.0], [1.0])
    assert looks.probabilities.argmax(1).tolist() == [0, 1]
    assert looks.evidence.tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 1]]]
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
    assert all(0 < gate.min() <= gate.max() < 1 for gate in looks.gates.values())
    np.testing.assert_allclose(looks.probabilities.sum(1), 1, rtol=1e-5)
    assert looks.evidence.shape == (3, 6, 6), "the last features that are fine enough, with either stem"
    assert 0 <= looks.evidence.min() <= looks.evidence.max() == 1
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_without_features_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    with pytest.raises(RunError, match="no Grad-CAM"):
        look(network, np.zeros((1, 1, 8, 8), dtype=np.uint8), [0.5], [0.5])
