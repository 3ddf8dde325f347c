"""Progressive distillation: one step of the student does what several steps of DDIM by its teacher do.

Salimans and Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models", algorithm 2. A step of DDIM from t to
s is linear in x and the predicted x_0,

    x_s = r x_t + (alpha_s - r alpha_t) x_0,      r = sigma_s / sigma_t

so the teacher's steps through t = t_0 > .. > t_k = s are one step with the x_0

    target = sum_j c_j x_0(x_j, t_j) / sum_j c_j
    c_j = sigma_s / sigma_(j+1) (alpha_(j+1) - sigma_(j+1) / sigma_j alpha_j)

a weighted mean of the teacher's predictions (their equation in x~, without its cancellation). The student regresses it:

    loss = E  w(t) SNR(t) || x_0(x_t, t) - target ||^2 / D

at the first times of its steps. A student of N steps is the teacher of one of N / 2, and so on down to 1.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.models.denoiser import Denoiser
from scorefield.models.student import COUPLED, MOST_STEPS, STEPS
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.grids import make_grid
from scorefield.sde_lib.sde import expand_as
from scorefield.training.objectives.objective import Batch
from scorefield.training.objectives.score_matching import told
from scorefield.training.objectives.taught import Lesson, Taught
from scorefield.training.times import TIME_SAMPLERS
from scorefield.training.weightings import Weighting

GRIDS = ("uniform", "quadratic", "logsnr", "karras", "sinh")      # whose grids of fewer steps lie within those of more


@dataclass(frozen=True, eq=False)
class FirstTimes:
    """The times of a grid but for its last, each as likely, with the weights w(t)."""

    grid: Tensor
    weighting: Weighting
    sampling: str

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times and weights (batch,), float64."""
        steps = len(self.grid) - 1
        t = self.grid[(TIME_SAMPLERS[self.sampling](batch, generator) * steps).long().clamp(max=steps - 1)]
        return t, self.weighting(t)


@dataclass(frozen=True)
class ProgressiveDistillation(Taught):
    """The training loss of a student of `student_steps` steps of DDIM.

        objective = ProgressiveDistillation(teacher.sde, teacher_model=teacher, student_steps=4)

    student_steps  of the student
    substeps       steps of the teacher in one of the student
    grid           of both, from t_max to t_sample of the SDE: uniform, quadratic, logsnr, karras or sinh
    weighting      w(t), of errors in eps as everywhere; by default that of the paper

    The other arguments are those of Taught. Raises ArgumentError for numbers below 1, and for a teacher that is itself a
    student of other steps.
    """

    weighting: str = "truncated_snr"
    importance: bool = field(default=False, init=False)
    student_steps: int = field(default=4, kw_only=True)
    substeps: int = field(default=2, kw_only=True)
    grid: str = field(default="uniform", kw_only=True)
    fine: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, least in (("student_steps", 1), ("substeps", 2)):
            if not least <= getattr(self, name) <= MOST_STEPS:
                raise ArgumentError(f"{name} must lie in {least} .. {MOST_STEPS}, got {getattr(self, name)}", name)
        super().__post_init__()
        if self.grid not in GRIDS:
            raise ArgumentError(f"the student's grid must lie within its teacher's; choose from {', '.join(GRIDS)}, got "
                                f"{self.grid!r}", "grid")
        fine = make_grid(self.grid, self.sde, self.student_steps * self.substeps, self.sde.t_sample)
        object.__setattr__(self, "fine", fine)
        object.__setattr__(self, "times", FirstTimes(fine[::self.substeps], self.times.weighting, self.time_sampling))

    def require(self, student: Denoiser) -> None:
        super().require(student)
        made_for = None if self.teacher_model is None else self.teacher_model.student
        if made_for is None or made_for.kind == COUPLED:
            return
        steps = self.student_steps * self.substeps
        if made_for.kind != STEPS or made_for.times is None or not same_times(made_for.times, self.fine):
            raise ArgumentError(f"the teacher is {made_for}, and a student of {self.student_steps} steps needs one of "
                                f"{steps} on the grid {self.grid!r}", "training.student_steps", "training.substeps",
                                "training.grid")

    def loss(self, model: Denoiser, batch: Batch, draw: Lesson) -> Tensor:
        """w(t) SNR(t) times the mean square of the difference to the target in x_0, (batch,)."""
        x_t, condition = self.noisy(batch, draw, draw.t), self.lesson(model, batch, draw).condition
        target = self.target(x_t, draw.t, condition)
        error = model.predict(x_t, draw.t, "x0", *told(model, condition)) - target
        weight = draw.weight * torch.exp(2 * self.sde.half_log_snr(draw.t))
        return error.square().flatten(1).mean(1) * weight.to(error)

    @torch.no_grad()
    def target(self, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The x_0 to which the teacher's steps from x (batch, *event) at first times t (batch,) amount, of x's shape."""
        times = self.steps_from(t)
        alpha, sigma = self.sde.alpha(times), self.sde.sigma(times)
        gain = alpha[1:] - sigma[1:] / sigma[:-1] * alpha[:-1]
        share = gain * sigma[-1] / sigma[1:]
        share, target = share / share.sum(0), torch.zeros_like(x)
        for j in range(self.substeps):
            x0 = self.taught(x, times[j], "x0", condition)
            target = target + expand_as(share[j], x) * x0
            x = expand_as(sigma[j + 1] / sigma[j], x) * x + expand_as(gain[j], x) * x0
        return target

    def steps_from(self, t: Tensor) -> Tensor:
        """The teacher's times of the steps that begin at t (batch,), (substeps + 1, batch) on t's device."""
        fine = self.fine.to(t.device, t.dtype)
        first = (fine[::self.substeps][:, None] - t).abs().argmin(0) * self.substeps
        return fine[first + torch.arange(self.substeps + 1, device=t.device)[:, None]]


def same_times(a: Tensor, b: Tensor) -> bool:
    """Whether two grids are the same but for rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=0)
