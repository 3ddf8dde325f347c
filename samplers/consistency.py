"""Multistep sampling of a consistency model: to the data at once, back to some noise, and again.

Song et al. 2023, "Consistency Models", algorithm 1. With f(x_t, t), the end of the flow through x_t, and times t_max = t_0 >
t_1 > .. > t_(n-1):

    x_0 = f(x, t_i)      x = alpha(t_(i+1)) x_0 + sigma(t_(i+1)) z,  z ~ N(0, I)

The last f is the sample. One step is one evaluation, and draws no noise but that it begins with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.models.score_model import ScoreModel
from scorefield.models.student import FLOW_END, Student
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.grids import make_grid
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.base import GRID, CountedModel, GridSampler


@dataclass(frozen=True, kw_only=True)
class ConsistencySampler(GridSampler):
    """The multistep sampler of consistency models; other models are refused, and no other sampler takes these.

    `times` are the t_i and, at their end, 0.
    """

    steps: int = option(2, "evaluations")
    grid: str | Sequence[float] = option("sinh", f"{GRID}; the times of evaluations from t_max on, and the end, which "
                                                 "is not one of them")
    order = 1
    stochastic = True
    only = "consistency models, which objective consistency trains"

    def __post_init__(self) -> None:
        if self.denoise is not None:
            raise ArgumentError("sampler consistency ends at the data; leave out denoise", "denoise")

    def takes(self, student: Student | None, times: Tensor) -> bool:
        return student is not None and student.kind == FLOW_END

    def denoises(self, model: ScoreModel) -> bool:
        return False

    def times(self, model: ScoreModel) -> Tensor:
        if not isinstance(self.grid, str):
            times = self.grid_of(model, len(self.grid) - 1) if len(self.grid) > 1 else torch.tensor(self.grid)
        else:
            times = make_grid(self.grid, model.sde, self.steps, self.end(model))[:-1]
        return torch.cat([times.double(), torch.zeros(1, dtype=torch.float64)])

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        assert noise is not None
        for i in range(len(times) - 1):
            if i:
                alpha, sigma = (float(of_t(times[i])) for of_t in (model.sde.alpha, model.sde.sigma))
                x = alpha * x + sigma * noise.normal(x)
            x = model.x0(x, times[i])
            yield x
