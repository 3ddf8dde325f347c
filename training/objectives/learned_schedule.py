"""Score matching with a learned log-SNR, by which the loss varies least (Kingma et al. 2021, section 4 and appendix I).

The bound's integrand at time t, with t uniform, is l = gamma'(t) |eps_theta - eps|^2 / 2. Its mean does not depend on gamma
between fixed ends; its second moment does. In terms of gamma, whose density is p = 1 / gamma',

    E l^2 = int m(gamma) / p(gamma) dgamma,      m = E |eps_theta - eps|^4 / 4
    d E l^2 = -E[ l^2 d log p(gamma) ]           at fixed gamma

So the schedule is trained by the gradient of -l^2 log p(gamma), and no gradient passes the network for it. The least is at
p in proportion to the root of m. l^2 is divided by its mean over the examples of the process. t moves with the schedule so
that gamma stays: by one step of Newton's method, whose derivative is exact.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.models.denoiser import Denoiser
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.learned import LearnedVPSDE, Schedule
from scorefield.training.objectives.objective import Batch
from scorefield.training.objectives.score_matching import NoisyExamples, NoisyTimes, ScoreMatching


@dataclass(frozen=True)
class LearnedSchedule(NoisyExamples):
    """The training loss of a score model of a LearnedVPSDE, and of its schedule.

        objective = LearnedSchedule(model.sde)

    The arguments are those of NoisyExamples. The weighting is "likelihood" and times are uniform, since the schedule takes
    the place of importance sampling. Raises ArgumentError for another SDE.
    """

    weighting: str = field(default="likelihood", init=False)
    importance: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.sde, LearnedVPSDE):
            raise ArgumentError(f"objective learned_schedule trains the schedule of sde.name=learned, and the SDE is "
                                f"{self.sde}", "objective", "sde.name")
        super().__post_init__()

    def loss(self, model: Denoiser, batch: Batch, draw: NoisyTimes) -> Tensor:
        """That of score matching, (batch,), with a gradient by the schedule of the model, too."""
        sde, t = model.sde, draw.t      # an averaged model has an averaged schedule
        assert isinstance(sde, LearnedVPSDE)
        weight = sde.g2(t) / sde.sigma(t).square()
        matching = ScoreMatching(sde, "likelihood", self.time_sampling, False, self.label_dropout)
        loss = matching.loss(model, batch, draw._replace(weight=weight))
        if not torch.is_grad_enabled():
            return loss
        squares = loss.detach().double().square()
        pull = squares / squares.mean() * log_slope_at_fixed_gamma(sde.schedule, sde.place(t))
        return loss + (pull - pull.detach()).to(loss)


def log_slope_at_fixed_gamma(schedule: Schedule, s: Tensor) -> Tensor:
    """log gamma'(s) = -log p(gamma) up to a constant, (batch,), with its derivative by the schedule at fixed gamma."""
    share, slope = schedule(s)
    moved = s - (share - share.detach()) / slope.detach()
    return schedule(moved)[1].log()
