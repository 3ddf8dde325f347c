"""Guided distillation: one network that takes the scale, in place of two evaluations (Meng et al. 2023, section 3.1).

    loss = E_(t, w) E  w(t) || eps_student(x_t, t, y, w) - eps_teacher(x_t, t, y, w) ||^2 / D

The teacher's eps is that under classifier-free guidance, eps_none + w (eps_y - eps_none), with w uniform between the ends of
model.guidance. The student is a score model as far as its teacher is: every sampler takes it, and a teacher of students.
"""

from dataclasses import dataclass

from torch import Tensor

from scorefield.models.denoiser import Denoiser
from scorefield.numerics.errors import ArgumentError
from scorefield.training.objectives.objective import Batch
from scorefield.training.objectives.score_matching import told
from scorefield.training.objectives.taught import Lesson, Taught


@dataclass(frozen=True)
class GuidedDistillation(Taught):
    """The training loss of a student that takes the scale of guidance as a condition.

        objective = GuidedDistillation(teacher.sde, "truncated_snr", teacher_model=teacher)

    The arguments are those of Taught; ArgumentError for a student that takes no scale, and for a teacher that is no score
    model, since its guided prediction belongs to no step of its sampler.
    """

    def require(self, student: Denoiser) -> None:
        super().require(student)
        if student.takes.guidance is None:
            raise ArgumentError("a student of guided distillation takes the scale; set model.guidance to the lowest and the "
                                "highest, such as 0,4", "model.guidance")
        if self.teacher_model is not None and self.teacher_model.student is not None:
            raise ArgumentError(f"guided distillation needs a score model as teacher, and {self.teacher} is "
                                f"{self.teacher_model.student}; distil the guidance first", "training.teacher")

    def loss(self, model: Denoiser, batch: Batch, draw: Lesson) -> Tensor:
        """w(t) / p(t) times the mean square of the difference in eps, (batch,)."""
        x_t, condition = self.noisy(batch, draw, draw.t), self.lesson(model, batch, draw).condition
        error = model.predict(x_t, draw.t, "eps", *told(model, condition)) - self.taught(x_t, draw.t, "eps", condition)
        return error.square().flatten(1).mean(1) * draw.weight.to(error)
