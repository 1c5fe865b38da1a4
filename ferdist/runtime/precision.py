"""Mixed precision: which type the convolutions run in."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import AbstractContextManager, nullcontext

import torch

from ferdist.environment import cpu_name
from ferdist.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type that autocast uses, None for plain fp32.

    ``auto`` is bf16 where the device gains from it, else fp16 on a GPU, else fp32.

    Raises:
        ConfigError: if bf16 is asked for on a GPU that lacks it.
    """
    if device.type == "cuda":
        native_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and not native_bf16:
            raise ConfigError("train.precision is bf16, which this GPU lacks: use fp16 or auto")
        fallback: torch.dtype | None = torch.float16
    else:
        native_bf16 = _cpu_gains_from_bf16()
        fallback = None
    auto = torch.bfloat16 if native_bf16 else fallback
    return {"auto": auto, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


def precision_name(dtype: torch.dtype | None) -> str:
    """The type of autocast, None for fp32, by the name that ``train.precision`` has for it."""
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}
    return names[dtype]


def _cpu_gains_from_bf16() -> bool:
    """Whether this CPU multiplies bf16 faster than fp32: with AMX, or AMD's AVX512-BF16.

    Intel's with AVX512-BF16 alone are slower in bf16 (docs/performance.md).
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and not cpu_name().startswith("Intel")


def scoring_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """As `autocast_dtype`, but plain fp32 on a device that lacks the type the model was trained in."""
    try:
        return autocast_dtype(precision, device)
    except ConfigError:
        return None


def configure_kernels(deterministic: bool, precision: str) -> None:
    """Choose deterministic kernels, and real fp32 where fp32 is asked for, in this process.

    Args:
        deterministic: ask cuDNN, cuBLAS and PyTorch for kernels that give the same bits each time.
        precision: ``train.precision``; with ``fp32`` TF32 is off.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # It would fill every new tensor, to make reading an uninitialised one repeatable.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc keep what was freed for the next step's tensors.

    By default it returns large blocks to the system, and each step pays for the first touch of every page:
    keeping them makes a CPU's step 8 % (stem stride2) to 16 % (stride1) faster (docs/performance.md).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to ``dtype`` on ``device``, or nothing where ``dtype`` is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
