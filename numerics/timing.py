"""Short measurements of a machine, for what cannot be told from what it says of itself."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

SHORTEST = 0.02      # seconds of a product that is measured
LARGEST = 8192       # of its matrices


def machine_of(device: torch.device) -> str:
    """The processor or GPU, the number of threads and the version of PyTorch: on what a measurement depends."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return (f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
            f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "model\t"))]
    return " ".join([*named[:2], platform.machine()])


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """That a call takes, with what it has started on the device."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - start


def faster(ways: Sequence[Callable[[], object]], device: torch.device, rounds: int, margin: float) -> int:
    """The number of the fastest way, in alternating rounds; the first one, unless another is faster by `margin`.

    Each is called once before. The times that are compared are medians over the rounds of the ratio to the first way.
    """
    for way in ways:
        seconds(way, device)
    taken = [[seconds(way, device) for way in ways] for _ in range(rounds)]
    ratios = [statistics.median(row[i] / row[0] for row in taken) for i in range(len(ways))]
    best = min(range(len(ways)), key=ratios.__getitem__)
    return best if ratios[best] < 1 - margin else 0


def peak_operations(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in a product of square matrices: the best of three, of a size that takes 20 ms."""
    n = 256
    with torch.no_grad():
        while True:
            a = torch.ones(n, n, device=device, dtype=dtype)
            seconds(lambda a=a: a @ a, device)      # type: ignore[misc]
            best = min(seconds(lambda a=a: a @ a, device) for _ in range(3))      # type: ignore[misc]
            if best >= SHORTEST or n >= LARGEST:
                return 2 * n**3 / best
            n *= 2
