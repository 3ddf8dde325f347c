"""The error of deterministic samplers: their distance to a tight solution of the probability-flow ODE from the same noise.

The solution is that of the exponential Adams method of order 5 with its corrector (samplers/adams.py), its state in
float64. Its steps double until a doubling moves the median sample by less than TOLERANCE, or by more than half of what the
one before did, which is rounding or a field without derivatives, or MOST steps are reached. The last move bounds the
accuracy, and is reported with it: errors near it say no more than "as exact as can be told". A network in float32 answers
with rounding errors of about 1e-7, which the solution inherits.

A sampler is measured against what it converges to: the flow at its own last time; and for those that end by the predicted
x_0 (EDM's, or with a final denoising), the prediction at the flow's state there.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.models.score_model import ScoreModel, evaluation_mode
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import ExponentialAdams, Sampler

ORDER, FIRST, MOST, TOLERANCE = 5, 60, 480, 1e-6
WIDTH = 0.8      # of the grid "sinh" (numerics/grids.py)


@dataclass(frozen=True)
class TightSolution:
    """x (batch, *event) in float64; steps, each an evaluation of the model; what the last doubling moved (RMS a dimension,
    the median over the batch).
    """

    x: Tensor
    steps: int
    accuracy: float


def rms(difference: Tensor) -> Tensor:
    """The root mean square over the dimensions of each sample, (batch,): the distance of two samples per dimension."""
    return difference.double().flatten(1).square().mean(1).sqrt()


def tight_solution(model: ScoreModel, x: Tensor, start: float, end: float, tolerance: float = TOLERANCE,
                   most: int = MOST) -> TightSolution:
    """The flow from x (batch, *event) at time `start` to `end`, as above; on devices without float64 in float32."""
    x = x if x.device.type == "mps" else x.double()
    steps, last = FIRST, math.inf
    before = _solved(model, x, start, end, steps // 2)
    while True:
        solution = _solved(model, x, start, end, steps)
        moved = float(rms(solution - before).median())
        if moved <= tolerance or moved > last / 2 or 2 * steps > most:
            return TightSolution(solution, steps, moved)
        before, steps, last = solution, 2 * steps, moved


def _solved(model: ScoreModel, x: Tensor, start: float, end: float, steps: int) -> Tensor:
    sde = model.sde
    first, last = (math.asinh(float(sde.half_log_snr(t)) / WIDTH) for t in (start, end))
    inner = sde.time(WIDTH * torch.linspace(first, last, steps + 1, dtype=torch.float64).sinh())[1:-1].tolist()
    return ExponentialAdams(order=ORDER, grid=(start, *inner, end), steps=steps)(model, x).x


class Limits:
    """What deterministic samplers converge to from the noise x (batch, *event); each solution is computed once.

        limits = Limits(model, x_T)
        error = rms(sampler(model, x_T).x - limits.of(sampler).x).median()
    """

    def __init__(self, model: ScoreModel, x: Tensor):
        self.model, self.noise = model, x
        self._known: dict[tuple[float, float], TightSolution] = {}
        self._denoised: dict[tuple[float, float], TightSolution] = {}

    def of(self, sampler: Sampler) -> TightSolution:
        """The solution that the sampler approaches as its steps grow; ArgumentError for a stochastic sampler."""
        if sampler.stochastic:
            raise ArgumentError(f"{type(sampler).__name__} draws noise, so it approaches no solution of the flow", "sampler")
        times = sampler.times(self.model)
        to_data = float(times[-1]) == 0      # by a last step that returns the predicted x_0
        key = float(times[0]), sampler.end(self.model) if to_data else float(times[-1])
        if key not in self._known:
            self._known[key] = tight_solution(self.model, self.noise, *key)
        solution = self._known[key]
        if not (to_data or sampler.denoise):
            return solution
        if key not in self._denoised:
            with evaluation_mode(self.model), torch.no_grad():
                x0 = self.model.project(self.model.x0(solution.x, key[1]))
            self._denoised[key] = TightSolution(x0, solution.steps + 1, solution.accuracy)
        return self._denoised[key]
