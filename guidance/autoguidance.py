"""Autoguidance: a model, extrapolated away from a worse one of the same data.

    eps = eps_other + scale (eps_model - eps_other)

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself": the other one is smaller or has learned for a
shorter time, and both have the same condition, so quality rises while the classes keep their spread; no label is needed.
Their sampler (EDM2's) is `edm` with this model. If the other one takes no label where the model has one, this is
classifier-free guidance by two networks.
"""

from __future__ import annotations

import math
from typing import Any

from scorefield.guidance.classifier_free import ClassifierFree
from scorefield.guidance.interval import Interval
from scorefield.models.conditions import LABEL
from scorefield.models.score_model import ScoreModel, check_flow
from scorefield.numerics.errors import ArgumentError


class Autoguided(ClassifierFree):
    """What `autoguided` returns: a score model that calls two others, or only one where that is all it needs."""

    @property
    def density_problem(self) -> str:
        one = self._only(None)
        if one is not None:
            return one.density_problem
        return f"autoguidance at scale {self.scale:g} gives the score of no known density"

    def given(self, **condition: Any) -> Autoguided:
        """The same guidance of both models with the conditions that they take."""
        return Autoguided(_told(self.without, condition), self.conditional.given(**condition), self.scale, self.interval)


def autoguided(model: ScoreModel, other: ScoreModel, scale: float, interval: tuple[float, float] | None = None,
               **condition: Any) -> ScoreModel:
    """`model` guided away from `other`, a worse model of the same data and the same SDE.

    scale      1 is the model, 0 the other one, above 1 beyond the model
    interval   (LO, HI): the scale holds for LO <= t <= HI, and outside it is 1. By default it holds at all times
    condition  of the model, such as label=3; the other one is told what it takes of that

    One prediction costs an evaluation of each, which NFE counts as two, however small the other one is. Raises ArgumentError
    for a scale that is not finite, another SDE, and a condition that a model does not take or needs. One use:

    >>> import torch
    >>> from scorefield.guidance import autoguided
    >>> from scorefield.models import GaussianMixture
    >>> from scorefield.sde_lib import VPSDE
    >>> model, worse = (GaussianMixture(VPSDE(), torch.eye(2), torch.full((2,), v)) for v in (0.1, 0.3))
    >>> autoguided(model, worse, 2.0).score(torch.zeros(4, 2), 0.5).shape
    torch.Size([4, 2])
    """
    if not math.isfinite(scale):
        raise ArgumentError(f"scale must be finite, got {scale}", "scale")
    check_flow(model, "guidance")
    check_flow(other, "guidance")
    if repr(model.sde) != repr(other.sde):
        raise ArgumentError(f"the model has the SDE {model.sde}, and the one that guides it {other.sde}; they must be the "
                            "same", "autoguidance")
    told = model.given(**condition) if condition else model
    return Autoguided(_told(other, condition), told, float(scale), Interval.of(interval, model.sde))


def _told(other: ScoreModel, condition: dict[str, Any]) -> ScoreModel:
    own = {name: value for name, value in condition.items() if name in other.takes.names}
    if LABEL in other.takes.names and own.get(LABEL) is None and not other.takes.label_dropout:
        raise ArgumentError("the model that guides was trained with labels and without label dropout, so it needs a label",
                            LABEL, "autoguidance")
    return other.given(**own) if own else other
