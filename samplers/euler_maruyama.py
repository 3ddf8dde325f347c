"""Euler-Maruyama for the reverse-time family (Song et al. 2021, appendix D; Kloeden and Platen 1992, section 9.1).

    x_s = x_t - h [f x_t - (1 + eta^2)/2 g^2 score(x_t, t)] + eta g sqrt(h) z,      h = t - s
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from samplers.base import CountedModel, GridSampler
from samplers.noise import NoiseStream


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(GridSampler):
    """Weak order 1, one evaluation a step.

    eta  noise of the reverse process: 1 the reverse-time SDE, 0 Euler on the probability-flow ODE
    """

    steps: int = 1000
    eta: float = 1.0
    order = 1

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def __post_init__(self) -> None:
        if not 0 <= self.eta < float("inf"):
            raise ValueError(f"eta must not be negative, got {self.eta} (--eta)")

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        t, h = times[:-1], -times.diff()
        g2 = model.sde.g2(t)
        keep = (1 - h * model.sde.drift(t)).tolist()
        of_eps = (-h * (1 + self.eta**2) / 2 * g2 / model.sde.sigma(t)).tolist()
        of_noise = (self.eta * (h * g2).sqrt()).tolist()
        for i in range(len(t)):
            x = x.mul(keep[i]).add_(model.eps(x, t[i]), alpha=of_eps[i])
            if noise is not None:
                x.add_(noise.normal(x), alpha=of_noise[i])
            yield x
