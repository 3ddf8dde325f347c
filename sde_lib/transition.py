"""Between two times s < t of a forward process: the step forwards, the posterior of a step back, and its variance.

With a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2,

    q(x_t given x_s)       = N(a x_s, v I)
    q(x_s given x_t, x_0)  = N(a sigma_s^2 / sigma_t^2 x_t + alpha_s v / sigma_t^2 x_0, v sigma_s^2 / sigma_t^2 I)

which for neighbours of a DDPM chain are Ho et al. 2020, equations 2 and 7. A generated step back has the posterior's mean at
the predicted x_0, and one of these variances:

    beta         v                             right for data N(0, I)
    beta_tilde   v sigma_s^2 / sigma_t^2       that of the posterior; right if x_t determines x_0 (Ho et al. 2020, sec. 3.2)
    analytic     beta_tilde + b^2 Var[x_0 given x_t], b the coefficient of x_0 above: the variance of x_s given x_t, which is
                 the best for any data (Bao et al. 2022, "Analytic-DPM", theorem 1). It needs the variance of x_0 from the
                 model (`ScoreModel.posterior`): a number for all elements, or one for each
    learned      beta^w beta_tilde^(1 - w), whose logarithm lies between theirs as a network says for each element: w is the
                 v of Nichol and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", equation 15. It needs w
                 from the model (`ScoreModel.with_share`)

A share w of the short steps of a chain also says the variance of x_0: there w log(beta / beta_tilde) = log(1 + d Var[x_0
given x_t]), d being the gain in alpha^2 / sigma^2. So a model with a learned variance has the analytic one for longer steps.

Chains, ancestral sampling, DDIM and the chain's bound take their coefficients from here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, expand_as

FIXED = ("beta", "beta_tilde")      # known from the process alone
VARIANCES = (*FIXED, "analytic", "learned")
CHAIN = 1000      # equal steps of an SDE that is not made of a chain, where a chain is meant


def check_variance(kind: str, allowed: Sequence[str] = VARIANCES) -> None:
    """ArgumentError for an unknown kind of variance."""
    if kind not in allowed:
        raise ArgumentError(f"unknown variance {kind!r}; choose from {', '.join(allowed)}", "variance")


def known_variance(variance: Tensor | None) -> Tensor:
    """Var[x_0 given x_t] of a model's posterior; ArgumentError if the model does not know it."""
    if variance is None:
        raise ArgumentError("variance 'analytic' needs a model that knows the variance of x_0 given x_t, and this one knows "
                            "its mean only", "variance")
    return variance


@dataclass(frozen=True)
class Transition:
    """Steps between s and t, float64 tensors of any one shape: `scale` a and `variance` v of x_t given x_s."""

    scale: Tensor
    variance: Tensor
    alpha_s: Tensor
    sigma_s: Tensor
    sigma_t: Tensor

    @classmethod
    def between(cls, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> "Transition":
        scale = alpha_t / alpha_s
        return cls(scale, sigma_t.square() - (scale * sigma_s).square(), alpha_s, sigma_s, sigma_t)

    @classmethod
    def along(cls, sde: SDE, times: Tensor) -> "Transition":
        """One for each pair of neighbours of a decreasing grid (steps + 1,): the earlier in the grid is t."""
        alpha, sigma = sde.alpha(times), sde.sigma(times)
        return cls.between(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])

    @classmethod
    def back(cls, sde: SDE, t: Tensor, stride: int = 1) -> tuple["Transition", Tensor]:
        """The steps back from t by so many of the chain's own, but not beyond its first index; and a mask of the times that
        lie there, where the data come next: their step is that from the second index. Both in the shape of t.
        """
        first = sde.t_max / (sde.steps or CHAIN)
        data = t <= first * (1 + 1e-4)
        t = torch.where(data, torch.full_like(t, 2 * first), t)
        s = (t - stride * first).clamp(min=first)
        return cls.between(sde.alpha(t), sde.sigma(t), sde.alpha(s), sde.sigma(s)), data

    @property
    def log_ratio(self) -> Tensor:
        """log(beta / beta_tilde)."""
        return 2 * (self.sigma_t / self.sigma_s).log()

    @property
    def gain(self) -> Tensor:
        """That in alpha^2 / sigma^2; times Var[x_0 given x_t] it is the excess of the analytic variance over beta_tilde."""
        return self.alpha_s.square() * self.variance / (self.sigma_t * self.sigma_s).square()

    @property
    def posterior(self) -> tuple[Tensor, Tensor]:
        """The coefficients of x_t and x_0 in the mean of q(x_s given x_t, x_0)."""
        return self.scale * (self.sigma_s / self.sigma_t).square(), self.alpha_s * self.variance / self.sigma_t.square()


def reverse_variance(kind: str, step: Transition, eta: float = 1.0) -> Tensor:
    """The variance of x_s in a generated step back that the process knows, eta^2 times that of its kind (eta as in DDIM)."""
    check_variance(kind, FIXED)
    variance = eta**2 * step.variance
    return variance if kind == "beta" else variance * (step.sigma_s / step.sigma_t).square()


def learned_between(share: Tensor, beta_tilde: Tensor, beta: Tensor) -> Tensor:
    """beta^w beta_tilde^(1 - w) for the share w of each element, (batch, *event), in its dtype; of variances or their roots.

    beta_tilde, beta  above 0, scalars or (batch,). Where w is 0 or 1 the result is one of them to the bit. w outside of
                      [0, 1] is not clipped.
    """
    low, high, slope = (expand_as(end, share) for end in (beta_tilde, beta, (beta / beta_tilde).log()))
    return torch.where(share < 0.5, low * torch.exp(slope * share), high * torch.exp(slope * (share - 1)))


def variance_of_x0(share: Tensor, sde: SDE, t: Tensor) -> Tensor:
    """Var[x_0 given x_t] of each element, (batch, *event), that the share of a step of the chain back from t stands for.

    Where the data come next it is the variance of that step. It is not below 0, as a share below 0 would have it.
    """
    step, data = Transition.back(sde, t)
    of_data = learned_between(share, reverse_variance("beta_tilde", step),
                              sde.sigma(t).square().clamp(min=torch.finfo(t.dtype).tiny))
    excess = torch.expm1(expand_as(step.log_ratio, share) * share).clamp(min=0)
    return torch.where(expand_as(data, share).bool(), of_data, excess / expand_as(step.gain, share))
