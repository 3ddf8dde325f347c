"""EDM's stochastic Heun sampler (Karras et al. 2022, algorithms 1 and 2), in z = x / alpha and s = sigma / alpha.

Any SDE's flow is dz/ds = eps there, and ends at s = 0, where z is the data.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.models.denoiser import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.base import GRID, CountedModel, GridSampler


@dataclass(frozen=True, kw_only=True)
class EDM(GridSampler):
    """Order 2; 2 steps - 1 evaluations: `steps` noise levels from t_max to t_end, then 0."""

    steps: int = option(18, "number of noise levels above 0; takes 2 steps - 1 evaluations")
    grid: str | Sequence[float] = option("karras", GRID)
    churn: float = option(0.0, "S_churn: noise added over all steps, in units of each level; 0 is deterministic")
    s_min: float = option(0.0, "smallest level sigma/alpha at which noise is added")
    s_max: float = option(math.inf, "largest level sigma/alpha at which noise is added")
    s_noise: float = option(1.0, "standard deviation of the added noise, relative to what would keep the marginals")
    order = 2

    def __post_init__(self) -> None:
        if self.denoise:
            raise ValueError("edm ends at the data already; leave out denoise")
        if not (0 <= self.churn < math.inf and 0 <= self.s_noise < math.inf and 0 <= self.s_min <= self.s_max):
            raise ArgumentError("need churn and s_noise finite and not negative and 0 <= s_min <= s_max, got "
                                f"{self.churn}, {self.s_noise}, {self.s_min} and {self.s_max}",
                                "churn", "s_noise", "s_min", "s_max")

    @property
    def stochastic(self) -> bool:
        return self.churn > 0

    def times(self, model: ScoreModel) -> Tensor:
        if self.steps < 1:
            raise ArgumentError(f"steps must be at least 1, got {self.steps}", "steps")
        if isinstance(self.grid, str) and self.steps == 1:
            levels = torch.full((1,), model.sde.t_max, dtype=torch.float64)
        else:
            levels = self.grid_of(model, self.steps - 1)
        return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        sde = model.sde
        alpha = [*sde.alpha(times[:-1]).tolist(), 1.0]
        levels = [*torch.exp(-sde.half_log_snr(times[:-1])).tolist(), 0.0]
        n = len(levels) - 1
        z = x / alpha[0]
        for i in range(n):
            level, t, scale = levels[i], times[i], alpha[i]
            if noise is not None and self.s_min <= level <= self.s_max:
                gamma = min(self.churn / n, math.sqrt(2) - 1)
                raised = min(level * (1 + gamma), levels[0])
                z = z + math.sqrt(raised**2 - level**2) * self.s_noise * noise.normal(z)
                level, t = raised, sde.time(torch.tensor(-math.log(raised), dtype=torch.float64))
                scale = float(sde.alpha(t))
            h = levels[i + 1] - level
            slope = model.eps(z * scale, t)
            moved = torch.add(z, slope, alpha=h)
            if i < n - 1:
                slope = slope + model.eps(moved * alpha[i + 1], times[i + 1])
                moved = torch.add(z, slope, alpha=h / 2)
            z = moved
            yield z * alpha[i + 1]
