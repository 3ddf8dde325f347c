"""How much a squared error in eps counts at time t: the weight w(t) of the denoising score matching loss.

With w = lambda / sigma^2 (Song et al. 2021, "Maximum Likelihood Training of Score-Based Diffusion Models", table 1):

    simple      lambda = sigma^2,  w = 1               L_simple of Ho et al. 2020
    likelihood  lambda = g^2,      w = g^2 / sigma^2   bounds the negative log-likelihood
    uniform     lambda = 1,        w = 1 / sigma^2
    edm         w = q(t) / (d eps / d F)^2             the loss of Karras et al. 2022, section 5

In the last, F is that of parametrization "edm", and q the density of t for which ln(sigma / alpha) ~ N(-1.2, 1.2^2):
the expected loss is the mean square of the error in F at such noise levels.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.models.parametrization import make_parametrization
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.text import choose
from scorefield.sde_lib.sde import SDE


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


WEIGHTINGS: dict[str, type[Weighting]] = {"simple": Weighting, "likelihood": Likelihood, "uniform": Uniform, "edm": EDM}


def make_weighting(name: str, sde: SDE, data_std: float | None = None) -> Weighting:
    """The weighting of that name; ArgumentError for an unknown one, and for "edm" without `data_std`."""
    return choose("weighting", WEIGHTINGS, name, "weighting")(sde, data_std)
