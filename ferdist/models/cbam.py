"""Convolutional block attention module (Woo et al., CBAM, ECCV 2018, section 3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GATE_START = 0.95
"""Value of each gate at the start of an identity-like initialisation."""


class ChannelAttention(nn.Module):
    """Gate per channel: one MLP, shared by the average- and the max-pooled features (section 3.1).

    Args:
        channels: channels C of the features.
        reduction: the MLP's hidden layer has C / reduction units.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // reduction))
        self.excite = nn.Linear(max(1, channels // reduction), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to gates (N, C, 1, 1) in (0, 1)."""
        average = x.mean((2, 3))
        # max(dim) has a backward pass without ties and atomics; amax shares the gradient among ties.
        peak = x.flatten(2).max(2)[0]
        # Both poolings in one pass through the MLP: half the small matrix products.
        scores = self.excite(F.relu(self.squeeze(torch.cat((average, peak)))))
        gate = torch.sigmoid(sum(scores.chunk(2)))
        return gate[:, :, None, None]


class SpatialAttention(nn.Module):
    """Gate per pixel: a 7x7 convolution over the mean and the maximum of the channels (section 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to gates (N, 1, H, W) in (0, 1)."""
        pooled = torch.stack((x.mean(1), x.max(1)[0]), dim=1)
        return torch.sigmoid(self.norm(self.conv(pooled)))


class CBAM(nn.Module):
    """Channel attention, then spatial attention, each multiplied onto the features.

    Args:
        channels: channels C of the features.
        reduction: reduction ratio of the channel MLP (16 in the paper).
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction)
        self.spatial = SpatialAttention()

    def start_near_identity(self) -> None:
        """Initialise both gates near 1.

        As PyTorch initialises them, two gates near 0.5 pass a quarter of the signal in each block, and where
        the gated output replaces the block's (placement ``after``) eight blocks pass about 1.5e-5 of it.
        """
        logit = math.log(GATE_START / (1.0 - GATE_START))
        nn.init.normal_(self.channel.excite.weight, std=0.01)
        nn.init.constant_(self.channel.excite.bias, logit / 2)  # it is added twice
        nn.init.constant_(self.spatial.norm.weight, 0.1)
        nn.init.constant_(self.spatial.norm.bias, logit)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        x = x * self.channel(x)
        out: Tensor = x * self.spatial(x)
        return out
