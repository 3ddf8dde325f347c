"""Thresholding: within every evaluation the predicted x_0 is kept to the range of the data.

    static    x_0 clipped to [low, high]
    dynamic   s = max(quantile of |x_0 - c| over the sample, h);  x_0 clipped to [c - s, c + s], then scaled about c by h / s

with c the centre of the range and h half its width. Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models with
Deep Language Understanding" (Imagen), section 2.3. The prediction asked for is a function of x_t and x_0, and is worked out
again where x_0 has changed (models/parametrization.py).
"""

import math
from typing import Any

import torch
from torch import Tensor

from scorefield.models.parametrization import X0, check_kind, make_parametrization
from scorefield.models.score_model import Derived, MeanGuidance, Posterior, ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import check_time, expand_as

METHODS = ("static", "dynamic")
QUANTILE = 0.995


class Threshold(Derived):
    """What `threshold` returns: a score model whose predicted x_0 lies in [low, high], and whose samples do."""

    def __init__(self, model: ScoreModel, method: str, quantile: float, low: float, high: float):
        super().__init__(model)
        self.method, self.quantile, self.low, self.high = method, quantile, low, high

    def _of(self, model: ScoreModel) -> "Threshold":
        return Threshold(model, self.method, self.quantile, self.low, self.high)

    @property
    def density_problem(self) -> str:
        return "thresholding the predicted x_0 gives the score of no known density"

    def given(self, **condition: Any) -> "Threshold":
        return self._of(self.model.given(**condition))

    def project(self, x: Tensor) -> Tensor:
        return self.model.project(x).clamp(self.low, self.high)

    def mean_guidance(self) -> MeanGuidance | None:
        inner = self.model.mean_guidance()
        return inner and MeanGuidance(self._of(inner.unguided), inner.gradient, inner.evaluations_at)

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        check_kind(kind)
        return self._kept(self.model.predict(x, t, kind), x, t, kind)

    def with_share(self, x: Tensor, t: float | Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """The prediction kept to the range, and the model's own share."""
        output, share = self.model.with_share(x, t, kind)
        return self._kept(output, x, t, kind), share

    def _kept(self, output: Tensor, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        """The model's prediction `output` of which the x_0 is kept to the range."""
        t = check_time(self.sde, t)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        to_x0 = make_parametrization(kind).x0(alpha, sigma)
        of_x0 = X0().coefficients(kind, alpha, sigma)
        # at alpha = 0 no eps follows from x_0, and none at sigma = 0: there the prediction stays what it is
        known = torch.stack([c.isfinite() for c in (*to_x0, *of_x0)]).all(0)
        a, b, c, d = (expand_as(torch.where(known, coefficient, 0), x) for coefficient in (*to_x0, *of_x0))
        x0, changed = self._within(output if kind == "x0" else a * x + b * output)
        return torch.where(changed & expand_as(known, x).bool(), x0 if kind == "x0" else c * x + d * x0, output)

    def posterior(self, x: Tensor, t: float | Tensor) -> Posterior:
        """The mean kept to the range; the variance is the model's own."""
        posterior = self.model.posterior(x, t)
        x0, changed = self._within(posterior.mean)
        return Posterior(torch.where(changed, x0, posterior.mean), posterior.variance)

    def _within(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 (batch, *event) kept to the range, and a mask of its shape of where it has changed.

        Samples with an element that is not finite stay as they are, so that samplers report them.
        """
        outside = (x0 < self.low) | (x0 > self.high)
        finite, left = (expand_as(mask, x0).bool() for mask in (x0.isfinite().flatten(1).all(1), outside.flatten(1).any(1)))
        kept = x0.clamp(self.low, self.high)
        if self.method == "static":
            return kept, outside & finite
        centre, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        size = expand_as(quantile_of((x0 - centre).abs().flatten(1), self.quantile), x0)
        wide, size = left & (size > half), size.clamp(min=half)
        scaled = centre + ((x0 - centre) / size).clamp(-1, 1) * half
        return torch.where(wide, scaled.clamp(self.low, self.high), kept), (outside | wide) & finite


def quantile_of(values: Tensor, quantile: float) -> Tensor:
    """The quantile of each row of values (batch, n), between two of them by a straight line, (batch,).

    As torch.quantile, which has no bf16 and no rows above 16 million.
    """
    place = quantile * (values.shape[1] - 1)
    first = math.floor(place)
    top = values.topk(values.shape[1] - first, dim=1).values
    lower, upper = top[:, -1], top[:, -2] if top.shape[1] > 1 else top[:, -1]
    return lower.lerp(upper, place - first)


def threshold(model: ScoreModel, method: str = "static", quantile: float = QUANTILE, low: float = -1.0,
              high: float = 1.0) -> Threshold:
    """`model` whose predicted x_0 is kept to [low, high] in every evaluation, and whose samples are.

    method    "static": every element is clipped; "dynamic": a sample whose quantile leaves the range is scaled down as a
              whole, so that guidance at a high scale saturates fewer pixels
    quantile  of the elements of a sample, in [0, 1]; for "dynamic" alone
    low, high the range of the data as the model sees them: that of the codec

    A sample of which no predicted x_0 leaves the range is predicted as without it, to the bit; under "static" so is every
    element. What samplers return is clipped to the range too, since the state at their last time still has noise on it.
    Raises ArgumentError for an unknown method, a quantile that is none, a range that is empty or not finite. One use:

    >>> from scorefield.guidance import threshold
    >>> from scorefield.models import GaussianMixture
    >>> from scorefield.sde_lib import VPSDE
    >>> mixture = GaussianMixture(VPSDE(), 2 * torch.eye(2), torch.ones(2))
    >>> threshold(mixture, "static").x0(torch.tensor([[9.0, 0.0]]), 0.1)[0, 0]
    tensor(1.)
    """
    if method not in METHODS:
        raise ArgumentError(f"unknown method {method!r}; choose from {', '.join(METHODS)}", "method")
    if not 0 <= quantile <= 1:
        raise ArgumentError(f"quantile must lie in [0, 1], got {quantile}", "quantile")
    if method == "static" and quantile != QUANTILE:
        raise ArgumentError(f"method 'static' takes no quantile, got {quantile}; it belongs to method 'dynamic'", "quantile")
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise ArgumentError(f"need low < high, both finite, got {low} and {high}", "low", "high")
    return Threshold(model, method, float(quantile), float(low), float(high))
