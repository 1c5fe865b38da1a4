"""Networks and their registry."""

# Imported for the networks that they register.
from ferdist.models import alexnet as _alexnet
from ferdist.models import aprnet as _aprnet
from ferdist.models import kernel_cnn as _kernel_cnn
from ferdist.models import mianet as _mianet
from ferdist.models import resnet as _resnet
from ferdist.models import vgg as _vgg
from ferdist.models.config import ModelConfig, Task
from ferdist.models.cost import multiply_adds, parameter_count
from ferdist.models.registry import (
    build_model,
    check_resolution,
    is_reconstruction,
    model_names,
    register,
)

__all__ = [
    "ModelConfig",
    "Task",
    "build_model",
    "check_resolution",
    "is_reconstruction",
    "model_names",
    "multiply_adds",
    "parameter_count",
    "register",
]
del _alexnet, _aprnet, _kernel_cnn, _mianet, _resnet, _vgg
