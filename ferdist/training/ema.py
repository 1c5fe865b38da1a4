"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """A copy of a network whose weights and batch statistics follow it slowly.

    The decay rises with the steps, min(decay, (1 + step) / (10 + step)), so that the random start is
    forgotten. torch.optim.swa_utils.AveragedModel either averages integer buffers or leaves the batch
    statistics unaveraged; this averages every floating tensor and copies the rest.

    Args:
        model: the network that is followed.
        decay: in [0, 1); 0 makes the copy equal to the network at each update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._floats = [(a, b) for a, b in pairs if a.is_floating_point()]
        self._others = [(a, b) for a, b in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the network after optimizer step ``step`` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = zip(*self._floats, strict=True)
        torch._foreach_lerp_(averages, values, 1 - decay)
        if self._others:
            averages, values = zip(*self._others, strict=True)
            torch._foreach_copy_(averages, values)
