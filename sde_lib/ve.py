"""The variance-exploding SDE: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, the limit of SMLD.

Song et al. 2021, equation 30. sigma(0) is sigma_min, not 0: the data are seen through that much noise.
"""

import math

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.prior import GaussianPrior
from scorefield.sde_lib.sde import SDE, as_time


class VESDE(SDE):
    """VE with geometric sigma; prior N(0, sigma_max^2)."""

    t_sample = 1e-5

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0):
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ArgumentError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}", "sigma_min", "sigma_max")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self._log_ratio = math.log(sigma_max / sigma_min)

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.ones_like(as_time(t))

    def log_alpha(self, t: float | Tensor) -> Tensor:
        return torch.zeros_like(as_time(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self._log_ratio * as_time(t))

    def drift(self, t: float | Tensor) -> Tensor:
        return torch.zeros_like(as_time(t))

    def g2(self, t: float | Tensor) -> Tensor:
        return 2 * self._log_ratio * self.sigma(t).square()

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        return (-as_time(half_log_snr) - math.log(self.sigma_min)) / self._log_ratio

    @property
    def prior(self) -> GaussianPrior:
        return GaussianPrior(self.sigma_max)
