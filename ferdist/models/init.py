"""Initialisation of networks without residuals."""

from __future__ import annotations

from torch import nn


def start_for_relu(network: nn.Module, classifier: nn.Conv2d | nn.Linear | None = None) -> None:
    """Give the convolutions He et al.'s initialisation (ICCV 2015) and biases of 0.

    It keeps the signal's size from layer to layer, which PyTorch's default shrinks at each ReLU. A
    ``classifier`` starts near 0 instead, so that the first loss is that of guessing.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if classifier is not None:
        nn.init.normal_(classifier.weight, std=0.01)
