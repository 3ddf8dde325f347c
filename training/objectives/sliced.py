"""Score matching without a target: implicit score matching of the noisy data, exactly or by random directions.

    J(theta) = E_t w(t) E_x_t  2 sigma^2 / D [ tr grad s_theta(x_t, t) + 1/2 ||s_theta(x_t, t)||^2 ]

is Hyvarinen's 2005 objective ("Estimation of Non-Normalized Statistical Models by Score Matching", theorem 1), which differs
from that of denoising score matching by the mean of w, whatever theta is: E <eps, eps_theta> = sigma E div eps_theta for
Gaussian eps. So the weights mean the same here as there. With random directions v, E v v' = I (Song et al. 2019, "Sliced
Score Matching", equations 7 and 8),

    exact   tr grad s + 1/2 ||s||^2                       one backward pass for each dimension
    ssm     v' (grad s) v + 1/2 (v' s)^2                  one for each direction
    ssm_vr  v' (grad s) v + 1/2 ||s||^2                   the same, with less variance

It needs no knowledge of how x_t was made. The price is a second derivative in every step, and the noise of the directions.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from scorefield.models.denoiser import Denoiser
from scorefield.numerics.divergence import with_exact_divergence, with_hutchinson_divergence
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import expand_as
from scorefield.training.draws import Draws
from scorefield.training.objectives.objective import Batch
from scorefield.training.objectives.score_matching import NoisyExamples, NoisyTimes, told

METHODS = ("exact", "ssm", "ssm_vr")
MOST = 10_000      # directions of an example, each of which is a backward pass


class Directions(NamedTuple):
    """What is drawn for noisy examples, and directions v (batch, number, *event) of signs."""

    noisy: NoisyTimes
    v: Tensor

    @property
    def t(self) -> Tensor:
        return self.noisy.t


@dataclass(frozen=True)
class SlicedScoreMatching(NoisyExamples):
    """The training loss of a score model without a target.

        objective = SlicedScoreMatching(VPSDE(), method="ssm_vr", directions=2)

    method      "exact", "ssm" or "ssm_vr"
    directions  how many for each example; of "exact" none are drawn

    The other arguments are those of ScoreMatching. Raises ArgumentError for a word or a number that does not exist.
    """

    method: str = field(default="ssm_vr", kw_only=True)
    directions: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ArgumentError(f"unknown method {self.method!r}; choose from {', '.join(METHODS)}", "method")
        if not 1 <= self.directions <= MOST:
            raise ArgumentError(f"directions must be at least 1 and at most {MOST}, got {self.directions}", "directions")

    def draw(self, batch: Batch, draws: Draws) -> Directions:      # type: ignore[override]
        noisy, number = super().draw(batch, draws), 0 if self.method == "exact" else self.directions
        v = [draws.uniform(batch.x.shape[1:]).sub_(0.5).sign_() for _ in range(number)]
        return Directions(noisy, torch.stack(v, 1) if v else noisy.eps[:, None][:, :0])

    def loss(self, model: Denoiser, batch: Batch, draw: Directions) -> Tensor:
        """w (||eps_theta||^2 - 2 sigma div eps_theta) / D, or its estimate, (batch,)."""
        (t, weight, eps, dropped), v = draw
        x0, gradients = batch.x, torch.is_grad_enabled()
        sigma = self.sde.sigma(t)
        x_t = torch.addcmul(expand_as(self.sde.alpha(t), x0) * x0, expand_as(sigma, x0), eps)
        condition = told(model, batch.condition, dropped)

        def predicted(x: Tensor) -> Tensor:
            return model.predict(x, t, "eps", *condition)

        if self.method == "exact":
            answer, divergence = with_exact_divergence(predicted, x_t, gradients=gradients)
        else:
            v = v.transpose(0, 1).to(x_t)
            answer, each = with_hutchinson_divergence(predicted, x_t, v, gradients=gradients)
            divergence = each.mean(0)
        squares = ((v * answer).flatten(2).sum(2).square().mean(0) if self.method == "ssm"
                   else answer.square().flatten(1).sum(1))
        return (squares - 2 * sigma.to(x0) * divergence) / x0[0].numel() * weight.to(x0)
