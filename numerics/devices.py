"""Choose the arithmetic, the memory format and the use of memory that are fastest on a device."""

import ctypes
import os
import sys

import torch
from torch import nn

from scorefield.numerics.errors import ArgumentError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3      # malloc.h


def local_device(device: str) -> torch.device:
    """"auto" is cuda, else mps, else cpu; under torchrun each process gets its own GPU. ValueError if it is missing."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, there in available.items() if there)
    kind = device.partition(":")[0]
    if kind not in available:
        raise ArgumentError(f"unknown device {device!r}; choose from auto, {', '.join(available)}", "device")
    if not available[kind]:
        raise ArgumentError(f"device {device!r} is not available here; choose from "
                            f"{', '.join(name for name, there in available.items() if there)}", "device")
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    try:
        found = torch.device(device)
        if found.type == "cuda":
            torch.cuda.get_device_properties(found)
    except (RuntimeError, AssertionError):
        raise ArgumentError(f"device {device!r} does not exist here", "device") from None
    return found


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16, float16 (for which training scales its loss), or None for float32. "auto": bfloat16 if the hardware
    multiplies it, which is 1.5 to 4 times faster.

    Raises ArgumentError for an unknown word.
    """
    if precision not in PRECISIONS:
        raise ArgumentError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}", "precision")
    if precision == "auto":
        precision = "bf16" if _multiplies_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def prefers_channels_last(device: torch.device, dtype: torch.dtype | None, training: bool = True) -> bool:
    """Whether a network in `dtype` (None: float32) is faster in channels_last. It is not on MPS, nor when it trains in bf16
    on a CPU without AMX: there the gradient of GroupNorm loses more than the convolutions gain.
    """
    return device.type == "cuda" or (device.type == "cpu" and (dtype is None or not training or _cpu("amx_bf16")))


def set_memory_format(module: nn.Module, device: torch.device, autocast: torch.dtype | None, memory_format: str = "auto",
                      training: bool = True) -> None:
    """Put the weights in a memory format; convolutions then work in it.

    memory_format  "channels_last", "contiguous", or "auto": channels_last if that is faster
    """
    if memory_format == "channels_last" or (memory_format == "auto" and prefers_channels_last(device, autocast, training)):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def prepare_sampling(network: nn.Module, precision: str, device: torch.device) -> None:
    """Change the network to the dtype and memory format that sample fastest in `precision`; ValueError for an unknown word.

    For bf16 the weights themselves become bf16, since autocast would round them to the same values in every call.
    """
    dtype = autocast_dtype(precision, device)
    if dtype is not None:
        network.to(dtype)
    set_memory_format(network, device, dtype, training=False)


def keep_freed_memory(device: torch.device) -> None:
    """Make glibc keep the memory that a training step on the CPU frees, for the next step.

    Otherwise glibc returns most of it to Linux and gets it back page by page, which takes about 4 % of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if device.type == "cpu" and sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**25)


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)      # Ampere
    return device.type == "cpu" and (_cpu("amx_bf16") or _cpu("avx512_bf16"))


def _cpu(capability: str) -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):      # older torch
        return False
    return bool(torch.cpu.get_capabilities().get(capability, False))
