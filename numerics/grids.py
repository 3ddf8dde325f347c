"""Time grids: t_0 = t_max > t_1 > ... > t_steps = t_end, float64 (steps + 1,). Any sampler runs on any grid."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.kept import Kept

MAX_STEPS = 1_000_000
MOST_KEPT = 10_000      # steps of a grid that is kept for the next time
_KEPT: Kept[Tensor] = Kept()


class Process(Protocol):
    """What a grid needs from a forward process: its first and last time, its half log-SNR, and the inverse of that."""

    t_max: float
    t_min: float
    steps: int | None

    @property
    def content(self) -> Hashable | None: ...      # all that lambda depends on; None: keep nothing of it

    def half_log_snr(self, t: float | Tensor, /) -> Tensor: ...

    def time(self, half_log_snr: float | Tensor, /) -> Tensor: ...


def uniform(sde: Process, steps: int, t_end: float) -> Tensor:
    """Equal steps in t."""
    return torch.linspace(sde.t_max, t_end, steps + 1, dtype=torch.float64)


def quadratic(sde: Process, steps: int, t_end: float) -> Tensor:
    """Equal steps in sqrt(t) (Song, Meng and Ermon 2021, "DDIM", appendix D.2)."""
    return torch.linspace(sde.t_max**0.5, t_end**0.5, steps + 1, dtype=torch.float64).square()


def logsnr(sde: Process, steps: int, t_end: float) -> Tensor:
    """Equal steps in the half log-SNR lambda (Lu et al. 2022, "DPM-Solver", section 3.4)."""
    first, last = sde.half_log_snr(sde.t_max), sde.half_log_snr(t_end)
    return sde.time(torch.linspace(float(first), float(last), steps + 1, dtype=torch.float64))


def karras(sde: Process, steps: int, t_end: float, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma / alpha)^(1 / rho) (Karras et al. 2022, "EDM", equation 5)."""
    first, last = (float(torch.exp(-sde.half_log_snr(t) / rho)) for t in (sde.t_max, t_end))
    return sde.time(-rho * torch.linspace(first, last, steps + 1, dtype=torch.float64).log())


def sinh(sde: Process, steps: int, t_end: float, width: float = 0.8) -> Tensor:
    """Equal steps in asinh(lambda / width): densest where signal and noise have the same size.

    The score changes most there; far from there the flow is nearly that of one Gaussian.
    """
    ends = [math.asinh(float(sde.half_log_snr(t)) / width) for t in (sde.t_max, t_end)]
    return sde.time(width * torch.linspace(ends[0], ends[1], steps + 1, dtype=torch.float64).sinh())


def strided(sde: Process, steps: int, t_end: float, spacing: str = "linspace") -> Tensor:
    """Rounded indices i of a chain, at t = t_max (i + 1)/N; N is the chain's length, or 1000 for an SDE without a chain.

    "linspace": equally spaced from N - 1 to the index of t_end. The other spacings are those of diffusers for
    n = steps + 1 evaluations, of which the last is a denoising step; they ignore t_end. "leading": multiples of N // n
    down to 0. "trailing": from N - 1 down by N / n (Lin et al. 2024, table 2).
    """
    n = sde.steps or 1000
    if steps + 1 > n:
        raise ArgumentError(f"a strided grid of a chain of {n} indices has at most {n - 1} steps between them, got {steps}",
                            "steps")
    if spacing == "leading":
        indices = torch.arange(steps, -1, -1) * (n // (steps + 1))
    elif spacing == "trailing":
        indices = torch.arange(n, 0, -n / (steps + 1), dtype=torch.float64)[:steps + 1].round() - 1
    else:
        indices = torch.linspace(n - 1, max(round(t_end / sde.t_max * n), 1) - 1, steps + 1, dtype=torch.float64).round()
    return sde.t_max * (indices.double() + 1) / n


GRIDS: dict[str, Callable[[Process, int, float], Tensor]] = {
    "uniform": uniform, "quadratic": quadratic, "logsnr": logsnr, "karras": karras, "sinh": sinh, "strided": strided,
    "strided_leading": partial(strided, spacing="leading"), "strided_trailing": partial(strided, spacing="trailing"),
}


def _named(grid: str, sde: Process, steps: int, t_end: float) -> Tensor:
    def make() -> Tensor:
        times = GRIDS[grid](sde, steps, t_end)
        if not grid.startswith("strided"):
            times[0], times[-1] = sde.t_max, t_end
        return times

    if sde.content is None or steps > MOST_KEPT:
        return make()
    return _KEPT.of((grid, sde.content, sde.t_max, sde.steps, steps, t_end), make).clone()


def make_grid(grid: str | Sequence[float], sde: Process, steps: int, t_end: float) -> Tensor:
    """The grid of that name, or the listed times themselves; ValueError unless the times decrease and lie in [t_min, t_max].

    The ends of grids in continuous time are set exactly, without the rounding of lambda's inverse.
    """
    if isinstance(grid, str):
        if grid not in GRIDS:
            raise ArgumentError(f"unknown grid {grid!r}; choose from {', '.join(GRIDS)}", "grid")
        if not 1 <= steps <= MAX_STEPS:
            raise ArgumentError(f"steps must be at least 1 and at most {MAX_STEPS}, got {steps}", "steps")
        if not sde.t_min <= t_end < sde.t_max:
            raise ArgumentError(f"t_end must lie in [{sde.t_min:g}, {sde.t_max:g}) for {sde}, got {t_end}", "t_end")
        times = _named(grid, sde, steps, t_end)
    else:
        times = torch.as_tensor(grid, dtype=torch.float64)
    if not (times.ndim == 1 and len(times) > 1 and bool((times.diff() < 0).all())
            and times[0] <= sde.t_max and times[-1] >= sde.t_min):
        raise ArgumentError(f"a grid must decrease within [{sde.t_min:g}, {sde.t_max:g}], got {times.tolist()[:4]} ...",
                            "grid")
    return times
