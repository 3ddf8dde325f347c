"""Weighted denoising score matching, in continuous time and on a chain.

    loss = E_t E_x0 E_eps  w(t) / p(t) * || eps_theta(x_t, t) - eps ||^2 / D          t ~ p

is the denoising score matching of Vincent 2011 for the score -eps / sigma, since
lambda(t) || s_theta + eps / sigma ||^2 = (lambda / sigma^2) || eps_theta - eps ||^2. weightings.py has w, times.py has p.

The network regresses its own target: an error in its output F is an error (d eps / d F) times as large in eps, so any
parametrisation trains with the same loss.

In place of the square e^2 of an element's error e in eps there may be the pseudo-Huber loss 2 c (sqrt(e^2 + c^2) - c), which
is e^2 for small errors and 2 c |e| for large ones, so that outliers count less (Charbonnier et al. 1997; for diffusion
Khrapov et al. 2024). Its least is not at the mean of eps, so the model is then no score; c large against 1 keeps it near.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from scorefield.models.conditions import LABEL
from scorefield.models.denoiser import Denoiser
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option, worded
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
class Squared:
    """e^2 of errors e."""

    def __call__(self, error: Tensor) -> Tensor:
        return error.square()


@dataclass(frozen=True)
class Huber:
    """The pseudo-Huber loss 2 c (sqrt(e^2 + c^2) - c) of errors e."""

    c: float = option(1.0, "error from which on the loss grows linearly")

    def __post_init__(self) -> None:
        if not 0 < self.c < float("inf"):
            raise ArgumentError(f"c of the Huber loss must be above 0, got {self.c}", "distance")

    def __call__(self, error: Tensor) -> Tensor:
        return 2 * self.c * error.square() / ((error.square() + self.c**2).sqrt() + self.c)      # without cancellation


DISTANCES: dict[str, type[Squared | Huber]] = {"squared": Squared, "huber": Huber}


@dataclass(frozen=True)
class NoisyExamples(Objective):
    """What losses of noisy examples share: times, weights, noise and dropped labels.

    weighting      a key of WEIGHTINGS, such as "simple" or "likelihood", with options after colons: "min_snr:gamma=5"
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


@dataclass(frozen=True)
class ScoreMatching(NoisyExamples):
    """The training loss of a score model.

        objective = ScoreMatching(VPSDE(), "likelihood", importance=True)

    distance  a key of DISTANCES: "squared", or "huber:c=1"

    The other arguments are those of NoisyExamples.
    """

    distance: str = field(default="squared", kw_only=True)
    of_error: Squared | Huber = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, options = worded("distance", DISTANCES, self.distance, "distance")
        object.__setattr__(self, "of_error", kind(**options))

    def loss(self, model: Denoiser, batch: Batch, draw: NoisyTimes) -> Tensor:
        """weight * mean over elements of (eps_theta(x_t, t) - eps)^2, or of the other distance, (batch,)."""
        x0, (t, weight, eps, dropped) = batch.x, draw
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        x_t = torch.addcmul(expand_as(alpha, x0) * x0, expand_as(sigma, x0), eps)
        output = model(x_t, t, *told(model, batch.condition, dropped))
        if model.parametrization.name == "eps":
            return self.of_error(output - eps).flatten(1).mean(1) * weight.to(x0)
        of_x0, of_eps = model.parametrization.target(alpha, sigma)
        target = torch.addcmul(expand_as(of_x0, x0) * x0, expand_as(of_eps, x0), eps)
        of_output = model.parametrization.eps(alpha, sigma)[1]
        if not isinstance(self.of_error, Squared):
            return self.of_error((output - target) * expand_as(of_output, x0)).flatten(1).mean(1) * weight.to(x0)
        return (output - target).square().flatten(1).mean(1) * (of_output.square() * weight.to(t)).to(x0)


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
