"""Loss, optimizer and learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ferdist.config import TrainConfig
from ferdist.models.gates import Attention


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW, without weight decay on norms, biases and gates' matrices.

    The fused implementations take ``found_inf``, by which a non-finite gradient is masked on the device.
    """
    decayed = {id(p) for p in decayed_parameters(model, config)}
    decay = [p for p in model.parameters() if p.requires_grad and id(p) in decayed]
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in decayed]
    groups: list[dict[str, Any]] = [{"params": decay}, {"params": rest, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    sgd = torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=True,
    )
    if config.momentum > 0:
        # Fused SGD makes its buffers without filling them, and a masked first update would leave them so.
        for p in decay + rest:
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def decayed_parameters(model: nn.Module, config: TrainConfig) -> list[nn.Parameter]:
    """Kernels and matrices, but those of attention where ``train.attention_decay`` exempts them."""
    exempt: set[int] = set()
    if not config.attention_decay:
        modules = (module for module in model.modules() if isinstance(module, Attention))
        exempt = {id(p) for module in modules for p in module.gate_parameters()}
    return [p for p in model.parameters() if p.ndim > 1 and id(p) not in exempt]


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Learning rate of a step, 1 to ``total_steps``: a pure function, so a resumed run needs no state."""
    warmup = config.warmup * total_steps
    if step <= warmup:
        rise = step / warmup
        return config.lr * (rise if config.schedule == "cosine" else (1 - math.cos(math.pi * rise)) / 2)
    fall = (step - warmup) / (total_steps - warmup)
    # The last step still learns a little: a rate of exactly 0 would waste it.
    return config.lr * max((1 + math.cos(math.pi * fall)) / 2, 1e-4)


def class_weights(kind: str, counts: Tensor) -> Tensor | None:
    """Weight of each class in the loss, (K,) float32, or None; the mean over the training samples is 1.

    Args:
        kind: ``none``, ``balanced`` (inverse frequency) or ``sqrt`` (its square root).
        counts: (K,) training samples of each class; a class without samples gets weight 0.
    """
    if kind == "none":
        return None
    n = counts.double()
    raw = torch.where(n > 0, n.clamp(min=1e-9) ** (-1.0 if kind == "balanced" else -0.5), 0.0)
    return (raw * n.sum() / (raw * n).sum()).float()
