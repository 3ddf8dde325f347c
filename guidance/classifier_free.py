"""Classifier-free guidance: the model with a condition, extrapolated away from the model without it.

    eps = eps_none + scale (eps_condition - eps_none)

Ho and Salimans 2021, "Classifier-Free Diffusion Guidance", where scale = 1 + w. Every other prediction is linear in eps at a
given (x, t), so it is combined alike. What comes out at other scales than 0 and 1 is the score of no known density.
"""

import math
from typing import Any

import torch
from torch import Tensor

from scorefield.guidance.interval import Interval, holds
from scorefield.models.conditions import LABEL, Conditions
from scorefield.models.score_model import Given, MeanGuidance, Posterior, ScoreModel, check_flow
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import as_time, expand_as

SAMPLES, ELEMENTS = 64, 32_768      # up to which one call on twice the batch is the faster on a CPU (guidance_step.py)


class ClassifierFree(ScoreModel):
    """What `classifier_free` returns: a score model that calls two others, or only one where that is all it needs."""

    def __init__(self, without: ScoreModel, conditional: ScoreModel, scale: float, interval: Interval | None = None,
                 batched: bool | None = None):
        super().__init__()
        self.without, self.conditional, self.scale, self.sde = without, conditional, scale, without.sde
        self.interval, self.batched = interval, batched

    @property
    def evaluations(self) -> int:
        one = self._only(None)
        return self.without.evaluations + self.conditional.evaluations if one is None else one.evaluations

    def evaluations_at(self, t: float | Tensor) -> int:
        one = self._only(t)
        return self.without.evaluations_at(t) + self.conditional.evaluations_at(t) if one is None else one.evaluations_at(t)

    @property
    def density_problem(self) -> str:
        one = self._only(None)
        if one is not None:
            return one.density_problem
        return f"classifier-free guidance at scale {self.scale:g} gives the score of no known density"

    @property
    def takes(self) -> Conditions:
        return self.conditional.takes

    def given(self, **condition: Any) -> "ClassifierFree":
        """The same guidance of the model with these conditions bound, too; a label replaces the one guided to."""
        told = {name: value for name, value in condition.items() if name != LABEL}
        return ClassifierFree(self.without.given(**told), self.conditional.given(**condition), self.scale, self.interval,
                              self.batched)

    def project(self, x: Tensor) -> Tensor:
        return self.conditional.project(x)

    def mean_guidance(self) -> MeanGuidance | None:
        without, conditional = self.without.mean_guidance(), self.conditional.mean_guidance()
        if without is None or conditional is None:
            return None
        unguided = ClassifierFree(without.unguided, conditional.unguided, self.scale, self.interval, self.batched)
        return MeanGuidance(unguided, conditional.gradient, conditional.evaluations_at)      # both have the one classifier

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        one = self._only(t)
        if one is not None:
            return one.predict(x, t, kind)
        return self._guided(*self._both(x, t, kind), x, t)

    def with_share(self, x: Tensor, t: float | Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """The guided prediction, and the share of the model with the label."""
        one = self._only(t)
        if one is not None:
            return one.with_share(x, t, kind)
        conditional, share = self.conditional.with_share(x, t, kind)
        return self._guided(self.without.predict(x, t, kind), conditional, x, t), share

    def _guided(self, without: Tensor, conditional: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        guided = without.lerp(conditional, self.scale)
        within = holds(self.interval, t)
        return torch.where(expand_as(within, x).bool(), guided, conditional) if isinstance(within, Tensor) else guided

    def posterior(self, x: Tensor, t: float | Tensor) -> Posterior:
        one = self._only(t)
        return super().posterior(x, t) if one is None else one.posterior(x, t)

    def _only(self, t: float | Tensor | None) -> ScoreModel | None:
        """The one model that predicts at t (None: at every time); None if it takes both."""
        within = self.interval is None if t is None else holds(self.interval, t)
        if self.scale == 1 or within is False and t is not None:
            return self.conditional
        return self.without if self.scale == 0 and within is True else None

    def _both(self, x: Tensor, t: float | Tensor, kind: str) -> tuple[Tensor, Tensor]:
        without, conditional = self.without, self.conditional
        if not (isinstance(without, Given) and isinstance(conditional, Given) and without.model is conditional.model
                and (doubles(x) if self.batched is None else self.batched)):
            return without.predict(x, t, kind), conditional.predict(x, t, kind)
        t, told, other = as_time(t), without.for_batch(x), conditional.for_batch(x)
        condition = {name: torch.cat([told[name], other[name]]) for name in told}
        both = without.model.predict(torch.cat([x, x]), torch.cat([t, t]) if t.ndim else t, kind, condition)
        first, second = both.chunk(2)
        return first, second


def doubles(x: Tensor) -> bool:
    """Whether one call on twice the batch x (batch, *event) is taken to be the faster: a rule, so that results do not differ
    between runs. On a CPU the digits' U-Net takes 1.65 times an unguided call for 1 sample, 1.92 for 64 and 2.14 for 128,
    and two calls 2.00 to 2.03 (benchmarks/guidance_step.py). On other devices nothing is measured.
    """
    return x.device.type != "cpu" or (len(x) <= SAMPLES and x.numel() <= ELEMENTS)


def classifier_free(model: ScoreModel, scale: float, interval: tuple[float, float] | None = None,
                    batched: bool | None = None, **condition: Any) -> ClassifierFree:
    """`model` guided towards a label that it can be given, such as label=3.

    model      takes the label, and "none" of it: a model trained with label dropout, or a GaussianMixture with labels
    scale      1 is the model with the label, 0 the model without, above 1 more than the label asks for
    interval   (LO, HI): the scale holds for LO <= t <= HI, and outside the model is the one with the label. By default it
               holds at all times
    batched    whether a Denoiser or a mixture predicts both in one call on twice the batch; by default a rule chooses what
               is faster on the device of x. The results agree to rounding. Other models are always called twice
    condition  label=y, integers, one for all samples or (batch,); and any other that the model takes, given to both

    One prediction costs two evaluations of the network, which NFE counts, in one call or two; one evaluation at the scales 0
    and 1, and outside of the interval. Raises ArgumentError for a scale that is not finite, an interval that is none, and a
    condition that the model does not take. One use:

    >>> from scorefield.guidance import classifier_free
    >>> from scorefield.models import GaussianMixture
    >>> from scorefield.sde_lib import VPSDE
    >>> mixture = GaussianMixture(VPSDE(), 2 * torch.eye(2), torch.ones(2), labels=torch.tensor([0, 1]))
    >>> classifier_free(mixture, 2.0, interval=(0.1, 0.8), label=1).score(torch.zeros(4, 2), 0.5).shape
    torch.Size([4, 2])
    """
    if not math.isfinite(scale):
        raise ArgumentError(f"scale must be finite, got {scale}", "scale")
    if not condition:
        raise ArgumentError("guidance needs a condition, such as label=3", "label")
    check_flow(model, "guidance")
    conditional = model.given(**condition)
    if condition.get(LABEL) is None:
        raise ArgumentError("guidance goes from no label to a label, and needs one, such as label=3", LABEL)
    return ClassifierFree(model.given(**condition | {LABEL: None}), conditional, float(scale),
                          Interval.of(interval, model.sde), batched)
