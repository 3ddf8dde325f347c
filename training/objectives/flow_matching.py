"""Flow matching on coupled pairs of data x_0 and noise eps: flows that are straighter than that of independent pairs.

    loss = E_(t, x_0, eps) || F(x_t, t) - target ||^2 / D,      x_t = alpha x_0 + sigma eps

F being the network's own output: eps - x_0, the velocity of FlowSDE, for parametrization "flow". The minimum at x_t is the
mean over the pairs whose lines go through it, so the flow has the data at its end whatever the coupling is, if x_0 has the
distribution of the data and eps that of the prior. The couplings:

    independent        as they are drawn: E[eps given x_t] is then that of the score (Lipman et al. 2023)
    optimal_transport  the noise of a batch is given to its examples so that the sum of |x_0 - eps|^2 is least, exactly
                       (Pooladian et al. 2023; Tong et al. 2023, OT-CFM). With labels, only within each label, for only so is
                       the noise of a class still N(0, I); the examples whose label is dropped are one more class
    reflow             x_0 is where the flow of `teacher` leads from eps (Liu et al. 2023, "Flow Straight and Fast", the
                       k-rectified flow of a (k-1)-rectified one)

Under the last two E[eps given x_t] belongs to no score of the process, so deterministic samplers take such a model, and
likelihoods by its flow, but no sampler with noise (models/student.py, COUPLED).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.models.conditions import LABEL
from scorefield.models.denoiser import Denoiser
from scorefield.models.student import COUPLED, COUPLINGS, OPTIMAL_TRANSPORT, REFLOW
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.text import choose
from scorefield.sde_lib.sde import expand_as
from scorefield.training.objectives.objective import Batch
from scorefield.training.objectives.score_matching import told
from scorefield.training.objectives.taught import Lesson, Taught

MOST_STEPS = 10_000


@dataclass(frozen=True)
class FlowMatching(Taught):
    """The training loss of a flow on coupled pairs.

        objective = FlowMatching(FlowSDE(), coupling="optimal_transport")

    coupling    "independent", "optimal_transport" among the examples that a process sees at once, or "reflow"
    flow_steps  of Heun's method, by which reflow follows its teacher: 2 flow_steps + 1 evaluations of it for each example
    teacher     of reflow: a run of flow matching or of a score model

    The other arguments are those of Taught. Raises ArgumentError for a coupling that does not exist, and for a teacher
    without reflow or reflow without a teacher.
    """

    weighting: str = field(default="simple", init=False)
    importance: bool = field(default=False, init=False)
    coupling: str = field(default="independent", kw_only=True)
    flow_steps: int = field(default=10, kw_only=True)
    needs_teacher = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("coupling", dict.fromkeys(COUPLINGS), self.coupling, "coupling")
        if not 1 <= self.flow_steps <= MOST_STEPS:
            raise ArgumentError(f"flow_steps must lie in 1 .. {MOST_STEPS}, got {self.flow_steps}", "flow_steps")
        has = bool(self.teacher) or self.teacher_model is not None
        if has != (self.coupling == REFLOW):
            raise ArgumentError(f"coupling {self.coupling} has no teacher; leave it out, or choose reflow" if has else
                                "coupling reflow needs a teacher, whose flow couples; name a trained run as teacher",
                                "teacher", "coupling")

    def require(self, student: Denoiser) -> None:
        super().require(student)
        if self.coupling == OPTIMAL_TRANSPORT and (other := [name for name in student.takes.names if name != LABEL]):
            raise ArgumentError(f"coupling optimal_transport would make the noise depend on {' and '.join(other)}, which "
                                "the model is given; choose independent", "training.coupling")
        made_for = None if self.teacher_model is None else self.teacher_model.student
        if made_for is not None and made_for.kind != COUPLED:
            raise ArgumentError(f"reflow needs a teacher with a flow, and {self.teacher or 'this one'} is {made_for}; name "
                                "the run that it was distilled from", "training.teacher")

    def loss(self, model: Denoiser, batch: Batch, draw: Lesson) -> Tensor:
        """The mean square of F less its target, (batch,)."""
        x_0, eps, condition = self.pairs(model, batch, draw)
        alpha, sigma = self.sde.alpha(draw.t), self.sde.sigma(draw.t)
        x_t = torch.addcmul(expand_as(alpha, x_0) * x_0, expand_as(sigma, x_0), eps)
        of_x0, of_eps = model.parametrization.target(alpha, sigma)
        target = torch.addcmul(expand_as(of_x0, x_0) * x_0, expand_as(of_eps, x_0), eps)
        return (model(x_t, draw.t, *told(model, condition)) - target).square().flatten(1).mean(1)

    def metrics(self, model: Denoiser, batch: Batch, draw: Lesson) -> dict[str, Tensor]:
        """The mean square of x_0 - eps of each pair, (batch,)."""
        x_0, eps, _ = self.pairs(model, batch, draw)
        return {"transport_cost": (x_0 - eps).square().flatten(1).mean(1)}

    @torch.no_grad()
    def pairs(self, model: Denoiser, batch: Batch, draw: Lesson) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """x_0 and eps (batch, *event), and the condition of each pair."""
        condition = self.lesson(model, batch, draw).condition
        if self.coupling == OPTIMAL_TRANSPORT:
            return batch.x, draw.eps[transport(batch.x, draw.eps, condition.get(LABEL))], condition
        if self.coupling == REFLOW:
            return self.flow(draw.eps, condition), draw.eps, condition
        return batch.x, draw.eps, condition

    def flow(self, eps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The end of the teacher's flow from sigma(t_max) eps: Heun's method in t to t_sample, and x_0 predicted there."""
        sde = self.sde
        times = torch.linspace(sde.t_max, sde.t_sample, self.flow_steps + 1, dtype=torch.float64)
        x = eps * float(sde.sigma(times[0]))

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma, drift = sde.alpha(t), sde.sigma(t), sde.drift(t)
            x_0 = self._taught_x0(x, t, condition)
            of_eps = (drift * sigma + sde.g2(t) / (2 * sigma)) / sigma      # sigma' / sigma
            return x_0 * float(drift * alpha - of_eps * alpha) + x * float(of_eps)

        for t, s in zip(times, times[1:], strict=False):
            h, slope = float(s - t), velocity(x, t)
            x = x + h / 2 * (slope + velocity(x + h * slope, s))
        return self._taught_x0(x, times[-1], condition)

    def _taught_x0(self, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.taught(x, t.to(x.device).expand(len(x)), "x0", condition)


def transport(x: Tensor, eps: Tensor, label: Tensor | None = None) -> Tensor:
    """The numbers (batch,) of the eps that the examples x, both (batch, *event), are given: the sum of |x - eps|^2 is the
    least of all permutations, or with labels (batch,) of those within each label.
    """
    from scipy.optimize import linear_sum_assignment

    result = torch.arange(len(x))
    labels = torch.zeros(len(x), dtype=torch.int64) if label is None else label.cpu()
    for value in labels.unique():
        own = (labels == value).nonzero()[:, 0]
        gain = x[own.to(x.device)].flatten(1).double() @ eps[own.to(x.device)].flatten(1).double().T
        result[own] = own[torch.from_numpy(linear_sum_assignment(gain.cpu().numpy(), maximize=True)[1])]
    return result.to(x.device)
