"""Where a network looks: CBAM's spatial gates, and Grad-CAM for any convolutional network.

Grad-CAM (Selvaraju et al., ICCV 2017, section 3) is written here: it is a product of two tensors, and the
libraries that offer it (captum, pytorch-grad-cam) want to be told the layer, which is found here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferdist.augment import normalise
from ferdist.datasets.record import Images
from ferdist.errors import RunError
from ferdist.models.cbam import SpatialAttention

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Looks:
    """Where a network looks in B images.

    Attributes:
        probabilities: float32 (B, K), rows sum to 1.
        gates: float32 (B, h, w) in (0, 1) by the size ``(h, w)`` of the features: the spatial gate of the last
            CBAM of each size, from the finest on; empty for a network without CBAM.
        evidence: float32 (B, h, w), 0 to 1: Grad-CAM of the predicted class over the last features that have
            more than one pixel, divided by its maximum; all 0 where nothing speaks for the class.
    """

    probabilities: Floats
    gates: dict[tuple[int, int], Floats]
    evidence: Floats


def look(network: nn.Module, images: Images, mean: Sequence[float], std: Sequence[float]) -> Looks:
    """Where a network looks.

    Args:
        network: in evaluation mode; it is computed in fp32, and its parameters get no gradient.
        images: uint8 (B, C, H, W).
        mean, std: per channel, in [0, 1] units.

    Raises:
        RunError: if the network has no features with more than one pixel.
    """
    device = next(network.parameters()).device
    gates: dict[tuple[int, int], Floats] = {}
    features: list[Tensor] = []

    def watch(module: nn.Module, _: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2] * output.shape[3] == 1:
            return
        if isinstance(module, SpatialAttention):
            gates[(output.shape[2], output.shape[3])] = output.detach()[:, 0].float().cpu().numpy()
        elif output.requires_grad and output.shape[1] > 1:  # a gate of one channel is no features
            features[:] = [output]

    # What CAM explains is the network's use of the pixels: they carry the gradient, frozen weights or not.
    pixels = normalise(torch.from_numpy(images).to(device), mean, std).requires_grad_()
    hooks = [module.register_forward_hook(watch) for module in network.modules()]
    try:
        with torch.enable_grad():
            scores = network(pixels)
            predicted = scores.argmax(1)
            if not features:
                raise RunError("the network has no features with more than one pixel: there is no Grad-CAM")
            (gradient,) = torch.autograd.grad(scores.gather(1, predicted[:, None]).sum(), features)
    finally:
        for hook in hooks:
            hook.remove()
    evidence = F.relu((gradient.mean((2, 3), keepdim=True) * features[0]).sum(1)).detach()
    peak = evidence.amax((1, 2), keepdim=True)
    return Looks(
        scores.detach().float().softmax(1).cpu().numpy(),
        gates,
        (evidence / peak.clamp(min=torch.finfo(peak.dtype).tiny)).cpu().numpy(),
    )


def enlarge(maps: Floats, height: int, width: int) -> Floats:
    """Maps (B, h, w) bilinearly enlarged to (B, H, W)."""
    large = F.interpolate(torch.from_numpy(maps)[:, None], (height, width), mode="bilinear")
    return np.asarray(large[:, 0].numpy(), dtype=np.float32)
