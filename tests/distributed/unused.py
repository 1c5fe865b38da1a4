"""`model.name=tests.distributed.unused:net`: a network with a layer that takes no part in its output."""

from __future__ import annotations

from torch import Tensor, nn

from ferdist.models import ModelConfig, Task, register


class _Net(nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.head = nn.Linear(task.channels * task.height * task.width, task.classes)
        self.auxiliary = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return logits


@register("net")
def net(config: ModelConfig, task: Task) -> nn.Module:
    """The network."""
    return _Net(task)
