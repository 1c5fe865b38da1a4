"""Whether a network's attention is alive: what its gates do with different images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from ferdist.models.gates import Attention, Gate

PREFIX: Final = "gate/"
MEAN, ACROSS_PLACES, ACROSS_IMAGES = "mean", "sd_places", "sd_images"
DEAD: Final = 0.005
"""Below this standard deviation across images a channel gate counts as a constant."""
MOST_DEAD: Final = 0.25
"""A training ends with a warning where more than this share of the channel gates are constants."""


@torch.no_grad()
def gate_statistics(network: nn.Module, images: Tensor) -> dict[str, float]:
    """What each gate of a network does with a batch of images.

    Args:
        network: in evaluation mode.
        images: float (B, C, H, W) as the network takes them, B > 1.

    Returns:
        By ``gate/NAME/...``, NAME being the module that the gate belongs to: the ``mean`` of the gate;
        ``sd_places``, the standard deviation of its mean over the images, across its channels or pixels; and
        ``sd_images``, its standard deviation across the images, averaged over channels or pixels. Empty for
        a network without attention.
    """
    found: dict[str, Tensor] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, Attention):
            for gate in module.modules():
                if isinstance(gate, Gate):
                    hooks.append(gate.register_forward_hook(_keep(found, _short(name))))
    if not hooks:
        return {}
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    numbers = {}
    for name, values in found.items():
        over_images = values.mean(0)
        numbers[f"{PREFIX}{name}/{MEAN}"] = over_images.mean()
        numbers[f"{PREFIX}{name}/{ACROSS_PLACES}"] = over_images.std()
        numbers[f"{PREFIX}{name}/{ACROSS_IMAGES}"] = values.std(0).mean()
    return dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))


def _keep(found: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, gate: Tensor) -> None:
        found[name] = gate.float().flatten(1)

    return hook


def _short(name: str) -> str:
    """``layer1.0.attention.channel`` as ``layer1.0.channel``."""
    return ".".join(part for part in name.split(".") if part != "attention") or name


def by_gate(numbers: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Mean, deviation across places and deviation across images of each gate by its name.

    Args:
        numbers: of `gate_statistics`, among others.
    """
    names = (key.removeprefix(PREFIX).rpartition("/") for key in numbers if key.startswith(PREFIX))
    return {
        name: (
            numbers[f"{PREFIX}{name}/{MEAN}"],
            numbers[f"{PREFIX}{name}/{ACROSS_PLACES}"],
            numbers[f"{PREFIX}{name}/{ACROSS_IMAGES}"],
        )
        for name, _, last in names
        if last == MEAN
    }


def constant_gates(numbers: Mapping[str, Any]) -> tuple[list[str], int]:
    """The gates over channels that do the same for every image, and how many such gates there are in all.

    Args:
        numbers: of `gate_statistics`, among others.
    """
    across = {name: found[2] for name, found in by_gate(numbers).items() if not name.endswith(".spatial")}
    return [name for name, value in across.items() if value < DEAD], len(across)
