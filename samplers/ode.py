"""The probability-flow ODE by an adaptive solver (Song et al. 2021, section 4.3), through torchdiffeq."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.denoiser import ScoreModel
from samplers.base import CountedModel, Sampler
from samplers.noise import NoiseStream
from sde_lib.integrate import MAX_EVALUATIONS, METHODS, check_tolerances, integrate


@dataclass(frozen=True, kw_only=True)
class ProbabilityFlow(Sampler):
    """dx/dt = f x - g^2/2 score, to the given tolerances; the evaluations are counted as they come.

    method           "dopri5", "dopri8", "bosh3", "fehlberg2" or "adaptive_heun"
    rtol, atol       relative and absolute tolerance of the RMS error of a step, over the whole batch
    max_evaluations  ArithmeticError beyond that many
    points           times at which the trajectory is recorded, equally spaced in t, both ends included
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    max_evaluations: int = MAX_EVALUATIONS
    points: int = 2
    stochastic = False

    @property
    def order(self) -> int:
        return METHODS[self.method]

    def __post_init__(self) -> None:
        check_tolerances(self.method, self.rtol, self.atol, self.max_evaluations)
        if self.points < 2:
            raise ValueError(f"a trajectory has at least 2 points, got {self.points}")

    def times(self, model: ScoreModel) -> Tensor:
        t_end = model.sde.t_sample if self.t_end is None else self.t_end
        if not model.sde.t_min <= t_end < 1:
            raise ValueError(f"t_end must lie in [{model.sde.t_min:g}, 1) for {model.sde}, got {t_end} (--t_end)")
        return torch.linspace(1.0, t_end, self.points, dtype=torch.float64)

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        def field(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (model.sde.reverse_drift(state[0], t, model.score(state[0], t), eta=0.0),)

        states, _ = integrate(field, (x,), times.tolist(), self.method, self.rtol, self.atol, self.max_evaluations)
        for (state,) in states[1:]:
            yield state
