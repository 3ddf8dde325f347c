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
from scorefield.sde_lib.sde import SDE

Point = tuple[float, Tensor, float]      # level sigma / alpha, time and alpha


@dataclass(frozen=True, kw_only=True)
class EDMGrid(GridSampler):
    """`steps` noise levels from t_max to t_end, then 0, and Heun's step between two levels."""

    steps: int = option(18, "number of noise levels above 0; takes 2 steps - 1 evaluations")
    grid: str | Sequence[float] = option("karras", GRID)

    def __post_init__(self) -> None:
        if self.denoise:
            raise ValueError("the sampler ends at the data already; leave out denoise")

    def times(self, model: ScoreModel) -> Tensor:
        if self.steps < 1:
            raise ArgumentError(f"steps must be at least 1, got {self.steps}", "steps")
        if isinstance(self.grid, str) and self.steps == 1:
            levels = torch.full((1,), model.sde.t_max, dtype=torch.float64)
        else:
            levels = self.grid_of(model, self.steps - 1)
        return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])

    def levels(self, sde: SDE, times: Tensor) -> tuple[list[float], list[float]]:
        """alpha and sigma / alpha at the times, of which the last is the data's."""
        return [*sde.alpha(times[:-1]).tolist(), 1.0], [*torch.exp(-sde.half_log_snr(times[:-1])).tolist(), 0.0]

    def heun(self, model: CountedModel, z: Tensor, here: Point, there: Point, last: bool) -> Tensor:
        """z at the level `there`; the last step is Euler's."""
        h = there[0] - here[0]
        slope = model.eps(z * here[2], here[1])
        moved = torch.add(z, slope, alpha=h)
        if last:
            return moved
        slope = slope + model.eps(moved * there[2], there[1])
        return torch.add(z, slope, alpha=h / 2)


@dataclass(frozen=True, kw_only=True)
class EDM(EDMGrid):
    """Order 2; 2 steps - 1 evaluations: `steps` noise levels from t_max to t_end, then 0."""

    churn: float = option(0.0, "S_churn: noise added over all steps, in units of each level; 0 is deterministic")
    s_min: float = option(0.0, "smallest level sigma/alpha at which noise is added")
    s_max: float = option(math.inf, "largest level sigma/alpha at which noise is added")
    s_noise: float = option(1.0, "standard deviation of the added noise, relative to what would keep the marginals")
    order = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.churn < math.inf and 0 <= self.s_noise < math.inf and 0 <= self.s_min <= self.s_max):
            raise ArgumentError("need churn and s_noise finite and not negative and 0 <= s_min <= s_max, got "
                                f"{self.churn}, {self.s_noise}, {self.s_min} and {self.s_max}",
                                "churn", "s_noise", "s_min", "s_max")

    @property
    def stochastic(self) -> bool:
        return self.churn > 0

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        alpha, levels = self.levels(model.sde, times)
        path = list(zip(levels, times, alpha, strict=True))
        starts = path if noise is None else self._raised(model.sde, path)
        z = x / alpha[0]
        for i in range(len(path) - 1):
            if noise is not None and self.s_min <= levels[i] <= self.s_max:
                z = z + math.sqrt(starts[i][0] ** 2 - levels[i] ** 2) * self.s_noise * noise.normal(z)
            z = self.heun(model, z, starts[i], path[i + 1], last=i == len(path) - 2)
            yield z * alpha[i + 1]

    def _raised(self, sde: SDE, path: list[Point]) -> list[Point]:
        """The points of the path after noise was added."""
        gamma = min(self.churn / (len(path) - 1), math.sqrt(2) - 1)
        raised = torch.tensor([min(level * (1 + gamma), path[0][0]) for level, _, _ in path[:-1]], dtype=torch.float64)
        times = sde.time(-raised.log())
        every = zip(raised.tolist(), times, sde.alpha(times).tolist(), strict=True)
        return [new if self.s_min <= old[0] <= self.s_max else old for new, old in zip(every, path, strict=False)]
