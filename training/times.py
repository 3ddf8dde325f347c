"""How the times of a batch are drawn: t ~ p, with the importance weights w(t) / p(t) that keep the expected loss.

Every time comes from a number u, uniform on [0, 1); TIME_SAMPLERS says how those of a batch are drawn together. Then t is
uniform on [t_min, t_max] (or over the indices of a chain), or drawn in proportion to the weighting's importance.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.numerics.text import choose
from scorefield.sde_lib.sde import SDE
from scorefield.training.weightings import Weighting


def independent(batch: int, generator: torch.Generator) -> Tensor:
    """`batch` independent numbers, uniform on [0, 1), float64 on the CPU."""
    return torch.rand(batch, generator=generator, dtype=torch.float64)


def low_discrepancy(batch: int, generator: torch.Generator) -> Tensor:
    """One number in each cell of width 1 / batch, from a common shift (Kingma et al. 2021, appendix I.1).

    Each is uniform on [0, 1). Their order is shuffled, so that a slice of the batch is spread over time too.
    """
    shift = torch.rand(1, generator=generator, dtype=torch.float64)
    cells = torch.randperm(batch, generator=generator).double()
    return ((cells + shift) / batch).clamp(max=1 - 2**-53)


TIME_SAMPLERS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "uniform": independent, "low_discrepancy": low_discrepancy,
}


@dataclass(frozen=True)
class Times:
    """Times in training: those of the chain that the SDE was made from, or else those in [t_min, t_max].

    weighting   w(t)
    sampling    a key of TIME_SAMPLERS
    importance  draw times in proportion to `weighting.importance`. Where that is w itself, w / p is constant. The expected
                loss stays as it is, and its variance falls

    Raises ArgumentError for an unknown word.
    """

    sde: SDE
    weighting: Weighting
    sampling: str = "low_discrepancy"
    importance: bool = False
    _nodes: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        choose("time_sampling", TIME_SAMPLERS, self.sampling, "time_sampling")
        object.__setattr__(self, "_nodes", self._mass_function())

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times and importance weights w(t) / p(t), both float64 (batch,) on the CPU, p with respect to the uniform density.

        The mean of the second is the same for every way of drawing: int w dt / (t_max - t_min), or the mean of w over
        the chain.
        """
        u = TIME_SAMPLERS[self.sampling](batch, generator)
        if not self.importance:
            t = self._uniform(u)
            return t, self.weighting(t)
        if self.sde.steps is not None:
            return self._of_chain(u)
        times = self.weighting.times(u)
        return self._by_mass(u) if times is None else (times, self.weighting(times) / self.weighting.importance(times))

    def _uniform(self, u: Tensor) -> Tensor:
        if self.sde.steps is not None:
            return self._nodes[0][(u * self.sde.steps).long()]
        return self.sde.t_min + (self.sde.t_max - self.sde.t_min) * u

    def _of_chain(self, u: Tensor) -> tuple[Tensor, Tensor]:
        cell, _, total = self._cell(u)
        t = self._nodes[0][cell]
        assert self.sde.steps is not None
        return t, total / self.sde.steps * (self.weighting(t) / self.weighting.importance(t))

    def _by_mass(self, u: Tensor) -> tuple[Tensor, Tensor]:
        (nodes, cumulative), (cell, mass, total) = self._nodes, self._cell(u)
        within = ((u * total - (cumulative[cell] - mass)) / mass).clamp(0, 1)
        width = nodes[0] - nodes[1]
        t = self.sde.time(nodes[cell] - width * within).clamp(self.sde.t_min, self.sde.t_max)
        p = mass / total / width * 0.5 * self.sde.g2(t) / self.sde.sigma(t).square() * (self.sde.t_max - self.sde.t_min)
        return t, self.weighting(t) / p

    def _cell(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The cell of the mass function into which each u falls, the mass of that cell, and the total mass."""
        cumulative = self._nodes[1]
        total = cumulative[-1]
        cell = torch.searchsorted(cumulative, u * total, right=True).clamp(max=len(cumulative) - 1)
        return cell, cumulative.diff(prepend=cumulative.new_zeros(1))[cell], total

    def _mass_function(self) -> tuple[Tensor, Tensor]:
        """Where time may be, and the cumulative mass of the importance density there.

        On a chain: its times. In continuous time: nodes equally spaced in half log-SNR lambda, and the mass of each
        cell by the trapezoidal rule. Within a cell times are drawn uniformly in lambda, whose density
        |lambda'| = g^2 / (2 sigma^2) is exact, so the rule's error costs variance, never bias.
        """
        if self.sde.steps is not None:
            nodes = torch.arange(1, self.sde.steps + 1, dtype=torch.float64) / self.sde.steps
            mass = self.weighting.importance(nodes)
        else:
            limits = torch.tensor([self.sde.t_min, self.sde.t_max], dtype=torch.float64)
            ends = self.sde.half_log_snr(limits)
            nodes = torch.linspace(float(ends[0]), float(ends[1]), 1025, dtype=torch.float64)
            t = self.sde.time(nodes).clamp(self.sde.t_min, self.sde.t_max)
            density = self.weighting.importance(t) / (0.5 * self.sde.g2(t) / self.sde.sigma(t).square())      # in lambda
            mass = (density[1:] + density[:-1]) / 2 * -nodes.diff()
        return nodes, mass.cumsum(0)
