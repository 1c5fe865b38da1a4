"""Start from weights that were trained before."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from ferdist.errors import ConfigError, RunError
from ferdist.models import classifier_name, weights
from ferdist.models.cbam import CBAM
from ferdist.models.resnet import ResNet18

IMAGENET = "imagenet"
_log = logging.getLogger(__name__)


def load_pretrained(network: nn.Module, source: str | None) -> None:
    """Load weights into a network, in place; nothing where ``source`` is None.

    The classifier is taken over only if its class count fits. ImageNet's first layer has three channels and
    7x7 pixels: it is summed over the channels for gray images (a gray image shown as RGB gives the same
    features) and left as initialised where the stem has another kernel; attention has no ImageNet weights and
    keeps its initialisation.

    Args:
        network: a fresh network.
        source: ``imagenet``, the path of a run folder or of a .safetensors file, the name of shipped weights
            (``fer2013`` and ``ferplus`` are short for them), or None.

    Raises:
        ConfigError: if the weights are not available or do not fit.
    """
    if source is None:
        return
    if source == IMAGENET:
        _load_imagenet(network)
        return
    given, gate = _read(source)
    forms = {module.form for module in network.modules() if isinstance(module, CBAM)}
    if gate is not None and forms - {gate}:
        raise ConfigError(
            f"model.pretrained: {source}: it was trained with model.gate={gate}: set the same, "
            "or its attention would compute something else"
        )
    _fit(network, given, source)


def _load_imagenet(network: nn.Module) -> None:
    from torchvision.models import ResNet18_Weights

    if not isinstance(network, ResNet18):
        raise ConfigError("model.pretrained is imagenet, which exists only for resnet18 and resnet18_cbam")
    try:
        given = ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        url = ResNet18_Weights.IMAGENET1K_V1.url
        raise ConfigError(
            f"model.pretrained is imagenet, but torchvision cannot download its weights ({error}): "
            f"put {url.rpartition('/')[2]} into {cache}"
        ) from None
    stem = given.pop("conv1.weight")
    own = network.conv1.weight
    if own.shape[2:] == stem.shape[2:]:
        given["conv1.weight"] = stem.sum(1, keepdim=True) if own.shape[1] == 1 else stem
    else:
        _log.warning("model.stem's kernel is not ImageNet's 7x7: the first layer keeps its random weights")
    _fit(network, given, IMAGENET, whole=False)


def _read(source: str) -> tuple[dict[str, Tensor], str | None]:
    """The weights, and ``model.gate`` of the network that they are from where that is known."""
    if Path(source).is_dir():
        from ferdist.evaluation.model import load_trained

        trained = load_trained(source, None, torch.device("cpu"))
        return trained.network.state_dict(), trained.card.config.model.gate
    try:
        path = weights.find(source)
        if path is not None:
            from ferdist.config import from_dict

            tensors, facts = weights.read(path)
            stored = facts.get("config")
            return tensors, from_dict(stored, path).model.gate if isinstance(stored, dict) else None
    except RunError as error:
        raise ConfigError(f"model.pretrained: {error}") from None
    raise ConfigError(
        f"model.pretrained is {source!r}: it must be imagenet, a run folder, a .safetensors file that exists "
        f"or the name of shipped weights ({weights.shipped_text()})"
    )


def _fit(network: nn.Module, given: dict[str, Tensor], source: str, *, whole: bool = True) -> None:
    """Copy the weights. Only the classifier may differ; those of a ``whole`` network must fill this one."""
    own = network.state_dict()
    head = classifier_name(network) + "."
    fits = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    expected = own.keys() | given.keys() if whole else given.keys()
    bad = [k for k in expected if k not in fits and not k.startswith(head)]
    if bad:
        raise ConfigError(
            f"model.pretrained: {source}: {len(bad)} weights do not fit this network, such as {min(bad)}: "
            + (
                "use the model settings that it was trained with"
                if whole
                else "ImageNet's have model.width=64"
            )
        )
    if whole and not any(k.startswith(head) for k in fits):
        _log.warning("%s has a different class count: the classifier keeps its random weights", source)
    network.load_state_dict(fits, strict=False)
