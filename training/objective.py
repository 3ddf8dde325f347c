"""Weighted denoising score matching, in continuous time and on a chain.

    loss = E_t E_x0 E_eps  w(t) / p(t) * || eps_theta(x_t, t) - eps ||^2 / D          t ~ p

is the denoising score matching of Vincent 2011 for the score -eps / sigma, since
lambda(t) || s_theta + eps / sigma ||^2 = (lambda / sigma^2) || eps_theta - eps ||^2. The weightings, as w = lambda /
sigma^2 (Song et al. 2021, "Maximum Likelihood Training of Score-Based Diffusion Models", table 1):

    simple      lambda = sigma^2,  w = 1               L_simple of Ho et al. 2020
    likelihood  lambda = g^2,      w = g^2 / sigma^2   bounds the negative log-likelihood
    uniform     lambda = 1,        w = 1 / sigma^2

The network regresses its own target: an error in F is an error (d eps / d F) times as large in eps, so any
parametrisation trains with the same loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.denoiser import Denoiser
from sde_lib.sde import SDE, expand_as

WEIGHTINGS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "simple": lambda sde, t: torch.ones_like(t),
    "likelihood": lambda sde, t: sde.g2(t) / sde.sigma(t).square(),
    "uniform": lambda sde, t: sde.sigma(t).square().reciprocal(),
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
class Objective:
    """The training loss of one experiment.

    weighting      "simple", "likelihood" or "uniform"
    time_sampling  "uniform" or "low_discrepancy": how the uniform numbers behind the times are drawn
    importance     draw times in proportion to the weighting, w / p constant, which leaves the expected loss as it is
                   and lowers its variance (for "likelihood" that is uniform in log-SNR)
    steps          None for continuous time on [t_min, 1]; else the times are (i + 1) / steps of a chain's indices

    Raises ValueError for an unknown word.
    """

    sde: SDE
    weighting: str = "simple"
    time_sampling: str = "low_discrepancy"
    importance: bool = False
    steps: int | None = None
    _nodes: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"unknown weighting {self.weighting!r}; choose from {', '.join(WEIGHTINGS)} "
                             "(--config.training.weighting)")
        if self.time_sampling not in TIME_SAMPLERS:
            raise ValueError(f"unknown time_sampling {self.time_sampling!r}; choose from {', '.join(TIME_SAMPLERS)} "
                             "(--config.training.time_sampling)")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"a chain needs at least 1 step, got {self.steps} (--config.training.chain_steps)")
        object.__setattr__(self, "_nodes", self._mass_function())

    def _mass_function(self) -> tuple[Tensor, Tensor]:
        """Where time may be, and the cumulative mass of w there.

        On a chain: its times, each with mass w. In continuous time: nodes equally spaced in half log-SNR lambda, and
        the mass of each cell by the trapezoidal rule. Within a cell times are drawn uniformly in lambda, whose
        density |lambda'| = g^2 / (2 sigma^2) is exact, so the rule's error costs variance, never bias.
        """
        if self.steps is not None:
            nodes = torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps
            mass = self.weight(nodes)
        else:
            ends = self.sde.half_log_snr(torch.tensor([self.sde.t_min, 1.0], dtype=torch.float64))
            nodes = torch.linspace(float(ends[0]), float(ends[1]), 1025, dtype=torch.float64)
            t = self.sde.time(nodes).clamp(self.sde.t_min, 1.0)
            density = self.weight(t) / (0.5 * self.sde.g2(t) / self.sde.sigma(t).square())      # of w dt in lambda
            mass = (density[1:] + density[:-1]) / 2 * -nodes.diff()
        return nodes, mass.cumsum(0)

    def weight(self, t: Tensor) -> Tensor:
        """w(t), the weight of the squared error in eps, in the shape of t."""
        return WEIGHTINGS[self.weighting](self.sde, t)

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
        total = cumulative[-1]
        cell = torch.searchsorted(cumulative, u * total, right=True).clamp(max=len(cumulative) - 1)
        mass = cumulative.diff(prepend=cumulative.new_zeros(1))[cell]
        if self.steps is not None:
            return nodes[cell], (total / self.steps).expand(batch)
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
