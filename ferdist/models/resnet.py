"""ResNet-18 with CBAM, after He et al. (CVPR 2016) and Woo et al. (ECCV 2018), on torchvision's ResNet."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from ferdist.models.cbam import CBAM
from ferdist.models.registry import ModelConfig, Task, register


class CBAMBlock(BasicBlock):  # type: ignore[misc]
    """A basic residual block with attention after the addition or inside the residual branch."""

    def __init__(self, inplanes: int, planes: int, *args: Any, model: ModelConfig, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.attention = CBAM(planes * self.expansion, model.reduction)
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


def _fit(network: ResNet, config: ModelConfig, task: Task) -> nn.Module:
    """Give a torchvision ResNet the stem and the initialisation that the config asks for."""
    width = network.conv1.out_channels
    if config.stem == "imagenet":
        conv = nn.Conv2d(task.channels, width, kernel_size=7, stride=2, padding=3, bias=False)
    else:
        stride = 2 if config.stem == "stride2" else 1
        conv = nn.Conv2d(task.channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        network.maxpool = nn.Identity()
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    network.conv1 = conv
    if config.gate_init == "identity":
        # Last, since torchvision's ResNet initialises every convolution and norm inside its blocks.
        for layer in network.modules():
            if isinstance(layer, CBAM):
                layer.start_near_identity()
    if config.dropout > 0:
        # As a step of the pooled features, so that the classifier keeps its name `fc` in the weights.
        network.avgpool = nn.Sequential(network.avgpool, nn.Dropout(config.dropout))
    fitted: nn.Module = network
    return fitted


@register("resnet18")
def resnet18(config: ModelConfig, task: Task) -> nn.Module:
    """ResNet-18 without attention: the ablation of `resnet18_cbam`."""
    return _fit(ResNet(BasicBlock, [2, 2, 2, 2], num_classes=task.classes), config, task)


@register("resnet18_cbam")
def resnet18_cbam(config: ModelConfig, task: Task) -> nn.Module:
    """ResNet-18 with a CBAM in each of its eight residual blocks."""

    class Block(CBAMBlock):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, model=config, **kwargs)

    return _fit(ResNet(Block, [2, 2, 2, 2], num_classes=task.classes), config, task)
