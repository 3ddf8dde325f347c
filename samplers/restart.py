"""Restart sampling: Heun's method for the flow, with jumps back to more noise (Xu et al. 2023, "Restart Sampling for
Improving Generative Processes", algorithm 1), in z = x / alpha and s = sigma / alpha.

At the level of the grid nearest to s_min of an interval [s_min, s_max], K times: noise that leads to s_max is
added, and the flow is solved back by N levels of the grid karras. What noise contracts, errors of the steps among
it, is lost there, at the cost of a few steps.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from scorefield.models.score_model import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.base import GRID, CountedModel
from scorefield.samplers.edm import EDMGrid, Point
from scorefield.sde_lib.sde import SDE

RHO = 7.0      # of the levels within an interval, as of the grid karras
Interval = tuple[int, int, float, float]
Loop = tuple[int, list[Point]]


@dataclass(frozen=True, kw_only=True)
class Restart(EDMGrid):
    """Restart sampling; 2 steps - 1 evaluations, and 2 (N - 1) K more for each interval."""

    grid: str | Sequence[float] = option("karras", GRID)
    intervals: str = option("3,2,0.06,0.3", "N,K,s_min,s_max: levels and repetitions between two levels of sigma/alpha; "
                                            "several with a semicolon between them")
    order = 2
    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parsed()

    def parsed(self) -> list[Interval]:
        """The intervals, those with more noise first; ArgumentError for others."""
        found = []
        for text in self.intervals.split(";"):
            try:
                n, k, low, high = text.split(",")
                interval = int(n), int(k), float(low), float(high)
            except ValueError:
                interval = (0, 0, 0.0, 0.0)
            if not (interval[0] >= 2 and interval[1] >= 1 and 0 < interval[2] < interval[3] < math.inf):
                raise ArgumentError("an interval is N,K,s_min,s_max with N >= 2, K >= 1 and 0 < s_min < s_max, got "
                                    f"{text!r}", "intervals")
            found.append(interval)
        return sorted(found, key=lambda interval: -interval[2])

    def times(self, model: ScoreModel) -> Tensor:
        times = super().times(model)
        self._loops(model.sde, times)      # refuses what cannot be
        return times

    def _loops(self, sde: SDE, times: Tensor) -> dict[int, list[Loop]]:
        """The repetitions and the path of every interval, by the number of the level at which it starts."""
        _, levels = self.levels(sde, times)
        loops: dict[int, list[Loop]] = {}
        for n, k, low, high in self.parsed():
            if high > levels[0]:
                raise ArgumentError(f"an interval must lie below the grid's first level {levels[0]:.3g} of sigma/alpha, got "
                                    f"{low:g} to {high:g}", "intervals")
            gaps = [abs(level - low) for level in levels[1:-1]]
            near = 1 + gaps.index(min(gaps)) if gaps else 0
            if not (near and levels[near] < high):
                raise ArgumentError(f"the grid has no level near {low:g} and below {high:g}; take more steps", "steps",
                                    "intervals")
            ends = torch.tensor([high, levels[near]], dtype=torch.float64) ** (1 / RHO)
            inner = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, n, dtype=torch.float64)) ** RHO
            inner[0], inner[-1] = high, levels[near]
            at = sde.time(-inner.log())
            at[-1] = times[near]
            loops.setdefault(near, []).append((k, list(zip(inner.tolist(), at, sde.alpha(at).tolist(), strict=True))))
        return loops

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        assert noise is not None
        alpha, levels = self.levels(model.sde, times)
        loops, path = self._loops(model.sde, times), list(zip(levels, times, alpha, strict=True))
        z = x / alpha[0]
        for i in range(len(path) - 1):
            z = self.heun(model, z, path[i], path[i + 1], last=i == len(path) - 2)
            for k, inner in loops.get(i + 1, []):
                for _ in range(k):
                    z = z + math.sqrt(inner[0][0] ** 2 - inner[-1][0] ** 2) * noise.normal(z)
                    for here, there in pairwise(inner):
                        z = self.heun(model, z, here, there, last=False)
            yield z * alpha[i + 1]
