"""APRNET50, a ResNet-50 with pyramid attention: a reconstruction.

Known of it: a ResNet-50 whose 3x3 convolutions are a pyramid of kernel sizes with attention. Its layer table
is not public. Chosen: the closest public definition, EPSANet-50 (Zhang et al., ACCV 2022).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from ferdist.models.config import ModelConfig, Task
from ferdist.models.gates import Attention, Gate
from ferdist.models.registry import register
from ferdist.models.resnet import fit

_KERNELS: Final = (3, 5, 7, 9)
_GROUPS: Final = (1, 4, 8, 16)
_REDUCTION: Final = 16


class PyramidAttention(Attention):
    """Pyramid squeeze attention (EPSANet, section 3.1): four kernel sizes, weighed against each other.

    Args:
        channels: in and out; a multiple of 64.
        stride: of the convolutions.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        part = channels // len(_KERNELS)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, part, kernel, stride, kernel // 2, groups=groups, bias=False)
            for kernel, groups in zip(_KERNELS, _GROUPS, strict=True)
        )
        # One squeeze-and-excitation for all scales.
        self.squeeze = nn.Linear(part, part // _REDUCTION)
        self.excite = nn.Linear(part // _REDUCTION, part)
        self.gate = Gate("sigmoid")

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the squeeze-and-excitation; the convolutions make the features."""
        return itertools.chain(self.squeeze.parameters(), self.excite.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H / stride, W / stride)."""
        scales = torch.cat([conv(x) for conv in self.convs], dim=1)
        means = scales.mean((2, 3)).view(x.shape[0], len(_KERNELS), -1)  # len(x) would fix the batch in ONNX
        gates = self.gate(self.excite(F.relu(self.squeeze(means))))
        weights = gates.softmax(dim=1).flatten(1)
        out: Tensor = scales * weights[:, :, None, None]
        return out


class PyramidBottleneck(Bottleneck):  # type: ignore[misc]
    """torchvision's bottleneck block with pyramid attention in the place of its 3x3 convolution."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, stride, *args, **kwargs)
        self.conv2 = PyramidAttention(planes, stride)


@register("aprnet50", reconstruction=True)
def aprnet50(config: ModelConfig, task: Task) -> nn.Module:
    """EPSANet-50 with the stem that ``model.stem`` asks for.

    Each block starts as the identity (Goyal et al., 2017, section 5.1), which keeps the sum of sixteen blocks
    small at the start, and with it the first losses.
    """
    network = ResNet(PyramidBottleneck, [3, 4, 6, 3], num_classes=task.classes, zero_init_residual=True)
    return fit(network, config, task)
