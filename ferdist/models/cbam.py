"""Convolutional block attention module (Woo et al., CBAM, ECCV 2018, section 3)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferdist.models.gates import Attention, Gate

CHANNEL_SPREAD = 0.1
"""Deviation of a ``unit`` channel gate's scores across images at the start."""
GATE_START = 0.95
"""Value of each ``sigmoid`` gate at the start of an identity-like initialisation."""


class MeanAndMax(torch.autograd.Function):
    """Mean and maximum over some dimensions, kept, with one gradient for both.

    With autograd's own pieces CBAM is a third of a CPU's step (docs/performance.md): a maximum with its index
    is not vectorised, and its gradient is scattered into zeros in another memory format than the features',
    to which it then has to be added. Here the gradient is made where it belongs, in the features' format;
    pixels that tie for the maximum share its gradient evenly, as in ``Tensor.amax``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) to its mean and maximum over ``dims``, which become 1."""
        ctx.dims, ctx.count = dims, math.prod(x.shape[d] for d in dims)
        # Over channels, which lie side by side in memory, a CPU's reductions are fast for fp32 only.
        wide = x.float() if dims == (1,) and x.dtype.itemsize < 4 else x
        mean, peak = (part.to(x.dtype) for part in (wide.mean(dims, True), wide.amax(dims, True)))
        ctx.save_for_backward(x, peak)
        return mean, peak

    @staticmethod
    def backward(ctx: Any, mean_grad: Tensor, peak_grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        x, peak = ctx.saved_tensors
        grad = torch.eq(x, peak, out=torch.empty_like(x))  # 0 or 1 in x's type: a bool would be slow
        ties = grad.sum(ctx.dims, keepdim=True)
        return grad.mul_(peak_grad / ties).add_(mean_grad / ctx.count), None


def mean_and_max(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and maximum of x (N, C, H, W) over ``dims``, which become 1.

    A compiler gets the plain operators, which it fuses better than the function above. So does a GPU:
    there, the number of operators bounds a step.
    """
    if torch.compiler.is_compiling() or x.device.type == "cuda":
        return x.mean(dims, True), x.amax(dims, True)
    pooled: tuple[Tensor, Tensor] = MeanAndMax.apply(x, dims)
    return pooled


class ChannelAttention(Attention):
    """Gate per channel: one MLP, shared by the average- and the max-pooled features (section 3.1).

    A ``unit`` gate's scores go through a batch norm, as the spatial gate's do and as those of the same
    authors' BAM (Park et al., BMVC 2018, section 3.1). Pooled features are large and positive: what all
    images have in common would drive the MLP's hidden units to the dead side of their ReLU within an epoch
    or two (docs/models.md). A batch norm's gradient has no component common to all images.

    Args:
        channels: channels C of the features.
        reduction: the MLP's hidden layer has C / reduction units.
        form: of the gate, see ``gates.GATES``.
    """

    def __init__(self, channels: int, reduction: int, form: str) -> None:
        super().__init__()
        self.gate = Gate(form)
        self.squeeze = nn.Linear(channels, max(1, channels // reduction))
        self.excite = nn.Linear(max(1, channels // reduction), channels)
        self.norm = nn.BatchNorm1d(channels) if form == "unit" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to gates (N, C, 1, 1)."""
        # Both poolings in one pass through the MLP: half the small matrix products.
        pooled = torch.cat(mean_and_max(x, (2, 3))).flatten(1)
        scores = self.excite(F.relu(self.squeeze(pooled)))
        N = x.shape[0]
        scores = scores[:N] + scores[N:]  # chunk(2) would fix N where the network is exported
        gate: Tensor = self.gate(self.norm(scores)[:, :, None, None])
        return gate


class SpatialAttention(Attention):
    """Gate per pixel: a 7x7 convolution over the mean and the maximum of the channels (section 3.2).

    Args:
        form: of the gate, see ``gates.GATES``.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.gate = Gate(form)
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to gates (N, 1, H, W)."""
        pooled = torch.cat(mean_and_max(x, (1,)), dim=1)
        gate: Tensor = self.gate(self.norm(self.conv(pooled)))
        return gate


class CBAM(nn.Module):
    """Channel attention, then spatial attention, each multiplied onto the features.

    Args:
        channels: channels C of the features.
        reduction: reduction ratio of the channel MLP (16 in the paper).
        form: of the gates, see ``gates.GATES``.
    """

    def __init__(self, channels: int, reduction: int = 16, form: str = "unit") -> None:
        super().__init__()
        self.form = form
        self.channel = ChannelAttention(channels, reduction, form)
        self.spatial = SpatialAttention(form)

    def start_as_identity(self) -> None:
        """Initialise both gates near 1.

        As PyTorch initialises them, two ``sigmoid`` gates near 0.5 pass a quarter of the signal in each
        block, and where the gated output replaces the block's (placement ``after``) eight blocks pass about
        1.5e-5 of it. Started near 1 they hardly learn: the sigmoid's slope is 0.05 there. A ``unit`` gate's
        is 0.5 at 1. Its scores start small but not at 0, so that all of its weights get a gradient at once.
        """
        if self.form == "unit":
            squeeze, excite = self.channel.squeeze, self.channel.excite
            nn.init.kaiming_normal_(squeeze.weight, nonlinearity="relu")
            with torch.no_grad():
                # Features are not negative. What all channels have in common would hold each hidden unit on
                # one side of its ReLU for every image: rows that sum to 0 see how the channels differ.
                squeeze.weight -= squeeze.weight.mean(1, keepdim=True)
            nn.init.zeros_(squeeze.bias)
            nn.init.normal_(excite.weight, std=1.0 / math.sqrt(excite.in_features))
            nn.init.zeros_(excite.bias)
            for norm, spread in ((self.channel.norm, CHANNEL_SPREAD), (self.spatial.norm, 0.2)):
                assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
                nn.init.constant_(norm.weight, spread)
                nn.init.zeros_(norm.bias)
            return
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
