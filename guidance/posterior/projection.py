"""Methods that correct the model's x_0 by the measurement, without derivatives of the network.

With r = y - A x_0, the eigenvalues e of A A^T, rho = sigma / alpha (the noise of x_t / alpha) and s = noise_std, the part of
r along an eigenvector is taken over by a gain between 0 and 1:

    shift = A^T U diag(gain / e) U^T r

    replacement  gain = 1 while rho > s / e^(1/2), then 0: the measurement, with the noise that x_t / alpha has anyway, takes
                 the place of the measured part, and below the model goes on alone. Song et al. 2021, "Score-Based Generative
                 Modeling through SDEs", appendix I.2. Under sampler `repaint` with its resampling: Lugmayr et al. 2022,
                 "RePaint"
    ddnm         gain = min(1, rho e^(1/2) / s). Wang et al. 2023, "Zero-Shot Image Restoration Using Denoising Diffusion
                 Null-Space Model" (DDNM+), equations 17 to 19 with their a = 1
    ddrm         gain = eta_b where rho >= s / e^(1/2), else (1 - eta^2)^(1/2) rho e^(1/2) / s. Kawar et al. 2022, "Denoising
                 Diffusion Restoration Models", equations 7 and 8, of which these are the means
    diffpir      gain = e / (e + lambda s^2 / rho^2): the x nearest to both, (|y - A x|^2 + lambda s^2 / rho^2 |x - x_0|^2) /
                 2. Zhu et al. 2023, "Denoising Diffusion Models for Plug-and-Play Image Restoration"

These are where the score is grad log psi if the Jacobian of x_0 is alpha r^2 / sigma^2 I, r^2 being PiGDM's variance of data
of unit standard deviation: psi = N(y; A x_0, U diag(max(r^2 e / gain, s^2)) U^T). A network's Jacobian is another, so psi's
gradient is near, no more. None is exact for Gaussian data, but where the measured and the other elements are independent and
y has no noise: there all are, ddrm with eta_b = 1.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.guidance.posterior.base import TINY, Method, Situation
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option


class Projection(Method):
    """A subclass says the gain of each eigenvector."""

    differentiates = False

    @abstractmethod
    def gain(self, reliability: Tensor) -> Tensor:
        """The gain where rho e^(1/2) / s, the noise of x_t beside that of y, is `reliability`; infinite without noise."""

    def guide(self, at: Situation) -> tuple[Tensor, Tensor]:
        sigma2, e = at.sigma.square(), at.eigenvalues
        rho2 = at.per_measurement(sigma2 / at.alpha.square())
        reliability = (rho2 * e).sqrt() / at.noise_std if at.noise_std else torch.full_like(rho2 * e, torch.inf)
        gain = torch.where(at.linear.reached, self.gain(reliability), 0)
        known = at.per_measurement(sigma2 / (at.alpha.square() + sigma2))
        shift = at.linear.adjoint(at.linear.filtered(at.residual, torch.where(gain > 0, gain / e, 0)))
        widened = torch.where(gain > 0, known * e / gain.clamp(min=TINY), 0)
        # where the gain is 0 the measurement says nothing: it has its own noise and that of x_0
        variance = torch.where(gain > 0, widened, known * e + at.noise_std**2).clamp(min=max(at.noise_std**2, TINY))
        return shift, at.gaussian(variance)[1]


@dataclass(frozen=True)
class Replacement(Projection):
    """The measured part is replaced by the measurement."""

    def gain(self, reliability: Tensor) -> Tensor:
        return (reliability > 1).to(reliability)


@dataclass(frozen=True)
class DDNM(Projection):
    """The null-space model, with noise."""

    def gain(self, reliability: Tensor) -> Tensor:
        return reliability.clamp(max=1)


@dataclass(frozen=True)
class DDRM(Projection):
    """Restoration along singular vectors."""

    eta: float = option(0.85, "where the measurement is noisier than x_t: 0 uses all of its noise as that of the step")
    eta_b: float = option(1.0, "where x_t is noisier: the share of the measurement")

    def __post_init__(self) -> None:
        if not (0 <= self.eta <= 1 and 0 < self.eta_b <= 1):
            raise ArgumentError(f"eta must lie in [0, 1] and eta_b in (0, 1], got {self.eta:g} and {self.eta_b:g}", "method")

    def gain(self, reliability: Tensor) -> Tensor:
        return torch.where(reliability >= 1, self.eta_b, (1 - self.eta**2) ** 0.5 * reliability.clamp(max=1))


@dataclass(frozen=True)
class DiffPIR(Projection):
    """Plug-and-play restoration: a proximal step at the model's x_0."""

    weight: float = option(1.0, "lambda, how much the model's x_0 counts beside the measurement")

    def __post_init__(self) -> None:
        if not 0 < self.weight < 1e9:
            raise ArgumentError(f"weight must be positive, got {self.weight:g}", "method")

    def gain(self, reliability: Tensor) -> Tensor:
        return 1 / (1 + self.weight / reliability.square())
