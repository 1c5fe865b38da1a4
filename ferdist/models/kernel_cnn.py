"""The CNNs of a study of kernel sizes (Agrawal and Mittal, The Visual Computer 36, 2020): a reconstruction.

Known of them: the study tries kernel sizes and numbers of filters on FER2013 and proposes two models, fully
convolutional with kernel size 8, that reach 65 %. Their layer tables are not public. Chosen: three pairs of
layers, the second with stride 2 in a pool's place; the numbers of filters; batch norm; a last convolution
whose mean over the pixels gives the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

from ferdist.models.config import ModelConfig, Task
from ferdist.models.init import start_for_relu
from ferdist.models.registry import register

_KERNEL: Final = 8


class KernelCNN(nn.Module):
    """Convolutions with kernel size 8 throughout.

    Args:
        channels: of the images.
        filters: of each pair of layers.
        classes: of the logits.
        dropout: probability of dropout before the last layer.
    """

    def __init__(self, channels: int, filters: Sequence[int], classes: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide in filters:
            # A side of n becomes n + 1, then half of n, rounded up: an even kernel has no middle pixel.
            for stride, padding in ((1, _KERNEL // 2), (2, _KERNEL // 2 - 1)):
                layers += [
                    nn.Conv2d(channels, wide, _KERNEL, stride, padding, bias=False),
                    nn.BatchNorm2d(wide),
                    nn.ReLU(inplace=True),
                ]
                channels = wide
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(channels, classes, _KERNEL, padding=_KERNEL // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, classes)."""
        scores: Tensor = self.classifier(self.dropout(self.features(x)))
        return scores.mean((2, 3))


def _build(filters: Sequence[int], config: ModelConfig, task: Task) -> nn.Module:
    network = KernelCNN(task.channels, filters, task.classes, config.dropout)
    start_for_relu(network, network.classifier)
    return network


@register("kernel_cnn", reconstruction=True)
def kernel_cnn(config: ModelConfig, task: Task) -> nn.Module:
    """The same number of filters in every layer."""
    return _build((64, 64, 64), config, task)


@register("kernel_cnn2", reconstruction=True)
def kernel_cnn2(config: ModelConfig, task: Task) -> nn.Module:
    """Twice as many filters each time the features are halved."""
    return _build((32, 64, 128), config, task)
