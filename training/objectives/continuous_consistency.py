"""Consistency models in continuous time, simplified and stabilised (sCM).

Lu and Song 2025, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models", algorithm 1. A
variance-preserving process is their TrigFlow by its angle: alpha = cos theta, sigma = sin theta, v-prediction F, so that

    f(x, theta) = cos theta x - sin theta F(x, theta),      f(x, 0) = x

Along the flow f is constant. With dx/dtheta = v, the teacher's in distillation and alpha eps - sigma x_0 in training, the
tangent cos theta df/dtheta is

    g = -cos^2 (F - dx/dtheta) - r cos sin (x + dF/dtheta)      loss = | F - stopgrad(F + g / (|g| / sqrt D + c)) |^2 / D

dF/dtheta is the total derivative along the flow, exact by forward-mode differentiation. r rises from 0 to 1 in the first
`warmup_tangent` updates, c = 0.1. Their adaptive weighting by a second network is left out, since normalised tangents weigh
all times nearly alike.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.models.denoiser import Denoiser
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, expand_as
from scorefield.sde_lib.vp import VariancePreserving
from scorefield.training.objectives.consistency import same_dropout
from scorefield.training.objectives.levels import Even, LogNormal, make_levels
from scorefield.training.objectives.objective import Batch
from scorefield.training.objectives.score_matching import told
from scorefield.training.objectives.taught import Lesson, Taught
from scorefield.training.times import TIME_SAMPLERS

MOST_UPDATES, LARGEST_C = 10**9, 1e6


@dataclass(frozen=True, eq=False)
class AnyTimes:
    """Times in [t_min, t_max] of a density of levels, each with the weight 1."""

    sde: SDE
    levels: Even | LogNormal
    sampling: str

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times and weights (batch,), float64."""
        t = self.levels.times(self.sde, TIME_SAMPLERS[self.sampling](batch, generator))
        return t, torch.ones_like(t)


@dataclass(frozen=True)
class ContinuousConsistency(Taught):
    """The training loss of a consistency model in continuous time: distillation with a teacher, training without.

        objective = ContinuousConsistency(teacher.sde, teacher_model=teacher)

    warmup_tangent  updates until r is 1
    c               of the norm of the tangent
    levels          which times are drawn: "even" in the angle, or "lognormal:mean=-1:std=1.4" as in the paper

    The other arguments are those of Taught. Raises ArgumentError for an SDE that does not preserve the variance, for numbers
    out of range, and for a student without v-prediction.
    """

    weighting: str = field(default="simple", init=False)
    importance: bool = field(default=False, init=False)
    warmup_tangent: int = field(default=1000, kw_only=True)
    c: float = field(default=0.1, kw_only=True)
    levels: str = field(default="even", kw_only=True)
    needs_teacher = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.sde, VariancePreserving):
            raise ArgumentError(f"continuous_consistency is for variance-preserving SDEs, such as cosine, got {self.sde}; "
                                "objective consistency takes others", "objective", "sde.name")
        if not 0 <= self.warmup_tangent <= MOST_UPDATES or not 0 < self.c <= LARGEST_C:
            raise ArgumentError(f"warmup_tangent must lie in 0 .. {MOST_UPDATES}, and c in (0, {LARGEST_C:g}]; got "
                                f"{self.warmup_tangent} and {self.c}", "warmup_tangent", "c")
        object.__setattr__(self, "times", AnyTimes(self.sde, make_levels(self.levels), self.time_sampling))

    def require(self, student: Denoiser) -> None:
        super().require(student)
        if student.parametrization.name != "v" or student.energy:
            raise ArgumentError("continuous_consistency is for v-prediction, without an energy; set model.parametrization=v",
                                "model.parametrization")

    def loss(self, model: Denoiser, batch: Batch, draw: Lesson) -> Tensor:
        """The mean square of F less its target, (batch,)."""
        t, condition = draw.t, self.lesson(model, batch, draw).condition
        x = self.noisy(batch, draw, t)
        with torch.no_grad(), same_dropout(x):
            output, tangent = self.tangent(model, batch, draw, x, condition)
            size = tangent.square().flatten(1).mean(1).sqrt()
            target = output + tangent / expand_as(size + self.c, x)
        return (model(x, t, *told(model, condition)) - target).square().flatten(1).mean(1)

    def tangent(self, model: Denoiser, batch: Batch, draw: Lesson, x: Tensor, condition: dict[str, Tensor]
                ) -> tuple[Tensor, Tensor]:
        """F and g at x (batch, *event), of its shape."""
        t, sde = draw.t, self.sde
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        cos, sin = expand_as(alpha, x), expand_as(sigma, x)
        slope = cos * draw.eps - sin * batch.x if self.teacher_model is None else self.taught(x, t, "v", condition)
        t_slope = -sigma / (sde.drift(t) * alpha)      # dt/dtheta, from alpha = cos theta
        output, change = torch.func.jvp(lambda x, t: model(x, t, *told(model, condition)), (x, t), (slope, t_slope))[:2]
        r = 1.0 if not self.warmup_tangent else min(1.0, self.progress.updates / self.warmup_tangent)
        return output, -cos.square() * (output - slope) - r * cos * sin * (x + change)
