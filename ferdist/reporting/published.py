"""What the paper's Table 1 gives."""

from __future__ import annotations

from typing import Final

from ferdist.config import Config

PUBLISHED: Final[dict[str, dict[str, float]]] = {
    "fer2013": {
        "resnet18_cbam": 0.7486,
        "alexnet": 0.6887,
        "mianet": 0.7228,
        "kernel_cnn": 0.6500,
        "aprnet50": 0.7300,
        "vgg16": 0.6040,
    },
    "ckplus": {
        "resnet18_cbam": 0.9612,
        "alexnet": 0.9417,
        "mianet": 0.9576,
        "kernel_cnn": 0.8437,
        "aprnet50": 0.9495,
        "vgg16": 0.9065,
    },
}
"""Accuracy by data set and network. ``resnet18_cbam`` is the paper's own; it collected the others from five
papers, and gives no protocol for any: neither folds, nor how the epoch was chosen, nor a deviation."""


OWN: Final = "resnet18_cbam"
"""The paper's own network, which it trains on occluded faces."""


def published_accuracy(data: str, config: Config) -> float | None:
    """What the paper gives for what a config trains: nothing for pretrained weights, nor for its own network
    where no face is occluded."""
    occludes = config.augment.enabled and config.augment.occlusion.probability > 0
    if config.model.pretrained or (config.model.name == OWN and not occludes):
        return None
    return PUBLISHED.get(data, {}).get(config.model.name)
