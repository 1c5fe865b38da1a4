"""What the attention of all networks has in common: gates to watch, and weights that are not decayed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Base of the modules that compute gates from features."""

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """The weights that only the gates depend on.

        Near a gate's start their gradient is small: a weight decay that suits convolutions pulls them to 0,
        and the gate to a constant (docs/models.md). So ``train.attention_decay`` is false by default.
        """
        return self.parameters()


class Gate(nn.Module):
    """Turns scores into gates; a hook on it sees them.

    Args:
        form: one of ``GATES``.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, scores: Tensor) -> Tensor:
        """Scores of any shape, the samples first, to gates in (0, 1), or (0, 2) for ``unit``."""
        gate = torch.sigmoid(scores)
        return 2.0 * gate if self.form == "unit" else gate
