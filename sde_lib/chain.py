"""Discrete forward chains: DDPM (Ho et al. 2020) and SMLD (Song and Ermon 2019), from an SDE and to an SDE.

A chain is a list of marginals q(x_i given x_0) = N(alpha_i x_0, sigma_i^2 I), i = 0 .. steps - 1, of a Gaussian
Markov process; index i stands at time t = t_max (i + 1) / steps, index -1 is the data (alpha = 1, sigma = 0). What lies
between two indices is in transition.py.
"""

import inspect
import math
from collections.abc import Hashable
from typing import Self

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import schedules
from scorefield.sde_lib.prior import GaussianPrior
from scorefield.sde_lib.sde import SDE, as_time, expand_as
from scorefield.sde_lib.transition import Transition, reverse_variance
from scorefield.sde_lib.ve import VESDE
from scorefield.sde_lib.vp import VariancePreserving


class Chain:
    """A Gaussian Markov chain given by `alpha` and `sigma`, float64 of shape (steps,), signal-to-noise decreasing.

    t_max  the time of the last index, equal to t_max of the SDE with these marginals

    Raises ValueError for anything else. Indices are ints or integer tensors of shape (batch,).
    """

    def __init__(self, alpha: Tensor, sigma: Tensor, t_max: float = 1.0):
        alpha, sigma = (torch.as_tensor(a, dtype=torch.float64) for a in (alpha, sigma))
        if alpha.ndim != 1 or alpha.shape != sigma.shape or not len(alpha):
            raise ValueError(f"a chain needs alpha and sigma of one shape (steps,), got {tuple(alpha.shape)} "
                             f"and {tuple(sigma.shape)}")
        snr = (alpha / sigma).square()
        if not (alpha.min() > 0 and sigma.min() > 0 and bool(sigma.isfinite().all()) and bool(snr.isfinite().all())
                and bool((snr.diff() < 0).all())):
            raise ValueError("a chain needs positive alpha and sigma with a decreasing signal-to-noise ratio")
        self.alpha, self.sigma, self.t_max = alpha, sigma, t_max

    @property
    def steps(self) -> int:
        return len(self.alpha)

    @property
    def times(self) -> Tensor:
        """The times t_max (i + 1) / steps at which the indices stand, float64 (steps,)."""
        return _times(self.steps, self.t_max)

    @classmethod
    def from_sde(cls, sde: SDE, steps: int) -> "Chain":
        """The chain whose marginals are those of `sde` at t = t_max (i + 1) / steps."""
        if steps < 1:
            raise ValueError(f"a chain needs at least 1 step, got {steps}")
        t = _times(steps, sde.t_max)
        return Chain(sde.alpha(t), sde.sigma(t), sde.t_max)

    def _at(self, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at `index`, which may be -1 for the data."""
        i = torch.as_tensor(index)
        if i.min() < -1 or i.max() >= self.steps:
            raise ValueError(f"index out of range -1 .. {self.steps - 1}: {index}")
        data, i = (i < 0).cpu(), i.clamp(min=0).cpu()
        return torch.where(data, 1.0, self.alpha[i]), torch.where(data, 0.0, self.sigma[i])

    def marginal(self, x0: Tensor, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean (batch, *event) and variance (scalar or (batch,)) of q(x_i given x_0)."""
        alpha, sigma = self._at(index)
        return expand_as(alpha, x0) * x0, sigma.square()

    def transition(self, x: Tensor, index: int | Tensor, previous: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_index given x_previous = x), previous < index."""
        step = self.between(index, previous)
        return expand_as(step.scale, x) * x, step.variance

    def posterior(self, x0: Tensor, x: Tensor, index: int | Tensor,
                  previous: int | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_previous given x_index = x, x_0); `previous` is index - 1 unless given.

        The variance is the beta-tilde of Ho et al. 2020, zero where `previous` is the data.
        """
        previous = index - 1 if previous is None else previous
        step = self.between(index, previous)
        of_x, of_x0 = step.posterior
        mean = expand_as(of_x, x) * x + expand_as(of_x0, x) * x0
        return mean, reverse_variance("beta_tilde", step)

    def between(self, index: int | Tensor, previous: int | Tensor) -> Transition:
        """The step between two indices, previous < index; ValueError for others."""
        step = Transition.between(*self._at(index), *self._at(previous))
        if not step.variance.min() > 0:
            raise ValueError(f"need previous < index, got {previous} and {index}")
        return step


def _times(steps: int, t_max: float) -> Tensor:
    return t_max * torch.arange(1, steps + 1, dtype=torch.float64) / steps


class DDPMChain(Chain):
    """x_i = sqrt(1 - beta_i) x_(i-1) + sqrt(beta_i) z, for betas (steps,) in (0, 1) (Ho et al. 2020, equation 2)."""

    def __init__(self, betas: Tensor):
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if not (betas.ndim == 1 and len(betas) and betas.min() > 0 and betas.max() < 1):
            raise ValueError("a DDPM chain needs a list of betas above 0 and below 1 (a linear schedule more "
                             "steps than its beta_max)")
        log_alpha = 0.5 * torch.log1p(-betas).cumsum(0)
        super().__init__(log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt())
        self.betas = betas

    @classmethod
    def from_schedule(cls, name: str = "linear", steps: int = 1000, **settings: float) -> Self:
        """The chain of a schedule, a key of schedules.BETAS, with the settings that it takes."""
        if name not in schedules.BETAS:
            raise ValueError(f"unknown schedule {name!r}; choose from {', '.join(schedules.BETAS)}")
        allowed = list(inspect.signature(schedules.BETAS[name]).parameters)[1:]
        if foreign := [setting for setting in settings if setting not in allowed]:
            raise ArgumentError(f"the schedule {name!r} takes no {foreign[0]}; it takes {', '.join(allowed)}",
                                foreign[0])
        return cls(schedules.BETAS[name](steps, **settings))

    @classmethod
    def from_sde(cls, sde: SDE, steps: int) -> "DDPMChain":
        """The chain whose marginals are those of a variance-preserving `sde` at t = (i + 1) / steps."""
        marginals = Chain.from_sde(sde, steps)
        if not torch.allclose(marginals.alpha.square() + marginals.sigma.square(), torch.ones_like(marginals.alpha)):
            raise ValueError(f"{sde} does not preserve the variance, so it is not a DDPM chain; use Chain.from_sde")
        log_alpha = sde.log_alpha(marginals.times)
        return cls(-torch.expm1(2 * torch.diff(log_alpha, prepend=torch.zeros(1, dtype=torch.float64))))

    def to_sde(self) -> "DDPMChainSDE":
        """The chain read as a variance-preserving SDE with the same marginals at its indices."""
        return DDPMChainSDE(self)


class SMLDChain(Chain):
    """x_i = x_(i-1) + sqrt(sigma_i^2 - sigma_(i-1)^2) z, for increasing sigmas (steps,) (Song et al. 2021, eq. 8)."""

    def __init__(self, sigmas: Tensor):
        sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
        super().__init__(torch.ones_like(sigmas), sigmas)

    @classmethod
    def from_schedule(cls, steps: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Self:
        """The published geometric sequence, both ends included."""
        return cls(schedules.geometric_sigmas(steps, sigma_min, sigma_max))

    @classmethod
    def from_sde(cls, sde: SDE, steps: int) -> "SMLDChain":
        """The chain whose marginals are those of a variance-exploding `sde` at t = (i + 1) / steps."""
        marginals = Chain.from_sde(sde, steps)
        if not bool((marginals.alpha == 1).all()):
            raise ValueError(f"{sde} scales the data, so it is not an SMLD chain; use Chain.from_sde")
        return cls(marginals.sigma)

    def to_sde(self) -> "SMLDChainSDE":
        """The chain read as a variance-exploding SDE with the same marginals at its indices."""
        return SMLDChainSDE(self)


class _Curve:
    """A monotone C1 cubic (PCHIP) through values at equally spaced times, evaluated in float64."""

    def __init__(self, times: Tensor, values: Tensor):
        from scipy.interpolate import PchipInterpolator  # slow to import, and only chains need it

        self.start, self.step = float(times[0]), float(times[1] - times[0])
        self.coefficients = torch.from_numpy(PchipInterpolator(times.numpy(), values.numpy()).c.copy())

    def _cell(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = (t.cpu() if t.device.type == "mps" else t).double()      # MPS has no float64
        cell = ((t - self.start) / self.step).long().clamp(0, self.coefficients.shape[1] - 1)
        return self.coefficients.to(t.device)[:, cell], t - (self.start + self.step * cell.double())

    def value(self, t: Tensor) -> Tensor:
        (c3, c2, c1, c0), u = self._cell(t)
        return (((c3 * u + c2) * u + c1) * u + c0).to(t)

    def slope(self, t: Tensor) -> Tensor:
        (c3, c2, c1, _), u = self._cell(t)
        return ((3 * c3 * u + 2 * c2) * u + c1).to(t)


class DDPMChainSDE(VariancePreserving):
    """A DDPM chain in continuous time: log alpha by a monotone cubic through the indices and (0, 0).

    Times below the first index, t = 1 / steps, were never used in training, so t_min and t_sample are that time.
    """

    def __init__(self, chain: DDPMChain):
        self.steps = chain.steps
        self.t_min = self.t_sample = 1 / chain.steps
        zero = torch.zeros(1, dtype=torch.float64)
        log_alpha = 0.5 * torch.log1p(-chain.betas).cumsum(0)
        self._log_alpha = _Curve(torch.cat([zero, chain.times]), torch.cat([zero, log_alpha]))

    @property
    def content(self) -> Hashable:
        return type(self), self._log_alpha      # a curve never changes

    def log_alpha(self, t: float | Tensor) -> Tensor:
        return self._log_alpha.value(as_time(t))

    def beta(self, t: float | Tensor) -> Tensor:
        return -2 * self._log_alpha.slope(as_time(t))


class SMLDChainSDE(VESDE):
    """An SMLD chain in continuous time: log sigma by a monotone cubic, and by a straight line below the first index."""

    def __init__(self, chain: SMLDChain):
        if chain.steps < 2:
            raise ValueError("an SMLD chain needs at least 2 steps to be read as an SDE")
        super().__init__(float(chain.sigma[0]), float(chain.sigma[-1]))
        self.steps = chain.steps
        self.t_min = self.t_sample = 1 / chain.steps
        log_sigma = chain.sigma.log()
        before = 2 * log_sigma[:1] - log_sigma[1:2]
        times = torch.cat([torch.zeros(1, dtype=torch.float64), chain.times])
        self._log_sigma = _Curve(times, torch.cat([before, log_sigma]))

    @property
    def content(self) -> Hashable:
        return type(self), self._log_sigma

    def sigma(self, t: float | Tensor) -> Tensor:
        return self._log_sigma.value(as_time(t)).exp()

    def g2(self, t: float | Tensor) -> Tensor:
        return 2 * self._log_sigma.slope(as_time(t)) * self.sigma(t).square()

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        return SDE.time(self, half_log_snr)

    @property
    def prior(self) -> GaussianPrior:
        return GaussianPrior(math.exp(float(self._log_sigma.value(torch.tensor(self.t_max, dtype=torch.float64)))))
