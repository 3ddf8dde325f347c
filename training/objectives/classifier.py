"""A classifier of noisy examples: the cross-entropy of the label given x_t, at times as they are drawn in training.

    loss = E_t E_(x0, y) E_eps  - log p_theta(y given x_t, t)

Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4.1: the gradient of log p_theta(y given
x_t, t) guides a score model to the class y.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, expand_as
from scorefield.training.draws import Draws
from scorefield.training.objectives.objective import Batch, Objective
from scorefield.training.times import Times
from scorefield.training.weightings import Weighting


class Noise(NamedTuple):
    """Times t, float64 (batch,), and the noise eps (batch, *event)."""

    t: Tensor
    eps: Tensor


@dataclass(frozen=True)
class Classification(Objective):
    """The training loss of a classifier: a model whose answer model(x, t) is one logit for each class, (batch, classes).

    time_sampling  a key of TIME_SAMPLERS: how the uniform numbers behind the times are drawn

    The batches must have the condition "label", integers 0 .. classes - 1. Raises ArgumentError for an unknown word.
    """

    sde: SDE
    time_sampling: str = "low_discrepancy"
    times: Times = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", Times(self.sde, Weighting(self.sde), self.time_sampling))

    def draw(self, batch: Batch, draws: Draws) -> Noise:
        if "label" not in batch.condition:
            raise ArgumentError("a classifier needs labels, and the examples of this data set have none", "data.dataset")
        return Noise(draws.keep(self.times.draw(draws.batch, draws.host)[0]), draws.normal(batch.x.shape[1:]))

    def loss(self, model: Any, batch: Batch, draw: Noise) -> Tensor:
        """-log p(label given x_t, t) in nats, (batch,)."""
        return F.cross_entropy(self._logits(model, batch, draw), batch.condition["label"], reduction="none")

    def metrics(self, model: Any, batch: Batch, draw: Noise) -> dict[str, Tensor]:
        """accuracy: whether the likeliest class is the label."""
        return {"accuracy": (self._logits(model, batch, draw).argmax(1) == batch.condition["label"]).double()}

    def _logits(self, model: Any, batch: Batch, draw: Noise) -> Tensor:
        alpha, sigma = (expand_as(of_t, batch.x) for of_t in (self.sde.alpha(draw.t), self.sde.sigma(draw.t)))
        return model(torch.addcmul(alpha * batch.x, sigma, draw.eps), draw.t)
