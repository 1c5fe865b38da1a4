"""VGG-16 with batch norm (Simonyan and Zisserman, ICLR 2015; configuration D), for small images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torchvision.models import vgg

from ferdist.models.config import ModelConfig, Task
from ferdist.models.init import start_for_relu
from ferdist.models.registry import register


@register("vgg16", smallest=32)
def vgg16(config: ModelConfig, task: Task) -> nn.Module:
    """torchvision's features of VGG-16 with batch norm, then one linear layer.

    The published classifier, three layers over 7x7 features, is made for 224 pixels: after five pools one
    feature is left of 32 to 63. One linear layer over the mean of the features is what public code for small
    images uses.
    """
    features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    features[0] = nn.Conv2d(task.channels, 64, kernel_size=3, padding=1)
    classifier = nn.Linear(512, task.classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        features=features,
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(config.dropout),
        classifier=classifier,
    )
    network = nn.Sequential(layers)
    start_for_relu(network, classifier)
    return network
