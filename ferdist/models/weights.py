"""Weights as one safetensors file with all that is needed to use them; those that ferdist ships, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ferdist.errors import RunError, reason_of
from ferdist.io import MIB, open_untrusted

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX: Final = ".safetensors"
LIMIT: Final = 2**13 * MIB
"""Largest file of weights that is read: above a thousand million parameters in fp32."""
SHIPPED: Final = Path(__file__).parent.parent / "weights"
SHORT_NAMES: Final = {"fer2013": "fer2013_resnet18_cbam", "ferplus": "ferplus_resnet18_cbam"}


def shipped() -> list[str]:
    """Names of the weights that come with ferdist."""
    return sorted(path.stem for path in SHIPPED.glob(f"*{SUFFIX}"))


def shipped_text() -> str:
    """What is shipped, for a message."""
    return f"available: {', '.join(shipped())}" if shipped() else "this version ships none"


def find(model: str) -> Path | None:
    """The file that ``model`` names: a .safetensors file, or else shipped weights; None if it is neither.

    Raises:
        RunError: if it ends in .safetensors and there is no such file.
    """
    path = Path(model)
    if path.suffix == SUFFIX:
        if not path.exists():
            raise RunError(f"{path}: there is no such file")
        return path
    name = SHORT_NAMES.get(model, model)
    return SHIPPED / f"{name}{SUFFIX}" if name in shipped() and not path.exists() else None


def check_model(model: str) -> None:
    """Refuse what names no model, before anything is imported that takes seconds.

    Raises:
        RunError: if it is neither a run folder, a .safetensors file nor shipped weights.
    """
    if find(model) is None and not Path(model).exists():
        raise RunError(
            f"{model}: no such run folder, .safetensors file or shipped weights ({shipped_text()})"
        )


def encode(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """A safetensors file of weights in half precision.

    Matrices and kernels become fp16. Vectors (biases, batch norm's weights and statistics) stay as they are:
    they are a thousandth of the size, and a variance need not lie in fp16's range.

    Args:
        path: of the file, for the error.
        tensors: by name.
        facts: plain values by name, for the metadata: each is stored as JSON.

    Raises:
        RunError: if a weight is not finite in fp16.
    """
    import torch
    from safetensors.torch import save

    halved = {}
    for name, tensor in tensors.items():
        smaller = tensor.half() if tensor.is_floating_point() and tensor.dim() > 1 else tensor
        if not torch.isfinite(smaller).all():
            raise RunError(f"{path}: {name} is not finite in fp16: these weights cannot be used")
        halved[name] = smaller.contiguous().cpu()
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    return save(halved, metadata)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a safetensors file; no facts where `encode` did not make it.

    Raises:
        RunError: if it is not a safetensors file.
    """
    from safetensors import safe_open

    try:
        open_untrusted(path, LIMIT).close()
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except Exception as error:  # for some damages not one of its own
        raise RunError(f"{path}: not a safetensors file: {reason_of(error)}") from None
    try:
        return tensors, {name: json.loads(value) for name, value in metadata.items()}
    except (ValueError, RecursionError):
        return tensors, {}
