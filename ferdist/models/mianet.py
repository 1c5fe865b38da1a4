"""MIANet (Luo, Li and Chen, Computer Engineering and Applications, 2023): a reconstruction.

Known from its abstract: an Inception structure for several scales, efficient channel attention (ECA), and
depthwise-separable convolutions. Its layer table is not public. Chosen: the layers and widths of GoogLeNet
(Szegedy et al., CVPR 2015); each convolution larger than 1x1 is separable, but for the first; an ECA follows
each Inception block.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, Inception, InceptionAux

from ferdist.models.config import ModelConfig, Task
from ferdist.models.gates import Attention, Gate
from ferdist.models.init import start_for_relu
from ferdist.models.registry import register


class ECA(Attention):
    """Efficient channel attention (Wang et al., CVPR 2020): a gate per channel from its neighbours' means.

    Args:
        channels: channels C of the features; the kernel size follows from it (section 3.2.2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = Gate("sigmoid")
        kernel = int(math.log2(channels) / 2 + 0.5) | 1
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        means = x.mean((2, 3))
        scores = self.conv(means[:, None]).squeeze(1)
        out: Tensor = x * self.gate(scores[:, :, None, None])
        return out


def _conv(inputs: int, outputs: int, *, kernel_size: int, **kwargs: Any) -> nn.Module:
    """GoogLeNet's convolution with batch norm and ReLU; a spatial one is depthwise, then pointwise."""
    if kernel_size == 1:
        pointwise: nn.Module = BasicConv2d(inputs, outputs, kernel_size=1)
        return pointwise
    depthwise = BasicConv2d(inputs, inputs, kernel_size=kernel_size, groups=inputs, **kwargs)
    return nn.Sequential(depthwise, BasicConv2d(inputs, outputs, kernel_size=1))


class AttentiveInception(Inception):  # type: ignore[misc]
    """GoogLeNet's Inception block, separable, with an ECA over its four branches.

    Args as torchvision's: channels in, of the 1x1 branch, of the 3x3 branch (reduced, out), of the 5x5 branch
    (reduced, out), of the pooled branch.
    """

    def __init__(
        self, inputs: int, one: int, three_in: int, three: int, five_in: int, five: int, pooled: int
    ) -> None:
        super().__init__(inputs, one, three_in, three, five_in, five, pooled, conv_block=_conv)
        self.branch3[1] = _conv(five_in, five, kernel_size=5, padding=2)  # torchvision's has 3x3 here
        self.attention = ECA(one + three + five + pooled)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, one + three + five + pooled, H, W)."""
        out: Tensor = self.attention(super().forward(x))
        return out


@register("mianet", reconstruction=True, smallest=16)
def mianet(config: ModelConfig, task: Task) -> nn.Module:
    """GoogLeNet with separable, attentive Inception blocks and the stem that ``model.stem`` asks for."""
    network: nn.Module = GoogLeNet(
        num_classes=task.classes,
        aux_logits=False,
        init_weights=False,
        blocks=[_conv, AttentiveInception, InceptionAux],
        dropout=config.dropout,
    )
    if config.stem == "imagenet":
        network.conv1 = BasicConv2d(task.channels, 64, kernel_size=7, stride=2, padding=3)
    else:
        stride = 2 if config.stem == "stride2" else 1
        network.conv1 = BasicConv2d(task.channels, 64, kernel_size=3, stride=stride, padding=1)
        network.maxpool1 = nn.Identity()
    start_for_relu(network)
    return network
