"""What the paper's Table 1 gives."""

from __future__ import annotations

from typing import Final

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
