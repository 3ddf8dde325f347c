"""The reference process of a Schroedinger bridge, seen from the end that it is to reach.

A bridge joins a source at t = 0 and a target at t = 1. Its reference is a linear SDE, x_t = alpha(t) x_0 + sigma(t) eps. It
is seen from its goal: s = 0 there, s = 1 at the start of a path, so s = t toward the source and s = 1 - t toward the
target. With

    alpha(s)    the scale of x_s for a goal x_0; x_s / alpha(s) is Brownian motion, whichever way time runs
    V(s)        the variance of that motion from the goal to s, sigma(s)^2 = alpha(s)^2 V(s)
    u(s)        V(s) / V(1), from 0 at the goal to 1 at the start

a path between known ends x_0 (the goal) and x_1 (the start) is a Brownian bridge,

    x_s / alpha(s) = (1 - u) x_0 + u x_1 / alpha(1) + sqrt(V(1) u (1 - u)) z,          z ~ N(0, I).

De Bortoli et al. 2021, "Diffusion Schroedinger Bridge"; Shi et al. 2023, "Diffusion Schroedinger Bridge Matching", section
2; the marginals of a bridge of a linear SDE are those of Zhou et al. 2023, "Denoising Diffusion Bridge Models", equation 7.
"""

import copy
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.learned import LearnedVPSDE
from scorefield.sde_lib.sde import SDE, as_time

NEAR = 1e-5      # the flow of a bridge is followed between this time and 1 minus it
LEAST_ALPHA = 3e-3      # of the reference at its end: below, float32 knows nothing of the ends of a path


@dataclass(frozen=True)
class Step:
    """A step from s to s': x' = of_goal x_0 + of_start x_1 + of_x x + of_noise z, with the ends that are predicted at x."""

    of_goal: float
    of_start: float
    of_x: float
    of_noise: float

    def __call__(self, x: Tensor, goal: Tensor, start: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """x', all tensors of x's shape; the start is not needed where eta = 1."""
        x = torch.add(self.of_x * x, goal, alpha=self.of_goal)
        if start is not None:
            x = torch.add(x, start, alpha=self.of_start)
        return x if noise is None else torch.add(x, noise, alpha=self.of_noise)


class Reference(SDE):
    """The process `sde` as a bridge sees it that goes toward the source (`forward` False) or the target (True).

        reference = Reference(BrownianSDE(), forward=True)
        a, b, std = reference.between(s)           # x_s = a x_0 + b x_1 + std z

    `end` is alpha(1), and `total` is V(1), in the units of the goal.

    Raises ArgumentError for a process that is a chain, is learned, or forgets its beginning, alpha(t_max) < 0.003.
    """

    t_sample = NEAR

    def __init__(self, sde: SDE, forward: bool = False):
        if sde.steps is not None or isinstance(sde, LearnedVPSDE):
            raise ArgumentError(f"the reference of a bridge must be a fixed SDE in continuous time, such as brownian, vp or "
                                f"ve, got {sde}", "sde.name")
        self.sde, self.forward = sde, forward
        self._start: Any = None
        with torch.device("cpu"):      # numbers, whatever the default device
            ends = torch.tensor([0.0, sde.t_max], dtype=torch.float64)
            alpha, ratio = sde.alpha(ends), (sde.sigma(ends) / sde.alpha(ends)).square()
        if not float(alpha[1]) >= LEAST_ALPHA or not bool(ratio.isfinite().all()):
            raise ArgumentError(f"the reference of a bridge must remember where it began: alpha({sde.t_max:g}) is "
                                f"{float(alpha[1]):.2g} for {sde}; choose brownian, ve, or vp with a smaller beta_max",
                                "sde.name")
        self._first, self._all = float(ratio[0]), float(ratio[1] - ratio[0])
        self._scale = float(alpha[int(forward)])
        self.end = float(alpha[1 - int(forward)]) / self._scale

    def starting_at(self, start: Any) -> "Reference":
        """The same process, whose paths begin with `start`: an object with `sample` and `log_prob`, as a prior has."""
        other = copy.copy(self)
        other._start = start
        return other

    @property
    def content(self) -> Hashable | None:
        inner = self.sde.content
        return None if inner is None else (type(self), inner, self.forward, self.t_max)

    def __repr__(self) -> str:
        return f"a bridge over {self.sde}"

    @property
    def total(self) -> float:
        """V(1), in the units of the goal."""
        return self._all * self._scale**2

    def _time(self, s: float | Tensor) -> Tensor:
        """The time t of the process `sde`."""
        s = as_time(s)
        return self.sde.t_max * (1 - s if self.forward else s)

    def _passed(self, t: Tensor) -> Tensor:
        """The share of the variance that lies between t = 0 and t."""
        return ((self.sde.sigma(t) / self.sde.alpha(t)).square() - self._first) / self._all

    def share(self, s: float | Tensor) -> Tensor:
        """u(s)."""
        passed = self._passed(self._time(s))
        return 1 - passed if self.forward else passed

    def rest(self, s: float | Tensor) -> Tensor:
        """1 - u(s), without a cancellation."""
        passed = self._passed(self._time(s))
        return passed if self.forward else 1 - passed

    def alpha(self, s: float | Tensor) -> Tensor:
        return self.sde.alpha(self._time(s)) / self._scale

    def sigma(self, s: float | Tensor) -> Tensor:
        return self.alpha(s) * (self.total * self.share(s)).clamp(min=0).sqrt()

    def g2(self, s: float | Tensor) -> Tensor:
        return self.sde.t_max * self.sde.g2(self._time(s))

    def drift(self, s: float | Tensor) -> Tensor:
        return self.sde.t_max * self.sde.drift(self._time(s)) * (-1 if self.forward else 1)

    def between(self, s: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and std of x_s = a x_0 + b x_1 + std z, for the goal x_0 and the start x_1; of s's shape."""
        alpha, u, rest = self.alpha(s), self.share(s), self.rest(s)
        return alpha * rest, alpha * u / self.end, alpha * (self.total * u * rest).clamp(min=0).sqrt()

    def step(self, s: float, later: float, eta: float = 1.0) -> Step:
        """A step of a path from s to `later`, which is nearer to the goal; exact if the predicted ends are those of the
        path.

        eta  1: the Markov process of the bridge, which needs the goal only; 0: its probability flow, which draws no noise
             (the rules of DDIM and ancestral sampling between two ends; Zheng et al. 2024, "Diffusion Bridge Implicit
             Models", equation 12)
        """
        (u, rest), (v, left) = ((float(self.share(r)), float(self.rest(r))) for r in (s, later))
        a, b = float(self.alpha(s)), float(self.alpha(later))
        drawn = eta**2 * v * (u - v) / u
        kept = v / u if eta == 1 else math.sqrt(max(v * left - drawn, 0.0) / (u * rest))
        of_noise = b * math.sqrt(self.total * max(drawn, 0.0))
        return Step(b * (left - kept * rest), b * (v - kept * u) / self.end, b * kept / a, of_noise)

    @property
    def prior(self) -> Any:
        if self._start is None:
            raise ArgumentError("a bridge starts at examples of its other end; bind them: model.toward(goal, start)",
                                "start")
        return self._start


def crowded(steps: int, crowding: float, first: float = 1.0, last: float = 0.0) -> Tensor:
    """`steps` + 1 times from `first` down to `last`, float64 on the CPU, which crowd at both ends: r^c / (r^c + (1 - r)^c),
    with r uniform.
    """
    if steps < 1:
        raise ArgumentError(f"steps must be at least 1, got {steps}", "steps")
    times = warped(torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu"), crowding)
    return last + (first - last) * times


def warped(r: Tensor, crowding: float) -> Tensor:
    """r^c / (r^c + (1 - r)^c) for r in [0, 1]; c = 1 is r itself. ArgumentError for c outside [1, 8]."""
    if not 1 <= crowding <= 8:
        raise ArgumentError(f"crowding must lie in [1, 8], got {crowding}", "crowding")
    low, high = r.pow(crowding), (1 - r).pow(crowding)
    return low / (low + high)
