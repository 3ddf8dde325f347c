"""Classifier-free guidance: the model with a condition, extrapolated away from the model without it.

    eps = eps_none + scale (eps_condition - eps_none)

Ho and Salimans 2021, "Classifier-Free Diffusion Guidance", where scale = 1 + w. Every other prediction is linear in eps at a
given (x, t), so it is combined alike. What comes out at other scales than 0 and 1 is the score of no known density.
"""

import math
from typing import Any

from torch import Tensor

from scorefield.models.score_model import ScoreModel
from scorefield.numerics.errors import ArgumentError


class ClassifierFree(ScoreModel):
    """What `classifier_free` returns: a score model that calls two others, or only one if the scale is 0 or 1."""

    def __init__(self, without: ScoreModel, conditional: ScoreModel, scale: float):
        super().__init__()
        self.without, self.conditional, self.scale, self.sde = without, conditional, scale, without.sde

    @property
    def evaluations(self) -> int:
        return {0.0: self.without.evaluations, 1.0: self.conditional.evaluations}.get(
            self.scale, self.without.evaluations + self.conditional.evaluations)

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        if self.scale == 0:
            return self.without.predict(x, t, kind)
        conditional = self.conditional.predict(x, t, kind)
        return conditional if self.scale == 1 else self.without.predict(x, t, kind).lerp(conditional, self.scale)


def classifier_free(model: ScoreModel, scale: float, **condition: Any) -> ClassifierFree:
    """`model` guided towards a condition that it can be given, such as label=3.

    model  takes the condition, and "none" of it: a model trained with label dropout, or a GaussianMixture with labels
    scale  1 is the model with the condition, 0 the model without, above 1 more than the condition asks for

    One prediction costs two calls of the network, which NFE counts; one at the scales 0 and 1. Raises ArgumentError for a
    scale that is not finite, and for a condition that the model does not take. One use:

    >>> from scorefield.guidance import classifier_free
    >>> from scorefield.models import GaussianMixture
    >>> from scorefield.sde_lib import VPSDE
    >>> mixture = GaussianMixture(VPSDE(), 2 * torch.eye(2), torch.ones(2), labels=torch.tensor([0, 1]))
    >>> classifier_free(mixture, 2.0, label=1).score(torch.zeros(4, 2), 0.5).shape
    torch.Size([4, 2])
    """
    if not math.isfinite(scale):
        raise ArgumentError(f"scale must be finite, got {scale}", "scale")
    if not condition:
        raise ArgumentError("guidance needs a condition, such as label=3", "label")
    return ClassifierFree(model.given(**dict.fromkeys(condition)), model.given(**condition), float(scale))
