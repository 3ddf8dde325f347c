"""Variance-preserving SDEs: alpha^2 + sigma^2 = 1, dx = -beta/2 x dt + sqrt(beta) dw.

The continuous-time limit of DDPM (Song et al. 2021, section 3.4 and appendix B). A schedule is the integral of beta:
log alpha(t) = -1/2 int_0^t beta.
"""

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, as_time


class VariancePreserving(SDE):
    """A subclass writes `log_alpha` and `beta`."""

    @abstractmethod
    def log_alpha(self, t: float | Tensor) -> Tensor:
        """log alpha(t) <= 0, accurate near t = 0."""

    @abstractmethod
    def beta(self, t: float | Tensor) -> Tensor:
        """beta(t) = -2 (log alpha)', per unit of time."""

    def alpha(self, t: float | Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: float | Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def drift(self, t: float | Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def g2(self, t: float | Tensor) -> Tensor:
        return self.beta(t)


class InvertibleVP(VariancePreserving):
    """A process whose `log_alpha` has an inverse, written by a subclass; others find the time by bisection."""

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        # alpha^2 = sigmoid(2 lambda)
        return self._time_of_log_alpha(-0.5 * F.softplus(-2 * as_time(half_log_snr), threshold=80))

    @abstractmethod
    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """The inverse of `log_alpha`."""


class LinearBeta:
    """beta(t) = beta_min + t (beta_max - beta_min); shared by VP and sub-VP (Song et al. 2021, equation 32)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        if not 0 < beta_min <= beta_max < math.inf:
            raise ArgumentError(f"need 0 < beta_min <= beta_max, got {beta_min} and {beta_max}", "beta_min", "beta_max")
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: float | Tensor) -> Tensor:
        return self.beta_min + as_time(t) * (self.beta_max - self.beta_min)

    def log_alpha(self, t: float | Tensor) -> Tensor:
        t = as_time(t)
        return -t * (0.25 * t * (self.beta_max - self.beta_min) + 0.5 * self.beta_min)

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        integral = -2 * log_alpha      # of beta over [0, t]; the stable root of a quadratic in t
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return 2 * integral / (self.beta_min + root)


class VPSDE(LinearBeta, InvertibleVP):
    """VP with linear beta: the SDE of DDPM's linear schedule."""


class CosineVPSDE(InvertibleVP):
    """VP with alpha(t) = cos(theta) / cos(theta_0), theta = pi/2 (t + s)/(1 + s) (Nichol and Dhariwal 2021, eq. 17).

    The published alpha reaches 0 at t = 1, where beta diverges; they cap beta_i at 0.999 of 1000 steps. So beta(t) is
    capped at `beta_max` here, which keeps the published curve up to t = 0.998 and gives alpha(1) = 0.0011.
    sigma is a product of sines, free of the cancellation in 1 - alpha^2.
    """

    def __init__(self, s: float = 0.008, beta_max: float = 999.0):
        if not (0 < s < 1 and 20 <= beta_max < math.inf):
            raise ArgumentError(f"need 0 < s < 1 and beta_max >= 20, got s={s} and beta_max={beta_max}", "s")
        self.s, self.beta_max = s, beta_max
        self._rate = math.pi / 2 / (1 + s)                                  # d theta / dt
        self._theta0 = self._rate * s
        self._t_cap = math.atan(beta_max / (2 * self._rate)) / self._rate - s   # from here on beta = beta_max

    def beta(self, t: float | Tensor) -> Tensor:
        return 2 * self._rate * torch.tan(self._theta0 + self._rate * as_time(t).clamp(max=self._t_cap))

    def _sin2(self, t: Tensor) -> Tensor:
        """sigma^2 of the uncapped curve: sin(theta - theta_0) sin(theta + theta_0) / cos^2 theta_0."""
        turn = self._rate * t
        return torch.sin(turn) * torch.sin(turn + 2 * self._theta0) / math.cos(self._theta0) ** 2

    def log_alpha(self, t: float | Tensor) -> Tensor:
        t = as_time(t)
        before = t.clamp(max=self._t_cap)
        # log1p is exact near t = 0; near t = 1 cos(theta), as the sine of what is left of the quarter turn
        early = 0.5 * torch.log1p(-self._sin2(before.clamp(max=0.5)))
        late = torch.log(torch.sin(self._rate * (1 - before)) / math.cos(self._theta0))
        return torch.where(before < 0.5, early, late) - 0.5 * self.beta_max * (t - before)

    def sigma(self, t: float | Tensor) -> Tensor:
        t = as_time(t)
        capped = -torch.expm1(2 * self.log_alpha(t.clamp(min=self._t_cap)))
        return torch.where(t < self._t_cap, self._sin2(t.clamp(max=self._t_cap)), capped).sqrt()

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        at_cap = math.log(math.cos(self._theta0 + self._rate * self._t_cap) / math.cos(self._theta0))
        before = log_alpha.double().clamp(min=at_cap)
        # theta - theta_0 from the sine of the half angle, which keeps its accuracy as alpha approaches 1:
        # cos theta_0 - cos theta = cos theta_0 (1 - alpha) = 2 sin((theta + theta_0)/2) sin((theta - theta_0)/2)
        cosine = math.cos(self._theta0) * before.exp()
        half_sum = (torch.acos(cosine) + self._theta0) / 2
        drop = -math.cos(self._theta0) * torch.expm1(before)
        t = 2 * torch.asin(drop / (2 * torch.sin(half_sum))) / self._rate
        return (t + (before - log_alpha) * 2 / self.beta_max).to(log_alpha.dtype)


class ShiftedCosineVPSDE(VariancePreserving):
    """The cosine process with its log SNR shifted by 2 log(reference / resolution), for pictures of larger sides.

    Averaging a picture down from `resolution` to `reference` pixels a side averages its noise, too, so without the shift
    large pictures are seen with less noise (Hoogeboom et al. 2023, "Simple Diffusion", equation 4). With k = reference /
    resolution and r = 1 / (sigma^2 + k^2 alpha^2), of the cosine process: alpha'^2 = k^2 alpha^2 r, sigma'^2 = sigma^2 r
    and beta' = beta r, so nothing cancels.

    resolution  of the pictures, pixels a side
    reference   the resolution at which this is the cosine process

    >>> from scorefield.sde_lib import CosineVPSDE, ShiftedCosineVPSDE
    >>> bool(ShiftedCosineVPSDE(resolution=128).alpha(0.5) < CosineVPSDE().alpha(0.5))
    True
    """

    def __init__(self, resolution: float = 256.0, reference: float = 64.0, s: float = 0.008, beta_max: float = 999.0):
        for name, side in (("resolution", resolution), ("reference", reference)):
            if not 0 < side < math.inf:
                raise ArgumentError(f"{name} must be above 0, got {side}", name)
        self._cosine = CosineVPSDE(s, beta_max)
        self.resolution, self.reference, self.s, self.beta_max = resolution, reference, s, beta_max
        self._log_k = math.log(reference / resolution)

    def _r(self, t: Tensor) -> Tensor:
        return (self._cosine.sigma(t).square() + (2 * (self._cosine.log_alpha(t) + self._log_k)).exp()).reciprocal()

    def beta(self, t: float | Tensor) -> Tensor:
        return self._cosine.beta(t) * self._r(as_time(t))

    def log_alpha(self, t: float | Tensor) -> Tensor:
        # alpha'^2 = 1 / (1 + (sigma / (k alpha))^2), whose logarithm is exact near t = 0
        t = as_time(t)
        return -0.5 * torch.log1p((self._cosine.sigma(t) / (self._cosine.log_alpha(t) + self._log_k).exp()).square())

    def sigma(self, t: float | Tensor) -> Tensor:
        t = as_time(t)
        return self._cosine.sigma(t) * self._r(t).sqrt()

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        return self._cosine.time(as_time(half_log_snr) - self._log_k)


class SigmoidVPSDE(InvertibleVP):
    """VP with beta(t) = beta_min + (beta_max - beta_min) / (1 + exp(-span (2 t - 1))) (GeoDiff, Xu et al. 2022)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, span: float = 6.0):
        LinearBeta(beta_min, beta_max)       # the same conditions on the ends
        if not 0 < span < math.inf:
            raise ArgumentError(f"need span > 0, got {span}", "span")
        self.beta_min, self.beta_max, self.span = beta_min, beta_max, span

    def beta(self, t: float | Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * torch.sigmoid(self.span * (2 * as_time(t) - 1))

    def log_alpha(self, t: float | Tensor) -> Tensor:
        t = as_time(t)
        # int_0^t sigmoid = [softplus(span (2t - 1)) - softplus(-span)] / (2 span), as one log1p to keep small t exact
        p = 1 / (1 + math.exp(self.span))
        integral = torch.log1p(p * torch.expm1(2 * self.span * t)) / (2 * self.span)
        return -0.5 * (self.beta_min * t + (self.beta_max - self.beta_min) * integral)

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # Newton on a convex increasing integral of beta, from the upper bound log alpha / -(beta_min/2) or 1
        target, t = -2 * log_alpha.double(), torch.ones_like(log_alpha, dtype=torch.float64)
        for _ in range(60):
            step = (-2 * self.log_alpha(t) - target) / self.beta(t)
            t = (t - step).clamp(0, 2)
        return t.to(log_alpha.dtype)
