"""The probability-flow ODE by fixed steps: Euler, Heun and the classical Runge-Kutta method of order 4.

    scaling "x":   dx/dt = f x + g^2 / (2 sigma) eps(x, t)                      (Song et al. 2021, equation 13)
    scaling "ve":  dz/dc = eps(x, t),  z = x / alpha,  c = sigma / alpha        (Karras et al. 2022, equation 4)

In the second the flow of any SDE is that of a variance-exploding one, and Euler is DDIM.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.base import CountedModel, GridSampler

SCALINGS = ("x", "ve")
SCALING = "variables of a step: x over t, or ve: x / alpha over sigma / alpha"
Field = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class FixedODE(GridSampler):
    """A Runge-Kutta method on a grid; a subclass defines its step."""

    scaling: str = option("x", SCALING)
    stochastic = False

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise ArgumentError(f"unknown scaling {self.scaling!r}; choose from {', '.join(SCALINGS)}", "scaling")

    @abstractmethod
    def step(self, field: Field, y: Tensor, c: float, h: float, last: bool) -> Tensor:
        """y after a step of h (negative) from c; `last` is whether it is the last one."""

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        sde = model.sde
        if self.scaling == "x":
            clock, scale = times.tolist(), [1.0] * len(times)

            def field(y: Tensor, c: float) -> Tensor:
                t = torch.tensor(c, dtype=torch.float64)
                return model.eps(y, t).mul(float(sde.g2(t) / (2 * sde.sigma(t)))).add_(y, alpha=float(sde.drift(t)))
        else:
            clock, scale = torch.exp(-sde.half_log_snr(times)).tolist(), sde.alpha(times).tolist()
            known = dict(zip(clock, times, strict=True))       # the grid's own times, free of the inverse's rounding

            def field(y: Tensor, c: float) -> Tensor:
                t = known[c] if c in known else sde.time(-torch.tensor(c, dtype=torch.float64).log())
                return model.eps(y * float(sde.alpha(t)), t)

        y = x / scale[0]
        for i in range(len(clock) - 1):
            y = self.step(field, y, clock[i], clock[i + 1] - clock[i], last=i == len(clock) - 2)
            yield y * scale[i + 1]


@dataclass(frozen=True, kw_only=True)
class Euler(FixedODE):
    """Order 1, one evaluation a step."""

    order = 1

    def step(self, field: Field, y: Tensor, c: float, h: float, last: bool) -> Tensor:
        return torch.add(y, field(y, c), alpha=h)


@dataclass(frozen=True, kw_only=True)
class Heun(FixedODE):
    """Order 2, two evaluations a step but one in the last, which is Euler's (Karras et al. 2022, algorithm 1)."""

    order = 2

    def step(self, field: Field, y: Tensor, c: float, h: float, last: bool) -> Tensor:
        first = field(y, c)
        if last:
            return torch.add(y, first, alpha=h)
        second = field(torch.add(y, first, alpha=h), c + h)
        return torch.add(y, first, alpha=h / 2).add_(second, alpha=h / 2)


@dataclass(frozen=True, kw_only=True)
class RungeKutta4(FixedODE):
    """Order 4, four evaluations a step."""

    order = 4

    def step(self, field: Field, y: Tensor, c: float, h: float, last: bool) -> Tensor:
        k1 = field(y, c)
        k2 = field(torch.add(y, k1, alpha=h / 2), c + h / 2)
        k3 = field(torch.add(y, k2, alpha=h / 2), c + h / 2)
        k4 = field(torch.add(y, k3, alpha=h), c + h)
        return torch.add(y, k1, alpha=h / 6).add_(k2, alpha=h / 3).add_(k3, alpha=h / 3).add_(k4, alpha=h / 6)
