"""Weighted denoising score matching, in continuous time and on a chain.

    loss = E_t E_x0 E_eps  w(t) / p(t) * || eps_theta(x_t, t) - eps ||^2 / D          t ~ p

is the denoising score matching of Vincent 2011 for the score -eps / sigma, since
lambda(t) || s_theta + eps / sigma ||^2 = (lambda / sigma^2) || eps_theta - eps ||^2. weightings.py has w, times.py has p.

The network regresses its own target: an error in its output F is an error (d eps / d F) times as large in eps, so any
parametrisation trains with the same loss.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from scorefield.models.conditions import LABEL
from scorefield.models.denoiser import Denoiser
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, expand_as
from scorefield.training.draws import Draws
from scorefield.training.objectives.objective import Batch, Objective
from scorefield.training.times import Times
from scorefield.training.weightings import make_weighting


class NoisyTimes(NamedTuple):
    """Times t and weights w(t) / p(t), float64 (batch,), noise eps (batch, *event), whose labels are dropped (batch,)."""

    t: Tensor
    weight: Tensor
    eps: Tensor
    dropped: Tensor | None = None


@dataclass(frozen=True)
class ScoreMatching(Objective):
    """The training loss of a score model.

        objective = ScoreMatching(VPSDE(), "likelihood", importance=True)

    weighting      a key of WEIGHTINGS: "simple", "likelihood", "uniform" or "edm"
    time_sampling  a key of TIME_SAMPLERS: how the uniform numbers behind the times are drawn
    importance     draw times in proportion to the weighting (for "likelihood" that is uniform in log-SNR; for "edm" in
                   proportion to q, as published)
    label_dropout  share of the examples without their label, so that the model also learns the score of all classes
                   together (Ho and Salimans 2021). It means nothing to a model that takes no labels, and
                   the held-out loss is that of examples with their labels
    data_std       standard deviation of the data, for "edm"

    Raises ArgumentError for an unknown word, a share outside [0, 1), and "edm" without `data_std`.
    """

    sde: SDE
    weighting: str = "simple"
    time_sampling: str = "low_discrepancy"
    importance: bool = False
    label_dropout: float = 0.1
    data_std: float | None = None
    times: Times = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise ArgumentError(f"label_dropout must lie in [0, 1), got {self.label_dropout}", "label_dropout")
        weighting = make_weighting(self.weighting, self.sde, self.data_std)
        object.__setattr__(self, "times", Times(self.sde, weighting, self.time_sampling, self.importance))

    def draw(self, batch: Batch, draws: Draws) -> NoisyTimes:
        t, weight = map(draws.keep, self.times.draw(draws.batch, draws.host))
        dropped = None
        if self.label_dropout and draws.drops and LABEL in batch.condition:
            dropped = draws.keep(torch.rand(draws.batch, generator=draws.host) < self.label_dropout)
        return NoisyTimes(t, weight, draws.normal(batch.x.shape[1:]), dropped)

    def loss(self, model: Denoiser, batch: Batch, draw: NoisyTimes) -> Tensor:
        """weight * mean over elements of (eps_theta(x_t, t) - eps)^2, (batch,)."""
        x0, (t, weight, eps, dropped) = batch.x, draw
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        x_t = torch.addcmul(expand_as(alpha, x0) * x0, expand_as(sigma, x0), eps)
        output = model(x_t, t, *told(model, batch.condition, dropped))
        if model.parametrization.name == "eps":
            return (output - eps).square().flatten(1).mean(1) * weight.to(x0)
        of_x0, of_eps = model.parametrization.target(alpha, sigma)
        target = torch.addcmul(expand_as(of_x0, x0) * x0, expand_as(of_eps, x0), eps)
        scale = model.parametrization.eps(alpha, sigma)[1].square() * weight.to(t)
        return (output - target).square().flatten(1).mean(1) * scale.to(x0)


def told(model: Denoiser, condition: dict[str, Tensor], dropped: Tensor | None = None) -> list[dict[str, Tensor]]:
    """What follows x and t in a call of the model: nothing, or the conditions that it takes of those that are known.

    dropped  (batch,): in whose place stands the label `classes`, which means none
    """
    takes = model.takes
    if not takes.names:
        return []
    known = {name: condition[name] for name in takes.names if name in condition}
    if dropped is not None and LABEL in known and takes.classes is not None:
        known[LABEL] = known[LABEL].masked_fill(dropped.to(known[LABEL].device), takes.classes)
    return [known]
