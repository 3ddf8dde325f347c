"""Weighted denoising score matching, in continuous time and on a chain.

    loss = E_t E_x0 E_eps  w(t) / p(t) * || eps_theta(x_t, t) - eps ||^2 / D          t ~ p

is the denoising score matching of Vincent 2011 for the score -eps / sigma, since
lambda(t) || s_theta + eps / sigma ||^2 = (lambda / sigma^2) || eps_theta - eps ||^2. The weightings, as w = lambda /
sigma^2 (Song et al. 2021, "Maximum Likelihood Training of Score-Based Diffusion Models", table 1):

    simple      lambda = sigma^2,  w = 1               L_simple of Ho et al. 2020
    likelihood  lambda = g^2,      w = g^2 / sigma^2   bounds the negative log-likelihood
    uniform     lambda = 1,        w = 1 / sigma^2
    edm         w = q(t) / (d eps / d F)^2             the loss of Karras et al. 2022, section 5

In the last, F is that of parametrization "edm", and q the density of t for which ln(sigma / alpha) ~ N(-1.2, 1.2^2):
the expected loss is the mean square of the error in F at such noise levels.

The network regresses its own target: an error in F is an error (d eps / d F) times as large in eps, so any
parametrisation trains with the same loss.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.models.denoiser import Denoiser
from scorefield.models.parametrization import make_parametrization
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, expand_as


def _edm(objective: "Objective", t: Tensor) -> Tensor:
    alpha, sigma = objective.sde.alpha(t), objective.sde.sigma(t)
    slope = make_parametrization("edm", objective.data_std).eps(alpha, sigma)[1]
    return objective.importance_density(t) / slope.square()


# w(t) of an objective.
WEIGHTINGS: dict[str, Callable[["Objective", Tensor], Tensor]] = {
    "simple": lambda objective, t: torch.ones_like(t),
    "likelihood": lambda objective, t: objective.sde.g2(t) / objective.sde.sigma(t).square(),
    "uniform": lambda objective, t: objective.sde.sigma(t).square().reciprocal(),
    "edm": _edm,
}
TIME_SAMPLERS = ("uniform", "low_discrepancy")


def unit_uniforms(batch: int, kind: str, generator: torch.Generator) -> Tensor:
    """`batch` numbers, each uniform on [0, 1), float64 on the CPU.

    "uniform": independent. "low_discrepancy": one in each cell of width 1 / batch, from a common shift (Kingma et
    al. 2021, appendix I.1); the order is shuffled, so that a slice of the batch is spread over time too.
    """
    if kind == "uniform":
        return torch.rand(batch, generator=generator, dtype=torch.float64)
    shift = torch.rand(1, generator=generator, dtype=torch.float64)
    cells = torch.randperm(batch, generator=generator).double()
    return ((cells + shift) / batch).clamp(max=1 - 2**-53)


@dataclass(frozen=True)
class LogNormalLevels:
    """Times t at which ln(sigma / alpha) ~ N(mean, std^2), restricted to what the SDE has in [t_min, 1].

    The defaults are P_mean and P_std of Karras et al. 2022, table 1. Raises ValueError where there is no such time.
    """

    sde: SDE
    mean: float = -1.2
    std: float = 1.2
    _ends: tuple[float, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ends = torch.special.ndtr(self._normal(torch.tensor([self.sde.t_min, 1.0], dtype=torch.float64))).tolist()
        if not ends[0] < ends[1]:
            raise ArgumentError(f"weighting 'edm' trains at ln(sigma / alpha) = {self.mean} +- {self.std}, where "
                                f"{self.sde} has no time", "weighting")
        object.__setattr__(self, "_ends", tuple(ends))

    def _normal(self, t: Tensor) -> Tensor:
        return (-self.sde.half_log_snr(t) - self.mean) / self.std

    def density(self, t: Tensor) -> Tensor:
        """Of t, with respect to the uniform one on [t_min, 1], in the shape of t."""
        low, high = self._ends
        slope = 0.5 * self.sde.g2(t) / self.sde.sigma(t).square() / self.std      # of _normal
        normal = torch.exp(-0.5 * self._normal(t).square()) / math.sqrt(2 * math.pi)
        return normal * slope * ((1 - self.sde.t_min) / (high - low))

    def times(self, u: Tensor) -> Tensor:
        """The inverse of the distribution function of t, at u (batch,)."""
        low, high = self._ends
        normal = torch.special.ndtri(low + (high - low) * u)
        return self.sde.time(-(self.mean + self.std * normal)).clamp(self.sde.t_min, 1.0)


@dataclass(frozen=True)
class Objective:
    """The training loss of one experiment.

    weighting      "simple", "likelihood", "uniform" or "edm"
    time_sampling  "uniform" or "low_discrepancy": how the uniform numbers behind the times are drawn
    importance     draw times in proportion to the weighting, w / p constant, which leaves the expected loss as it is
                   and lowers its variance (for "likelihood" that is uniform in log-SNR); for "edm" in proportion to
                   q, as published, which leaves every error in F the weight 1
    steps          None for continuous time on [t_min, 1]; else the times are (i + 1) / steps of a chain's indices
    data_std       standard deviation of the data, for "edm"

    Raises ValueError for an unknown word, and for "edm" without `data_std`.
    """

    sde: SDE
    weighting: str = "simple"
    time_sampling: str = "low_discrepancy"
    importance: bool = False
    steps: int | None = None
    data_std: float | None = None
    _levels: LogNormalLevels | None = field(init=False, repr=False, compare=False)
    _nodes: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise ArgumentError(f"unknown weighting {self.weighting!r}; choose from {', '.join(WEIGHTINGS)}", "weighting")
        if self.time_sampling not in TIME_SAMPLERS:
            raise ArgumentError(f"unknown time_sampling {self.time_sampling!r}; choose from {', '.join(TIME_SAMPLERS)}",
                                "time_sampling")
        if self.steps is not None and self.steps < 1:
            raise ArgumentError(f"a chain needs at least 1 step, got {self.steps}", "steps")
        if self.weighting == "edm" and self.data_std is None:
            raise ArgumentError("weighting 'edm' needs the standard deviation of the data", "input_std")
        object.__setattr__(self, "_levels", LogNormalLevels(self.sde) if self.weighting == "edm" else None)
        object.__setattr__(self, "_nodes", self._mass_function())

    def _mass_function(self) -> tuple[Tensor, Tensor]:
        """Where time may be, and the cumulative mass of the importance density there.

        On a chain: its times. In continuous time: nodes equally spaced in half log-SNR lambda, and the mass of each
        cell by the trapezoidal rule. Within a cell times are drawn uniformly in lambda, whose density
        |lambda'| = g^2 / (2 sigma^2) is exact, so the rule's error costs variance, never bias.
        """
        if self.steps is not None:
            nodes = torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps
            mass = self.importance_density(nodes)
        else:
            ends = self.sde.half_log_snr(torch.tensor([self.sde.t_min, 1.0], dtype=torch.float64))
            nodes = torch.linspace(float(ends[0]), float(ends[1]), 1025, dtype=torch.float64)
            t = self.sde.time(nodes).clamp(self.sde.t_min, 1.0)
            density = self.importance_density(t) / (0.5 * self.sde.g2(t) / self.sde.sigma(t).square())      # in lambda
            mass = (density[1:] + density[:-1]) / 2 * -nodes.diff()
        return nodes, mass.cumsum(0)

    def weight(self, t: Tensor) -> Tensor:
        """w(t), the weight of the squared error in eps, in the shape of t."""
        return WEIGHTINGS[self.weighting](self, t)

    def importance_density(self, t: Tensor) -> Tensor:
        """What importance draws times in proportion to: w(t), or "edm"'s q(t), in the shape of t."""
        return self.weight(t) if self._levels is None else self._levels.density(t)

    def draw_times(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times and importance weights w(t) / p(t), both float64 (batch,), p with respect to [t_min, 1] or the chain.

        The mean of the second is the same for every way of drawing: int w dt / (1 - t_min), or the mean of w over
        the chain.
        """
        u = unit_uniforms(batch, self.time_sampling, generator)
        nodes, cumulative = self._nodes
        if not self.importance:
            if self.steps is not None:
                t = nodes[(u * self.steps).long()]
            else:
                t = self.sde.t_min + (1 - self.sde.t_min) * u
            return t, self.weight(t)
        if self._levels is not None and self.steps is None:
            t = self._levels.times(u)
            return t, self.weight(t) / self._levels.density(t)
        total = cumulative[-1]
        cell = torch.searchsorted(cumulative, u * total, right=True).clamp(max=len(cumulative) - 1)
        mass = cumulative.diff(prepend=cumulative.new_zeros(1))[cell]
        if self.steps is not None:
            t = nodes[cell]
            return t, total / self.steps * (self.weight(t) / self.importance_density(t))
        within = ((u * total - (cumulative[cell] - mass)) / mass).clamp(0, 1)
        width = nodes[0] - nodes[1]
        t = self.sde.time(nodes[cell] - width * within).clamp(self.sde.t_min, 1.0)
        p = mass / total / width * 0.5 * self.sde.g2(t) / self.sde.sigma(t).square() * (1 - self.sde.t_min)
        return t, self.weight(t) / p

    def loss(self, denoiser: Denoiser, x0: Tensor, t: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
        """weight * mean over elements of (eps_theta(x_t, t) - eps)^2, (batch,), for x0 and eps (batch, *event)."""
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        x_t = torch.addcmul(expand_as(alpha, x0) * x0, expand_as(sigma, x0), eps)
        output = denoiser(x_t, t)
        if denoiser.parametrization.name == "eps":
            return (output - eps).square().flatten(1).mean(1) * weight.to(x0)
        of_x0, of_eps = denoiser.parametrization.target(alpha, sigma)
        target = torch.addcmul(expand_as(of_x0, x0) * x0, expand_as(of_eps, x0), eps)
        scale = denoiser.parametrization.eps(alpha, sigma)[1].square() * weight.to(t)
        return (output - target).square().flatten(1).mean(1) * scale.to(x0)
