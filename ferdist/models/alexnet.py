"""AlexNet (Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014)."""

from __future__ import annotations

from torch import nn
from torchvision.models import AlexNet

from ferdist.errors import ConfigError
from ferdist.models.config import ModelConfig, Task
from ferdist.models.init import start_for_relu
from ferdist.models.registry import register

_SMALLEST_IMAGENET = 63
"""With 11x11 stride 4 the last pool has nothing left of a smaller image."""


@register("alexnet", smallest=29)
def alexnet(config: ModelConfig, task: Task) -> nn.Module:
    """torchvision's AlexNet, whose first layer follows ``model.stem``.

    The published 11x11 stride 4 (``imagenet``) leaves nothing of 48 pixels. With 5x5 stride 1 the classifier
    sees 5x5 features of them, close to the published 6x6; with stride 2 2x2.
    """
    if config.stem == "imagenet":
        if min(task.height, task.width) < _SMALLEST_IMAGENET:
            raise ConfigError(
                "model.stem is 'imagenet', with which alexnet takes images of "
                f"{_SMALLEST_IMAGENET}x{_SMALLEST_IMAGENET} pixels and larger, but the data's are "
                f"{task.height}x{task.width}: use stride1 or stride2"
            )
        first = nn.Conv2d(task.channels, 64, kernel_size=11, stride=4, padding=2)
    else:
        stride = 2 if config.stem == "stride2" else 1
        first = nn.Conv2d(task.channels, 64, kernel_size=5, stride=stride, padding=2)
    torchvisions = AlexNet(num_classes=task.classes, dropout=config.dropout)
    torchvisions.features[0] = first
    network: nn.Module = torchvisions
    start_for_relu(network)
    return network
