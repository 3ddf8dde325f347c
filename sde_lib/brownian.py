"""Brownian motion: alpha = 1, sigma = s sqrt(t), dx = s dw. The usual reference process of a Schroedinger bridge."""

import math

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.prior import GaussianPrior
from scorefield.sde_lib.sde import SDE, as_time


class BrownianSDE(SDE):
    """Brownian motion with standard deviation `std` at t = 1; prior N(0, std^2)."""

    t_sample = 1e-5

    def __init__(self, std: float = 1.0):
        if not 0 < std < math.inf:
            raise ArgumentError(f"std must be positive and finite, got {std}", "std")
        self.std = std

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.ones_like(as_time(t))

    def log_alpha(self, t: float | Tensor) -> Tensor:
        return torch.zeros_like(as_time(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        return self.std * as_time(t).sqrt()

    def drift(self, t: float | Tensor) -> Tensor:
        return torch.zeros_like(as_time(t))

    def g2(self, t: float | Tensor) -> Tensor:
        return torch.full_like(as_time(t), self.std**2)

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        return torch.exp(-2 * as_time(half_log_snr)) / self.std**2

    @property
    def prior(self) -> GaussianPrior:
        return GaussianPrior(self.std)
