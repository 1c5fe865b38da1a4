"""What a network costs: parameters and arithmetic."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ferdist.models.config import Task


def parameter_count(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def multiply_adds(model: nn.Module, task: Task) -> int:
    """Multiply-adds of convolutions, matrix products and attention for one image, in evaluation mode.

    What torch's own counter has no formula for (norms, pooling, activations, additions) is left out.
    """
    first = next(model.parameters())
    image = torch.zeros(1, task.channels, task.height, task.width, device=first.device, dtype=first.dtype)
    training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    model.train(training)
    return int(counter.get_total_flops()) // 2
