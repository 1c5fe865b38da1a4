"""`model.name=tests.resting:net`: ResNet-18 with CBAM, which rests in each batch where REST says how long.

A run that is to be stopped amid its training must not end before the test, on a busy machine, has seen how
far it is; and a rest costs the others nothing. The numbers are those of `resnet18_cbam`.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from torch import nn

from ferdist.models import ModelConfig, Task, build_model, register

REST = "FERDIST_TEST_REST"
"""Variable with the seconds of rest."""
SECONDS = "0.15"


@register("net")
def net(config: ModelConfig, task: Task) -> nn.Module:
    """The network, with a rest before each batch."""
    network = build_model(replace(config, name="resnet18_cbam"), task)
    seconds = float(os.environ.get(REST, "0"))

    def rest(module: nn.Module, batch: Any) -> None:
        time.sleep(seconds if module.training else 3 * seconds)

    network.register_forward_pre_hook(rest)
    return network
