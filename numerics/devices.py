"""Which arithmetic, memory format and use of memory are fastest on a device."""

import ctypes
import os
import sys

import torch
from torch import nn

from scorefield.numerics.errors import ArgumentError

PRECISIONS = ("auto", "fp32", "bf16")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3      # malloc.h


def local_device(device: str) -> torch.device:
    """"auto" is cuda, else mps, else cpu; under torchrun each process gets its own GPU. ValueError where absent."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, there in available.items() if there)
    kind = device.partition(":")[0]
    if kind not in available:
        raise ArgumentError(f"unknown device {device!r}; choose from auto, {', '.join(available)}", "device")
    if not available[kind]:
        raise ArgumentError(f"device {device!r} is not available here; there is "
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
    """bfloat16 or None for float32. "auto": bfloat16 where the hardware multiplies it, which is 1.5 to 4 times faster.

    Raises ArgumentError for an unknown word.
    """
    if precision not in PRECISIONS:
        raise ArgumentError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}", "precision")
    if precision == "auto":
        precision = "bf16" if _multiplies_bf16(device) else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


def prefers_channels_last(device: torch.device, dtype: torch.dtype | None, training: bool = True) -> bool:
    """Whether a network in `dtype` (None: float32) is faster in channels_last: not on MPS, nor where it trains in bf16 on
    a CPU without AMX, since the gradient of GroupNorm costs more there than convolutions gain.
    """
    return device.type == "cuda" or (device.type == "cpu" and (dtype is None or not training or _cpu("amx_bf16")))


def set_memory_format(module: nn.Module, device: torch.device, autocast: torch.dtype | None, memory_format: str = "auto",
                      training: bool = True) -> None:
    """Put the weights in the memory format in which convolutions then work.

    memory_format  "channels_last", "contiguous", or "auto": channels_last where that is faster
    """
    if memory_format == "channels_last" or (memory_format == "auto" and prefers_channels_last(device, autocast, training)):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def prepare_sampling(network: nn.Module, precision: str, device: torch.device) -> None:
    """Change the network to what samples fastest in `precision`; ValueError for an unknown word.

    In bf16 its weights are held so, since under autocast every call would have to round them again, to the same.
    """
    dtype = autocast_dtype(precision, device)
    if dtype is not None:
        network.to(dtype)
    set_memory_format(network, device, dtype, training=False)


def keep_freed_memory(device: torch.device) -> None:
    """Tell glibc to keep what a step of training on the CPU frees for the next one.

    It would return most of it to Linux, and take it back page by page, which is about 4 % of a step.
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
