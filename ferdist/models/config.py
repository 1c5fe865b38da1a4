"""What a network is built from: the `model` section of a configuration, and the data's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta

from ferdist.errors import ConfigError

STEMS: Final = ("imagenet", "stride2", "stride1")
PLACEMENTS: Final = ("after", "inside")
GATE_INITS: Final = ("identity", "default")
GATES: Final = ("unit", "sigmoid")
"""Forms of a gate for a score s: ``unit`` is 2 sigmoid(s), 1 where s is 0; ``sigmoid`` is the papers' own."""


@dataclass
class ModelConfig:
    """What `model.*` in a config may say.

    Attributes:
        name: a registered network, ``MODULE:NAME`` for one of the user's own, or ``timm:NAME``.
        stem: first layers: ``imagenet`` (7x7 stride 2 and max pool), ``stride2`` (3x3 stride 2) or
            ``stride1`` (3x3 stride 1), the last two without a pool, for small images. AlexNet's are 11x11
            stride 4, 5x5 stride 2 and 5x5 stride 1. VGG-16, the kernel-size CNNs and timm's networks have
            their own.
        width: of ResNet-18: channels of its first stage; the others have 2, 4 and 8 times as many.
        placement: of ResNet-18 with CBAM: where CBAM sits in a residual block: ``after`` the addition (its
            output replaces the block's) or ``inside``, before the addition, as in the original CBAM.
        gate: of ResNet-18 with CBAM: ``unit`` gates are 2 sigmoid(s), 1 where the score s is 0, with a batch
            norm on the channel scores, too; ``sigmoid`` is the original CBAM's.
        gate_init: of ResNet-18 with CBAM: ``identity`` starts CBAM's gates near 1 (``sigmoid``: at 0.95),
            ``default`` leaves PyTorch's initialisation.
        reduction: of ResNet-18 with CBAM: reduction ratio of CBAM's shared MLP.
        dropout: probability of dropout before the classifier (AlexNet: before each of the hidden layers).
        pretrained: ``imagenet``, the path of a run folder or of a .safetensors file, the name of shipped
            weights, or nothing.
    """

    name: str = "resnet18_cbam"
    stem: str = "stride2"
    width: int = 64
    placement: str = "after"
    gate: str = "unit"
    gate_init: str = "identity"
    reduction: int = 16
    dropout: float = 0.0
    pretrained: str | None = None

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("stem", self.stem, STEMS),
            ("placement", self.placement, PLACEMENTS),
            ("gate", self.gate, GATES),
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
    """What the data ask of a network: image channels, height, width (pixels) and the class count.

    The bounds are those of a card that is read: sides as `ferdist prepare` makes them.
    """

    channels: Annotated[int, Meta(ge=1, le=4)]
    height: Annotated[int, Meta(ge=2, le=1024)]
    width: Annotated[int, Meta(ge=2, le=1024)]
    classes: Annotated[int, Meta(ge=2, le=10_000)]
