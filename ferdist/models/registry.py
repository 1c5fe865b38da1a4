"""Networks by name: `model.name` in a config is looked up here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import nn

from ferdist.errors import ConfigError

STEMS: Final = ("imagenet", "stride2", "stride1")
PLACEMENTS: Final = ("after", "inside")
GATE_INITS: Final = ("identity", "default")


@dataclass
class ModelConfig:
    """What `model.*` in a config may say.

    Attributes:
        name: a registered network.
        stem: first layers: ``imagenet`` (7x7 stride 2 and max pool), ``stride2`` (3x3 stride 2) or
            ``stride1`` (3x3 stride 1), the last two without a pool, for small images.
        width: channels of the first stage of a ResNet; the others have 2, 4 and 8 times as many.
        placement: where CBAM sits in a residual block: ``after`` the addition (its output replaces the
            block's) or ``inside``, before the addition, as in the original CBAM.
        gate_init: ``identity`` starts CBAM's gates near 1, ``default`` leaves PyTorch's initialisation.
        reduction: reduction ratio of CBAM's shared MLP.
        dropout: probability of dropout before the classifier.
        pretrained: ``imagenet``, the path of a run folder or of a .safetensors file, or nothing.
    """

    name: str = "resnet18_cbam"
    stem: str = "stride2"
    width: int = 64
    placement: str = "after"
    gate_init: str = "identity"
    reduction: int = 16
    dropout: float = 0.0
    pretrained: str | None = None

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("stem", self.stem, STEMS),
            ("placement", self.placement, PLACEMENTS),
            ("gate_init", self.gate_init, GATE_INITS),
        ):
            if value not in allowed:
                raise ConfigError(f"model.{key} is {value!r}: it must be one of {', '.join(allowed)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.dropout is {self.dropout}: it must lie in [0, 1)")
        for key in ("width", "reduction"):
            if getattr(self, key) < 1:
                raise ConfigError(f"model.{key} is {getattr(self, key)}: it must be at least 1")


@dataclass(frozen=True)
class Task:
    """What the data ask of a network: image channels, height, width (pixels) and the class count."""

    channels: int
    height: int
    width: int
    classes: int


Builder = Callable[[ModelConfig, Task], nn.Module]
_BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Decorate a function ``(ModelConfig, Task) -> nn.Module`` to make it the network ``name``.

    The network takes float images (N, C, H, W) and returns logits (N, classes).
    """

    def add(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise ConfigError(f"there is a network {name!r} already: choose another name")
        _BUILDERS[name] = builder
        return builder

    return add


def model_names() -> list[str]:
    """The registered networks, sorted."""
    return sorted(_BUILDERS)


def build_model(config: ModelConfig, task: Task) -> nn.Module:
    """Build the network that ``config`` names, with fresh weights.

    Raises:
        ConfigError: if there is no network of that name.
    """
    if config.name not in _BUILDERS:
        near = difflib.get_close_matches(config.name, _BUILDERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(model_names())}"
        raise ConfigError(f"model.name is {config.name!r}, which is no network: {hint}")
    return _BUILDERS[config.name](config, task)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
