"""ResNet-18 with CBAM, after He et al. (CVPR 2016) and Woo et al. (ECCV 2018), on torchvision's ResNet."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from ferdist.models.cbam import CBAM
from ferdist.models.config import ModelConfig, Task
from ferdist.models.registry import register

_WIDTH: Final = 64
"""Channels of the first stage of a ResNet."""


class CBAMBlock(BasicBlock):  # type: ignore[misc]
    """A basic residual block with attention after the addition or inside the residual branch."""

    def __init__(self, inplanes: int, planes: int, *args: Any, model: ModelConfig, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.attention = CBAM(planes * self.expansion, model.reduction, model.gate)
        self.inside = model.placement == "inside"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, planes, H / stride, W / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.inside:
            out = self.attention(out)
        out = self.relu(out + identity)
        return out if self.inside else self.attention(out)


class ResNet18(ResNet):  # type: ignore[misc]
    """torchvision's ResNet-18 with a free number of channels.

    Args:
        block: of the residual stages.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        classes: of the classifier.
    """

    def __init__(self, block: type[BasicBlock], width: int, classes: int) -> None:
        self.width = width
        super().__init__(block, [2, 2, 2, 2], num_classes=classes)
        if width != _WIDTH:
            self.bn1 = nn.BatchNorm2d(width)
            self.fc = nn.Linear(self.inplanes, classes)

    def _make_layer(self, block: type[BasicBlock], planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == _WIDTH:
            self.inplanes = self.width
        layer: nn.Sequential = super()._make_layer(block, planes * self.width // _WIDTH, *args, **kwargs)
        return layer


def fit(network: ResNet, config: ModelConfig, task: Task) -> nn.Module:
    """Give a torchvision ResNet the stem and the dropout that the config asks for."""
    width = network.bn1.num_features
    if config.stem == "imagenet":
        conv = nn.Conv2d(task.channels, width, kernel_size=7, stride=2, padding=3, bias=False)
    else:
        stride = 2 if config.stem == "stride2" else 1
        conv = nn.Conv2d(task.channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        network.maxpool = nn.Identity()
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    network.conv1 = conv
    if config.dropout > 0:
        # As a step of the pooled features, so that the classifier keeps its name `fc` in the weights.
        network.avgpool = nn.Sequential(network.avgpool, nn.Dropout(config.dropout))
    fitted: nn.Module = network
    return fitted


@register("resnet18")
def resnet18(config: ModelConfig, task: Task) -> nn.Module:
    """ResNet-18 without attention: the ablation of `resnet18_cbam`."""
    return fit(ResNet18(BasicBlock, config.width, task.classes), config, task)


@register("resnet18_cbam")
def resnet18_cbam(config: ModelConfig, task: Task) -> nn.Module:
    """ResNet-18 with a CBAM in each of its eight residual blocks."""

    class Block(CBAMBlock):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, model=config, **kwargs)

    network = fit(ResNet18(Block, config.width, task.classes), config, task)
    if config.gate_init == "identity":
        # Last, since torchvision's ResNet initialises every convolution and norm inside its blocks.
        for layer in network.modules():
            if isinstance(layer, CBAM):
                layer.start_as_identity()
    return network
