"""Initialisation of networks without residuals."""

from __future__ import annotations

from torch import nn


def start_convolutions(network: nn.Module) -> None:
    """Give the convolutions He et al.'s initialisation (ICCV 2015) and biases of 0.

    It keeps the signal's size from layer to layer, which PyTorch's default shrinks at each ReLU.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
