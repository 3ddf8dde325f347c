"""Where the times of consistency models lie: words for their density, which these models know by the angle of x_t.

The angle theta = atan(sigma / alpha) runs from 0 at the data to pi/2 where there is only noise; sigma / alpha itself may be
infinite there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option, worded
from scorefield.sde_lib.sde import SDE
from scorefield.training.weightings import LogNormalLevels


def angle(sde: SDE, t: Tensor) -> Tensor:
    """theta(t) = atan(sigma / alpha), of t's shape."""
    return torch.atan2(sde.sigma(t), sde.alpha(t))


@dataclass(frozen=True)
class Even:
    """Every interval of a grid as often, or in continuous time every angle."""

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """Times from uniform u (batch,), between t_min and t_max."""
        low, high = (float(angle(sde, torch.tensor(t, dtype=torch.float64))) for t in (sde.t_min, sde.t_max))
        t = sde.time(-torch.tan(low + (high - low) * u).log())
        return t.clamp(sde.t_min, sde.t_max)

    def places(self, sde: SDE, grid: Tensor, u: Tensor) -> Tensor:
        """Which interval of a decreasing grid (n + 1,) each u falls on, int64 (batch,)."""
        return (u * (len(grid) - 1)).long().clamp(max=len(grid) - 2)


@dataclass(frozen=True)
class LogNormal:
    """ln(sigma / alpha) ~ N(mean, std^2); of a grid each interval as often as it has of that mass."""

    mean: float = option(-1.1, "of ln(sigma / alpha)")
    std: float = option(2.0, "its standard deviation")

    def __post_init__(self) -> None:
        if not 0 < self.std < float("inf"):
            raise ArgumentError(f"std of the levels must be above 0, got {self.std}", "levels")

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        return LogNormalLevels(sde, self.mean, self.std).times(u)

    def places(self, sde: SDE, grid: Tensor, u: Tensor) -> Tensor:
        place = torch.searchsorted(-grid, -self.times(sde, u), right=True) - 1      # grid[place] >= t > grid[place + 1]
        return place.clamp(0, len(grid) - 2)


LEVELS: dict[str, type[Even | LogNormal]] = {"even": Even, "lognormal": LogNormal}


def make_levels(text: str) -> Even | LogNormal:
    """The density of that name, with options after colons: "even" or "lognormal:mean=-1:std=1.4"; ArgumentError else."""
    kind, options = worded("levels", LEVELS, text, "levels")
    return kind(**options)
