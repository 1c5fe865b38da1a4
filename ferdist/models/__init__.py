"""Networks and their registry."""

from ferdist.models import resnet as _resnet  # registers its networks
from ferdist.models.registry import (
    ModelConfig,
    Task,
    build_model,
    model_names,
    parameter_count,
    register,
)

__all__ = ["ModelConfig", "Task", "build_model", "model_names", "parameter_count", "register"]
del _resnet
