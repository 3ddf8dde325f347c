"""How much a squared error in eps counts at time t: the weight w(t) of the denoising score matching loss.

With w = lambda / sigma^2 (Song et al. 2021, "Maximum Likelihood Training of Score-Based Diffusion Models", table 1):

    simple      lambda = sigma^2,  w = 1               L_simple of Ho et al. 2020
    likelihood  lambda = g^2,      w = g^2 / sigma^2   bounds the negative log-likelihood
    uniform     lambda = 1,        w = 1 / sigma^2
    edm         w = q(t) / (d eps / d F)^2             the loss of Karras et al. 2022, section 5

In the last, F is that of parametrization "edm", and q the density of t for which ln(sigma / alpha) ~ N(-1.2, 1.2^2):
the expected loss is the mean square of the error in F at such noise levels.

An error in x_0 is sigma / alpha times one in eps. So with the signal-to-noise ratio SNR = alpha^2 / sigma^2, a squared error
in x_0 that counts W has w = W / SNR, and these are known by their W:

    x0             W = 1                              the error of the predicted x_0, unweighted
    snr            W = SNR, so w = 1                  simple by another name (Salimans and Ho 2022, section 4)
    truncated_snr  W = max(SNR, 1)                    Salimans and Ho 2022, section 4
    snr_plus_one   W = SNR + 1                        the same section; that of an error in v where alpha^2 + sigma^2 = 1
    min_snr        W = min(SNR, gamma)                Hang et al. 2023, "Efficient Diffusion Training", equation 8
    p2             w = 1 / (k + SNR)^gamma            Choi et al. 2022, "Perception Prioritized Training", equation 8
    sigmoid        w = sigmoid(bias - log SNR) times that of likelihood, which is 1 for each unit of log SNR (Kingma and Gao
                   2023, "Understanding Diffusion Objectives as the ELBO"; Hoogeboom et al. 2024, "Simpler Diffusion")

Two are of the mean mu of a step back, linear in x_0 with the coefficient of_x0 (transition.py), v being the step's variance:

    mu     w = (of_x0 sigma / alpha)^2 on a chain (Ho et al. 2020, equation 8, unweighted); g^4 / sigma^2 in continuous time,
           the limit for steps of length 1
    bound  w = N (of_x0 sigma / alpha)^2 / (2 v), only on a chain of N indices: the mean over its times is then the bound on
           -log p in nats, over D, but for what does not depend on the network (Ho et al. 2020, equations 8 and 12). The
           step from the first index to the data is the decoder's, N(x_0, v I)
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.models.parametrization import make_parametrization
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option, worded
from scorefield.sde_lib.sde import SDE
from scorefield.sde_lib.transition import FIXED, Transition, check_variance, reverse_variance


@dataclass(frozen=True)
class LogNormalLevels:
    """Times t at which ln(sigma / alpha) ~ N(mean, std^2), restricted to what the SDE has in [t_min, t_max].

    The defaults are P_mean and P_std of Karras et al. 2022, table 1. Raises ArgumentError if there is no such time.
    """

    sde: SDE
    mean: float = -1.2
    std: float = 1.2
    _ends: tuple[float, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        limits = torch.tensor([self.sde.t_min, self.sde.t_max], dtype=torch.float64)
        ends = torch.special.ndtr(self._normal(limits)).tolist()
        if not ends[0] < ends[1]:
            raise ArgumentError(f"weighting 'edm' trains at ln(sigma / alpha) = {self.mean} +- {self.std}, where "
                                f"{self.sde} has no time", "weighting")
        object.__setattr__(self, "_ends", tuple(ends))

    def _normal(self, t: Tensor) -> Tensor:
        return (-self.sde.half_log_snr(t) - self.mean) / self.std

    def density(self, t: Tensor) -> Tensor:
        """Of t, with respect to the uniform one on [t_min, t_max], in the shape of t."""
        low, high = self._ends
        slope = 0.5 * self.sde.g2(t) / self.sde.sigma(t).square() / self.std      # of _normal
        normal = torch.exp(-0.5 * self._normal(t).square()) / math.sqrt(2 * math.pi)
        return normal * slope * ((self.sde.t_max - self.sde.t_min) / (high - low))

    def times(self, u: Tensor) -> Tensor:
        """The inverse of the distribution function of t, at u (batch,)."""
        low, high = self._ends
        normal = torch.special.ndtri(low + (high - low) * u)
        return self.sde.time(-(self.mean + self.std * normal)).clamp(self.sde.t_min, self.sde.t_max)


@dataclass(frozen=True)
class Weighting:
    """w(t) of one SDE: `weighting(t)`, in the shape of t. This one is "simple"; the others differ in what they override.

    data_std  standard deviation of the data, if the weighting needs it
    """

    sde: SDE
    data_std: float | None = None

    def __call__(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def importance(self, t: Tensor) -> Tensor:
        """The density, up to a factor, of times under importance sampling, in the shape of t: by default w itself."""
        return self(t)

    def times(self, u: Tensor) -> Tensor | None:
        """Times (batch,) with the density `importance`, from uniform u (batch,); None if there is no closed form."""
        return None


class Likelihood(Weighting):
    """w = g^2 / sigma^2."""

    def __call__(self, t: Tensor) -> Tensor:
        return self.sde.g2(t) / self.sde.sigma(t).square()


class Uniform(Weighting):
    """w = 1 / sigma^2."""

    def __call__(self, t: Tensor) -> Tensor:
        return self.sde.sigma(t).square().reciprocal()


@dataclass(frozen=True)
class EDM(Weighting):
    """w = q / (d eps / d F)^2. Importance is q, as published, which leaves every error in F the weight 1."""

    _levels: LogNormalLevels = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.data_std is None:
            raise ArgumentError("weighting 'edm' needs the standard deviation of the data", "data_std")
        object.__setattr__(self, "_levels", LogNormalLevels(self.sde))

    def __call__(self, t: Tensor) -> Tensor:
        slope = make_parametrization("edm", self.data_std).eps(self.sde.alpha(t), self.sde.sigma(t))[1]
        return self.importance(t) / slope.square()

    def importance(self, t: Tensor) -> Tensor:
        return self._levels.density(t)

    def times(self, u: Tensor) -> Tensor | None:
        return self._levels.times(u)


class X0(Weighting):
    """w = 1 / SNR."""

    def __call__(self, t: Tensor) -> Tensor:
        return torch.exp(-2 * self.sde.half_log_snr(t))


class TruncatedSNR(Weighting):
    """w = max(1, 1 / SNR)."""

    def __call__(self, t: Tensor) -> Tensor:
        return torch.exp(-2 * self.sde.half_log_snr(t)).clamp(min=1)


class SNRPlusOne(Weighting):
    """w = 1 + 1 / SNR."""

    def __call__(self, t: Tensor) -> Tensor:
        return 1 + torch.exp(-2 * self.sde.half_log_snr(t))


@dataclass(frozen=True)
class MinSNR(Weighting):
    """w = min(1, gamma / SNR)."""

    gamma: float = option(5.0, "SNR above which an error in x_0 counts no more")

    def __post_init__(self) -> None:
        _require_above_zero(self, "gamma")

    def __call__(self, t: Tensor) -> Tensor:
        return (self.gamma * torch.exp(-2 * self.sde.half_log_snr(t))).clamp(max=1)


@dataclass(frozen=True)
class P2(Weighting):
    """w = 1 / (k + SNR)^gamma."""

    k: float = option(1.0, "what is added to the SNR")
    gamma: float = option(1.0, "power")

    def __post_init__(self) -> None:
        _require_above_zero(self, "k", "gamma")

    def __call__(self, t: Tensor) -> Tensor:
        return (self.k + torch.exp(2 * self.sde.half_log_snr(t))).pow(-self.gamma)


@dataclass(frozen=True)
class Sigmoid(Likelihood):
    """w = sigmoid(bias - log SNR) g^2 / sigma^2."""

    bias: float = option(2.0, "log SNR at which an error counts half")

    def __call__(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self.bias - 2 * self.sde.half_log_snr(t)) * super().__call__(t)


class Mu(Weighting):
    """w of an unweighted error in the mean of a step back."""

    def __call__(self, t: Tensor) -> Tensor:
        if self.sde.steps is None:
            return self.sde.g2(t).square() / self.sde.sigma(t).square()
        return _of_mean(self.sde, t)[0]


@dataclass(frozen=True)
class Bound(Weighting):
    """w of the chain's bound; its times are those of the chain."""

    variance: str = option("beta", "of the step back: beta or beta_tilde")

    def __post_init__(self) -> None:
        check_variance(self.variance, FIXED)
        if self.sde.steps is None:
            raise ArgumentError("weighting 'bound' is that of a chain's bound, and the SDE is of none; choose sde.name=ddpm "
                                "or smld, or weighting likelihood", "weighting")

    def __call__(self, t: Tensor) -> Tensor:
        assert self.sde.steps is not None
        of_eps, step = _of_mean(self.sde, t)
        variance, first = reverse_variance(self.variance, step), 1 / self.sde.steps
        if self.variance == "beta_tilde":      # it is 0 where the data come next; that of the second index stands in
            second = Transition.along(self.sde, torch.tensor([2 * first, first], dtype=torch.float64) * self.sde.t_max)
            variance = variance.where(step.sigma_s > 0, reverse_variance("beta_tilde", second).to(t))
        return self.sde.steps * of_eps / (2 * variance)


def _of_mean(sde: SDE, t: Tensor) -> tuple[Tensor, Transition]:
    """On a chain, at its times t: the square of the coefficient of eps in the mean of the step back, and that step."""
    assert sde.steps is not None
    before = t - sde.t_max / sde.steps
    data = before < 0.5 * sde.t_max / sde.steps
    alpha, sigma = sde.alpha(before.clamp(min=0)).masked_fill(data, 1), sde.sigma(before.clamp(min=0)).masked_fill(data, 0)
    step = Transition.between(sde.alpha(t), sde.sigma(t), alpha, sigma)
    return (step.posterior[1] * sde.sigma(t) / sde.alpha(t)).square(), step


def _require_above_zero(weighting: Weighting, *names: str) -> None:
    for name in names:
        if not 0 < getattr(weighting, name) < math.inf:
            raise ArgumentError(f"{name} of the weighting must be above 0, got {getattr(weighting, name)}", "weighting")


WEIGHTINGS: dict[str, type[Weighting]] = {
    "simple": Weighting, "likelihood": Likelihood, "uniform": Uniform, "edm": EDM, "x0": X0, "snr": Weighting,
    "truncated_snr": TruncatedSNR, "snr_plus_one": SNRPlusOne, "min_snr": MinSNR, "p2": P2, "sigmoid": Sigmoid, "mu": Mu,
    "bound": Bound,
}


def make_weighting(text: str, sde: SDE, data_std: float | None = None) -> Weighting:
    """The weighting of that name, with options after colons: "min_snr" or "p2:k=1:gamma=0.5".

    Raises ArgumentError for a name, an option or a value that does not exist, and for "edm" without `data_std`.
    """
    kind, options = worded("weighting", WEIGHTINGS, text, "weighting")
    return kind(sde, data_std, **options)
