"""Rules of one evaluation a step: x_s = keep x_t + of_eps eps(x_t, t) + of_noise z, for s the next time of the grid.

With a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2, the variance of x_t given x_s:

    Euler-Maruyama      x - h [f x - (1 + eta^2)/2 g^2 score] + eta g sqrt(h) z         h = t - s
    reverse diffusion   (2 - a) x + v score + sqrt(v) z
    ancestral           a sigma_s^2 / sigma_t^2 x + alpha_s v / sigma_t^2 x_0 + sqrt(V) z
    DDIM                alpha_s x_0 + sqrt(sigma_s^2 - V) eps + sqrt(V) z,              V = eta^2 v sigma_s^2 / sigma_t^2

where score = -eps / sigma_t and x_0 = (x - sigma_t eps) / alpha_t.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.models.denoiser import evaluation_mode
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream
from scorefield.samplers.base import CountedModel, GridSampler
from scorefield.sde_lib.sde import SDE
from scorefield.sde_lib.ve import VESDE
from scorefield.sde_lib.vp import VariancePreserving

Coefficients = tuple[Tensor, Tensor, Tensor]      # keep, of_eps and of_noise, float64 (steps,)


def transition(sde: SDE, times: Tensor) -> tuple[Tensor, Tensor]:
    """a and v of x_t given x_s for each pair of neighbours of a decreasing grid, float64 (steps,)."""
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    a = alpha[:-1] / alpha[1:]
    return a, sigma[:-1].square() - (a * sigma[1:]).square()


@dataclass(frozen=True, kw_only=True)
class OneStepSampler(GridSampler):
    """A subclass says what its three coefficients are."""

    steps: int = 1000
    order = 1

    @abstractmethod
    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        """keep, of_eps and of_noise of every step of the grid, float64; ValueError for an SDE that cannot be."""

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        keep, of_eps, of_noise = (c.tolist() for c in self.coefficients(model.sde, times))
        for i in range(len(keep)):
            eps = model.eps(x, times[i])
            x = x.mul_(keep[i]) if i else x.mul(keep[i])      # a tensor of our own from the first step on
            x.add_(eps, alpha=of_eps[i])
            if noise is not None:
                x.add_(noise.normal(x), alpha=of_noise[i])
            yield x


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(OneStepSampler):
    """Euler-Maruyama on the reverse-time family (Song et al. 2021, appendix D); weak order 1.

    eta  noise of the reverse process: 1 the reverse-time SDE, 0 Euler on the probability-flow ODE
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 100:
            raise ArgumentError(f"eta must lie in [0, 100], got {self.eta}", "eta")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        t, h = times[:-1], -times.diff()
        g2 = sde.g2(t)
        return 1 - h * sde.drift(t), -h * (1 + self.eta**2) / 2 * g2 / sde.sigma(t), self.eta * (h * g2).sqrt()


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(OneStepSampler):
    """The reverse diffusion predictor (Song et al. 2021, appendix E, equation 46): the forward step, reversed."""

    stochastic = True

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        a, v = transition(sde, times)
        return 2 - a, -v / sde.sigma(times[:-1]), v.sqrt()


VARIANCES = ("beta", "beta_tilde")


@dataclass(frozen=True, kw_only=True)
class Ancestral(OneStepSampler):
    """Ancestral sampling of DDPM (Ho et al. 2020, algorithm 2) and SMLD (Song et al. 2021, appendix F).

    variance  V: "beta", v itself, or "beta_tilde", v sigma_s^2 / sigma_t^2, that of q(x_s given x_t, x_0)

    For variance-preserving and variance-exploding SDEs, those of chains included; ValueError for others.
    """

    variance: str = "beta_tilde"
    stochastic = True

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise ArgumentError(f"unknown variance {self.variance!r}; choose from {', '.join(VARIANCES)}", "variance")

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        if not isinstance(sde, VariancePreserving | VESDE):
            raise ArgumentError(f"ancestral sampling belongs to the DDPM and SMLD chains, and {sde} is the limit of "
                                "neither; use  reverse_diffusion, euler_maruyama or ddim", "sampler")
        a, v = transition(sde, times)
        (alpha_t, alpha_s), (sigma_t, sigma_s) = ((c[:-1], c[1:]) for c in (sde.alpha(times), sde.sigma(times)))
        # mean = x / a - v / (a sigma_t) eps, from x_0 = (x - sigma_t eps) / alpha_t (Ho et al. 2020, equation 11)
        noise = v if self.variance == "beta" else v * (sigma_s / sigma_t).square()
        return 1 / a, -v / (a * sigma_t), noise.sqrt()


@dataclass(frozen=True, kw_only=True)
class DDIM(OneStepSampler):
    """DDIM (Song, Meng and Ermon 2021, equation 12), for any SDE.

    eta  in [0, 1]: 0 deterministic, 1 with the variance of q(x_s given x_t, x_0)
    """

    steps: int = 50
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ArgumentError(f"eta of DDIM must lie in [0, 1], got {self.eta}", "eta")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        _, v = transition(sde, times)
        (alpha_t, alpha_s), (sigma_t, sigma_s) = ((c[:-1], c[1:]) for c in (sde.alpha(times), sde.sigma(times)))
        variance = self.eta**2 * v * (sigma_s / sigma_t).square()
        keep = alpha_s / alpha_t
        return keep, (sigma_s.square() - variance).clamp(min=0).sqrt() - keep * sigma_t, variance.sqrt()


@torch.no_grad()
def ddim_invert(model, x: Tensor, sampler: DDIM) -> Tensor:
    """The latent at t_max of x (batch, *event) at the sampler's last time: DDIM's steps taken backwards.

    Song, Meng and Ermon 2021, section 4.3 and equation 14. Exact as steps grow; `sampler` must have eta = 0, and carries
    the latent back to (nearly) x.
    """
    if sampler.stochastic:
        raise ArgumentError("only deterministic DDIM can be inverted; set eta to 0", "eta")
    with evaluation_mode(model):
        *_, latent = sampler.solve(CountedModel(model), x, sampler.times(model).flip(0), None)
    return latent


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Spherical interpolation from a (weight 0) to b (weight 1), each sample of (batch, *event) by itself.

    Song, Meng and Ermon 2021, appendix D.5 (Shoemake 1985): keeps the norm that Gaussian latents have.
    """
    u, v = a.flatten(1), b.flatten(1)
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
    angle = torch.acos(cosine.clamp(-1, 1))
    near = angle < 1e-4      # where sines cancel, the straight line is exact to 1e-9
    sine = torch.where(near, torch.ones_like(angle), angle.sin())
    of_a = torch.where(near, torch.full_like(angle, 1 - weight), torch.sin((1 - weight) * angle) / sine)
    of_b = torch.where(near, torch.full_like(angle, weight), torch.sin(weight * angle) / sine)
    return (of_a[:, None] * u + of_b[:, None] * v).reshape(a.shape)
