"""The sub-VP SDE: dx = -beta/2 x dt + sqrt(beta (1 - alpha^4)) dw, with VP's alpha and sigma = 1 - alpha^2.

Song et al. 2021, section 3.4 and equation 29: its variance is at most that of VP, which helps likelihoods.
"""

import torch
from torch import Tensor

from scorefield.sde_lib.sde import SDE, as_time
from scorefield.sde_lib.vp import LinearBeta


class SubVPSDE(LinearBeta, SDE):
    """Sub-VP with linear beta."""

    def alpha(self, t: float | Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: float | Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def drift(self, t: float | Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def g2(self, t: float | Tensor) -> Tensor:
        return self.beta(t) * -torch.expm1(4 * self.log_alpha(t))

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        # exp(-lambda) = 1/alpha - alpha = -2 sinh(log alpha)
        return self._time_of_log_alpha(-torch.asinh(0.5 * torch.exp(-as_time(half_log_snr))))
