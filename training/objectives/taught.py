"""What objectives of students share: a teacher, what it says under guidance, and which students it can have.

A student is trained like any model. Its config names the run of its teacher, whose averaged weights do not change. With
`initial` "teacher" it begins with these weights. Where the student takes the scale w of guidance, each example draws one,
and the teacher is guided at that scale, by its own condition or by classifier-free guidance (Meng et al. 2023, "On
Distillation of Guided Diffusion Models", whose scale is w - 1).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scorefield.models.conditions import GUIDANCE, LABEL, Conditions
from scorefield.models.denoiser import Denoiser
from scorefield.models.score_model import ConditionalModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.processes import World
from scorefield.sde_lib.sde import expand_as
from scorefield.training.draws import Draws
from scorefield.training.objectives.objective import Batch, Memory
from scorefield.training.objectives.score_matching import NoisyExamples, told

TEACHER, RANDOM = "teacher", "random"


class Lesson(NamedTuple):
    """Times t and weights, float64 (batch,), noise eps (batch, *event), whose labels are dropped, and where the scale of
    guidance lies between its ends, uniform (batch,).
    """

    t: Tensor
    weight: Tensor
    eps: Tensor
    dropped: Tensor | None
    place: Tensor


class Progress:
    """How many updates a student has had, and the digest of the weights that it learns from, uint8 (32,)."""

    def __init__(self, teacher: torch.nn.Module | None):
        self.updates = 0
        self.teacher = torch.zeros(32, dtype=torch.uint8) if teacher is None else digest_of(teacher)


def digest_of(module: torch.nn.Module) -> Tensor:
    """SHA-256 of the names, sizes and weights of a module, uint8 (32,)."""
    sha = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(sha.digest()), dtype=torch.uint8)


@dataclass(frozen=True)
class Taught(NoisyExamples, Memory):
    """An objective of a student. A subclass has its loss.

    teacher        a trained run or checkpoint
    initial        what the weights begin with: "teacher", "random", or another run
    teacher_model  the model of `teacher`, in evaluation mode and without gradients; an exact one may be given, too

    The other arguments are those of NoisyExamples. A run goes on only with the teacher that it has learned from.
    """

    teacher: str = field(default="", kw_only=True)
    initial: str = field(default=TEACHER, kw_only=True)
    teacher_model: Any = field(default=None, kw_only=True, repr=False, compare=False)
    progress: Progress = field(init=False, repr=False, compare=False)
    needs_teacher = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs_teacher and not self.teacher and self.teacher_model is None:
            raise ArgumentError("a student needs a teacher; name a trained run as teacher", "teacher")
        object.__setattr__(self, "progress", Progress(self.teacher_model))

    def require(self, student: Denoiser) -> None:
        """ArgumentError unless the student can learn what the teacher says."""
        if student.learned_variance:
            raise ArgumentError("a student learns no variance; leave out learned_variance", "model.learned_variance")
        teacher = self.teacher_model
        if teacher is None:
            if student.takes.guidance is not None:
                raise ArgumentError("only a teacher can be guided; leave out model.guidance, or name a teacher",
                                    "model.guidance", "training.teacher")
            return
        if repr(teacher.sde) != repr(student.sde):
            raise ArgumentError(f"the teacher has the SDE {teacher.sde}, and this config {student.sde}; they must be the "
                                "same", "training.teacher", "sde.name")
        _require_conditions(student.takes, teacher.takes)

    def draw(self, batch: Batch, draws: Draws) -> Lesson:      # type: ignore[override]
        noisy = super().draw(batch, draws)
        place = draws.keep(torch.rand(draws.batch, generator=draws.host))
        return Lesson(*noisy, place)

    def noisy(self, batch: Batch, draw: Lesson, t: Tensor) -> Tensor:
        """x_t of the batch at times t (batch,)."""
        x0 = batch.x
        return torch.addcmul(expand_as(self.sde.alpha(t), x0) * x0, expand_as(self.sde.sigma(t), x0), draw.eps)

    def lesson(self, model: ConditionalModel, batch: Batch, draw: Lesson) -> Batch:
        """The batch, with the labels that are left and with the scale of guidance where the model takes one."""
        condition, takes = dict(batch.condition), model.takes
        if takes.guidance is not None:
            low, high = takes.guidance
            condition[GUIDANCE] = (low + (high - low) * draw.place).to(batch.x)
        dropped = draw.dropped
        if dropped is not None and LABEL in takes.names and takes.classes is not None:
            condition[LABEL] = condition[LABEL].masked_fill(dropped.to(condition[LABEL].device), takes.classes)
        return Batch(batch.x, condition)

    @torch.no_grad()
    def taught(self, x: Tensor, t: Tensor, kind: str, condition: Mapping[str, Tensor]) -> Tensor:
        """What the teacher predicts under the student's condition, of x's shape."""
        teacher, takes = self.teacher_model, self.teacher_model.takes
        if GUIDANCE not in condition or GUIDANCE in takes.names:
            return teacher.predict(x, t, kind, *told(teacher, dict(condition)))
        none = torch.full_like(condition[LABEL], takes.classes)
        label = {LABEL: torch.cat([none, condition[LABEL]])}
        without, conditional = teacher.predict(torch.cat([x, x]), torch.cat([t, t]), kind, label).chunk(2)
        return without.lerp(conditional, expand_as(condition[GUIDANCE], x))

    def stepped(self, world: World) -> None:
        self.progress.updates += 1

    def state(self) -> Mapping[str, Any]:
        return {"updates": torch.tensor(self.progress.updates), "teacher": self.progress.teacher}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        if state is None:
            return
        if not torch.equal(state["teacher"].cpu(), self.progress.teacher):
            raise ArgumentError(f"the student has learned from another teacher than {self.teacher or 'none'} is now; name "
                                "the checkpoint that it has learned from as teacher, or begin in another workdir",
                                "training.teacher", "workdir")
        self.progress.updates = int(state["updates"])


def _require_conditions(student: Conditions, teacher: Conditions) -> None:
    own, theirs = ({name for name in takes.names if name != GUIDANCE} for takes in (student, teacher))
    if own != theirs or student.classes != teacher.classes:
        of = [", ".join(sorted(names)) or "no condition" for names in (theirs, own)]
        raise ArgumentError(f"the teacher takes {of[0]} ({teacher.classes or 'no'} classes), and the student {of[1]} "
                            f"({student.classes or 'no'} classes); they must take the same", "model.classes")
    if student.label_dropout and not teacher.label_dropout:
        raise ArgumentError("the teacher knows no examples without a label; set training.label_dropout=0",
                            "training.label_dropout")
    if teacher.guidance is not None and student.guidance is None:
        raise ArgumentError("the teacher takes a scale of guidance, so the student must; set model.guidance to "
                            f"{teacher.guidance}", "model.guidance")
    if student.guidance is None:
        return
    if teacher.guidance is None and not teacher.label_dropout:
        raise ArgumentError("the teacher cannot be guided: it knows no examples without a label; leave out model.guidance",
                            "model.guidance")
    low, high = teacher.guidance or student.guidance
    if not low <= student.guidance[0] < student.guidance[1] <= high:
        raise ArgumentError(f"the teacher was distilled for guidance from {low:g} to {high:g}, and the student takes "
                            f"{student.guidance[0]:g} to {student.guidance[1]:g}", "model.guidance")
