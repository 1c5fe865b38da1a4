"""Mixed precision: which type the convolutions run in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ferdist.errors import ConfigError


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type that autocast uses, None for plain fp32.

    ``auto`` is bf16 where the device computes in it at full speed, else fp16 on a GPU, else fp32.

    Raises:
        ConfigError: if bf16 is asked for on a GPU that lacks it.
    """
    if device.type == "cuda":
        native_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and not native_bf16:
            raise ConfigError("train.precision is bf16, which this GPU lacks: use fp16 or auto")
        fallback: torch.dtype | None = torch.float16
    else:
        native_bf16 = torch.cpu._is_avx512_bf16_supported()
        fallback = None
    auto = torch.bfloat16 if native_bf16 else fallback
    return {"auto": auto, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to ``dtype`` on ``device``, or nothing where ``dtype`` is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
