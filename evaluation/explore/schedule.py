"""The schedule of a forward process: alpha, sigma, log-SNR and g^2 over time, and the betas of its chain.

alpha_bar of Ho et al. 2020 is alpha^2. The log-SNR is 2 lambda = log(alpha^2 / sigma^2) (Kingma et al. 2021, section 3.2). A
step of a chain adds the variance beta_i = sigma_i^2 - (alpha_i / alpha_(i-1))^2 sigma_(i-1)^2; where the variance is
preserved, beta_i = 1 - alpha_bar_i / alpha_bar_(i-1), and in continuous time beta(t) = g^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import SDE, Chain


@dataclass(frozen=True)
class Curves:
    """Each (points,), float64: times from t_min to t_max, alpha, sigma, log_snr, and g2 per unit of time.

    betas  (steps,), of the chain that the SDE was made from; None without one
    """

    times: Tensor
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    g2: Tensor
    betas: Tensor | None


def schedule(sde: SDE, points: int = 201) -> Curves:
    """The curves at equally spaced times.

        curves = schedule(VPSDE(), points=101)

    Raises ArgumentError for fewer than 2 points.
    """
    if points < 2:
        raise ArgumentError(f"a curve needs at least 2 points, got {points}", "frames")
    times = torch.linspace(sde.t_min, sde.t_max, points, dtype=torch.float64)
    alpha, sigma = sde.alpha(times).expand(points), sde.sigma(times).expand(points)
    return Curves(times, alpha, sigma, 2 * sde.half_log_snr(times), sde.g2(times).expand(points), _betas(sde))


def _betas(sde: SDE) -> Tensor | None:
    if sde.steps is None:
        return None
    index = torch.arange(sde.steps)
    return Chain.from_sde(sde, sde.steps).between(index, index - 1).variance
