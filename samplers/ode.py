"""The probability-flow ODE by an adaptive solver (Song et al. 2021, section 4.3), through torchdiffeq."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.models.denoiser import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.grids import make_grid
from scorefield.numerics.integrate import MAX_EVALUATIONS, METHODS, check_tolerances, integrate
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.base import CountedModel, Sampler
from scorefield.samplers.fixed_ode import SCALING, SCALINGS


@dataclass(frozen=True, kw_only=True)
class ProbabilityFlow(Sampler):
    """The flow to the given tolerances; the evaluations are counted as they come. The scalings are those of fixed_ode.py."""

    scaling: str = option("x", SCALING)
    method: str = option("dopri5", ", ".join(METHODS))
    rtol: float = option(1e-5, "relative tolerance of the RMS error of a step, over the whole batch")
    atol: float = option(1e-5, "absolute tolerance of the RMS error of a step, over the whole batch")
    max_evaluations: int = option(MAX_EVALUATIONS, "largest number of evaluations; the solver then stops with an error")
    points: int = option(2, "number of times at which the trajectory is recorded, equally spaced in t, with both ends")
    stochastic = False

    @property
    def order(self) -> int:
        return METHODS[self.method]

    def __post_init__(self) -> None:
        check_tolerances(self.method, self.rtol, self.atol, self.max_evaluations)
        if self.scaling not in SCALINGS:
            raise ArgumentError(f"unknown scaling {self.scaling!r}; choose from {', '.join(SCALINGS)}", "scaling")
        if self.points < 2:
            raise ArgumentError(f"a trajectory has at least 2 points, got {self.points}", "points")

    def times(self, model: ScoreModel) -> Tensor:
        return make_grid("uniform", model.sde, self.points - 1, self.end(model))

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        sde = model.sde
        low, high = sorted((float(times[0]), float(times[-1])))      # from noise to data, or back

        def in_x(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (sde.reverse_drift(state[0], t, model.score(state[0], t), eta=0.0),)

        def in_z(c: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            t = sde.time(-torch.as_tensor(float(c), dtype=torch.float64).log()).clamp(low, high)
            return (model.eps(state[0] * float(sde.alpha(t)), t),)

        clock, scale = times, torch.ones_like(times)
        if self.scaling == "ve":
            clock, scale = torch.exp(-sde.half_log_snr(times)), sde.alpha(times)
        states, _ = integrate(in_x if self.scaling == "x" else in_z, (x / float(scale[0]),), clock.tolist(), self.method,
                              self.rtol, self.atol, self.max_evaluations)
        for (state,), alpha in zip(states[1:], scale[1:].tolist(), strict=True):
            yield state * alpha
