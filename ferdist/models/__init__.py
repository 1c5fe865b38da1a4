"""Networks and their registry; what needs PyTorch is imported at its first use: configs do without."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ferdist.models.config import ModelConfig, Task
    from ferdist.models.cost import multiply_adds, parameter_count
    from ferdist.models.registry import (
        build_model,
        check_resolution,
        classifier_name,
        is_reconstruction,
        model_names,
        register,
    )

__all__ = [
    "ModelConfig",
    "Task",
    "build_model",
    "check_resolution",
    "classifier_name",
    "is_reconstruction",
    "model_names",
    "multiply_adds",
    "parameter_count",
    "register",
]


def __getattr__(name: str) -> Any:
    """The public name from the module that has it (PEP 562)."""
    for module in ("config", "registry", "cost") if name in __all__ else ():
        if hasattr(found := import_module(f"{__name__}.{module}"), name):
            return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
