"""Networks from outside: a user's own module, and timm."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn

from ferdist.errors import ConfigError, FerdistError
from ferdist.models.config import ModelConfig, Task

TIMM: Final = "timm"
"""What stands before the colon in the name of one of timm's networks."""


def import_module(module: str, name: str) -> ModuleType:
    """Import a user's module, from the current folder too; it registers its networks.

    Args:
        module: its dotted name.
        name: the network's, for the message.

    Raises:
        ConfigError: if there is no such module, or it cannot be imported.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # `ferdist` and torchrun start without it
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except FerdistError:
        raise
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise ConfigError(
                f"model.name is {name!r}, but there is no module {missing!r}: "
                f"start in the folder that holds it (this is {here}) or set PYTHONPATH"
            ) from None
        raise ConfigError(f"model.name is {name!r}: importing {module!r} fails: {_line(error)}") from error


def timm_model(name: str, config: ModelConfig, task: Task) -> nn.Module:
    """Build one of timm's networks for the task, with fresh weights.

    Raises:
        ConfigError: if timm is not installed, has no such network, or cannot build it for the task.
    """
    try:
        import timm
    except ImportError:
        raise ConfigError(
            f"model.name is 'timm:{name}', but timm is not installed: pip install 'ferdist[timm]'"
        ) from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean 'timm:{near[0]}'?" if near else "timm.list_models() has the names"
        raise ConfigError(f"model.name is 'timm:{name}', which timm does not have: {hint}")
    options: dict[str, Any] = {"num_classes": task.classes, "in_chans": task.channels}
    if config.dropout > 0:
        options["drop_rate"] = config.dropout
    try:
        known = timm.get_pretrained_cfg(name)
        if known is not None and known.fixed_input_size:
            options["img_size"] = (task.height, task.width)
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    except Exception as error:
        raise ConfigError(f"model.name is 'timm:{name}': timm cannot build it: {_line(error)}") from error
    return model


def check(model: object, name: str, task: Task) -> None:
    """Look whether ``model`` is a network that gives logits for the task's images, once, in evaluation mode.

    Raises:
        ConfigError: if it is not.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model.name is {name!r}: it returns a {type(model).__name__}, not a torch.nn.Module"
        )
    shape = (2, task.channels, task.height, task.width)
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(shape))
    except Exception as error:
        raise ConfigError(f"model.name is {name!r}: it fails on images {shape}: {_line(error)}") from error
    model.train(training)
    given = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    if given != (2, task.classes):
        raise ConfigError(
            f"model.name is {name!r}: for images {shape} it gives {given}, not logits {(2, task.classes)}"
        )


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
