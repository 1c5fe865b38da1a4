"""Networks by name: `model.name` in a config is looked up here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module

from torch import nn

from ferdist.errors import ConfigError
from ferdist.models import external
from ferdist.models.config import ModelConfig, Task

Builder = Callable[[ModelConfig, Task], nn.Module]


@dataclass(frozen=True)
class _Network:
    build: Builder
    reconstruction: bool
    smallest: int


_NETWORKS: dict[str, _Network] = {}


@cache
def _register_own() -> None:
    """Import the modules of ferdist's own networks, which register them."""
    for module in ("alexnet", "aprnet", "kernel_cnn", "mianet", "resnet", "vgg"):
        import_module(f"ferdist.models.{module}")


def register(name: str, *, reconstruction: bool = False, smallest: int = 1) -> Callable[[Builder], Builder]:
    """Decorate a function ``(ModelConfig, Task) -> nn.Module`` to make it a network.

    In ferdist's own modules it becomes ``model.name=NAME``, in a user's module ``model.name=MODULE:NAME``.
    The network takes float images (N, C, H, W) and returns logits (N, classes).

    Args:
        name: of the network.
        reconstruction: whether it follows a description because no layer table is public; reports say so.
        smallest: the least height and width of an image, in pixels.
    """

    def add(builder: Builder) -> Builder:
        module = builder.__module__
        key = name if module.startswith("ferdist.models.") else f"{module}:{name}"
        # The same function once more is a module that was imported again, or a notebook's cell.
        if key in _NETWORKS and _NETWORKS[key].build.__qualname__ != builder.__qualname__:
            raise ConfigError(f"network {key!r} already exists: choose another name")
        _NETWORKS[key] = _Network(builder, reconstruction, smallest)
        return builder

    return add


def model_names() -> list[str]:
    """The registered networks, sorted."""
    _register_own()
    return sorted(_NETWORKS)


def is_reconstruction(name: str) -> bool:
    """Whether a network follows a description instead of published layers; imports no user's module.

    Raises:
        ConfigError: if there is no network of that name, or its module was not imported.
    """
    return _find(name, trust_code=False).reconstruction


def build_model(config: ModelConfig, task: Task, *, trust_code: bool = True) -> nn.Module:
    """Build the network that ``config`` names, with fresh weights.

    Args:
        config: names the network.
        task: image shape and class count.
        trust_code: whether a user's module that ``config`` names may be imported, which runs its code. Pass
            False for a config that was read from a model file or a run folder.

    Raises:
        ConfigError: if there is no network of that name, its module must not be imported, the network does
            not take the task's images, or it is a user's or timm's and does not give logits for them.
    """
    network = _find(config.name, trust_code=trust_code)
    _check_size(config.name, task)
    model = network.build(config, task)
    if ":" in config.name:
        external.check(model, config.name, task)
    return model


def classifier_name(network: nn.Module) -> str:
    """Name of the module that gives the logits: the last linear layer, or else the last convolution.

    Raises:
        ConfigError: if it has neither.
    """
    for kind in (nn.Linear, nn.Conv2d):
        names: list[str] = [name for name, layer in network.named_modules() if isinstance(layer, kind)]
        if names:
            return names[-1]
    raise ConfigError(f"{type(network).__name__} has no linear layer or convolution, so no known classifier")


def check_resolution(model: nn.Module, config: ModelConfig, task: Task, shares: Iterable[float]) -> None:
    """Look whether a network takes ``train.resolution``: the task's images at ``shares`` of their side.

    Raises:
        ConfigError: if it does not.
    """
    for share in shares:
        shown = replace(task, height=round(task.height * share), width=round(task.width * share))
        try:
            _check_size(config.name, shown)
            external.check(model, config.name, shown)
        except ConfigError as error:
            raise ConfigError(f"train.resolution has a share of {share} of the side: {error}") from None


def _check_size(name: str, task: Task) -> None:
    smallest = _find(name).smallest
    if min(task.height, task.width) < smallest:
        raise ConfigError(
            f"model.name is {name!r}, which takes images of {smallest}x{smallest} pixels and larger, "
            f"not {task.height}x{task.width}"
        )


def _find(name: str, *, trust_code: bool = True) -> _Network:
    _register_own()
    source, colon, own = name.partition(":")
    if source == external.TIMM and colon:
        return _Network(lambda config, task: external.timm_model(own, config, task), False, 1)
    if colon and not (source and own):
        raise ConfigError(f"model.name is {name!r}: write it as MODULE:NAME")
    if colon and name not in _NETWORKS:
        if not trust_code:
            raise ConfigError(
                f"model.name is {name!r}, which a file asks for and which would run code of the module "
                f"{source!r}: give --trust-code if you trust that file and that module"
            )
        external.import_module(source, name)
    if name in _NETWORKS:
        return _NETWORKS[name]
    if colon:
        raise ConfigError(f"model.name is {name!r}, but {source} has no function with @register({own!r})")
    near = difflib.get_close_matches(name, _NETWORKS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(model_names())}"
    raise ConfigError(f"model.name is {name!r}, which is not a network: {hint}")
