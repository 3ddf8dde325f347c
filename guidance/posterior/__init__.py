"""Posterior score models: a model guided by a measurement of the data. METHODS has one word for each way to do so."""

from __future__ import annotations

import math

from torch import Tensor

from scorefield.guidance.operators.base import LinearOperator, Operator
from scorefield.guidance.posterior.base import Method, PosteriorModel, Situation
from scorefield.guidance.posterior.jacobian import DPS, TMPD, PiGDM
from scorefield.guidance.posterior.projection import DDNM, DDRM, DiffPIR, Replacement
from scorefield.models.score_model import ScoreModel, check_score
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import worded

METHODS: dict[str, type[Method]] = {
    "tmpd": TMPD, "pigdm": PiGDM, "dps": DPS, "replacement": Replacement, "ddnm": DDNM, "ddrm": DDRM, "diffpir": DiffPIR,
}


def posterior(model: ScoreModel, operator: Operator, y: Tensor, noise_std: float, method: str = "tmpd") -> PosteriorModel:
    """The score model of x_t given the measurement y = operator(x_0) + noise_std n, n ~ N(0, I).

    operator   of events as the model has them (guidance.operators)
    y          (batch, *operator.measured), one for each sample; or (1, *operator.measured), one for all
    noise_std  standard deviation of the noise of each element of y; 0: y is exact, and samples are made to agree with it
    method     a key of METHODS, with options after colons: "tmpd", "pigdm:data_std=0.5"

    The result runs under every sampler. None of them makes its samples those of the posterior, but sampler `twisted_smc` as
    its particles grow (docs/restoring.md). Raises ArgumentError for a measurement that does not fit or is not finite, a
    noise that is negative, a singular operator without noise, an unknown method, and a method that does not take the
    operator. One use:

    >>> from scorefield.guidance import posterior
    >>> from scorefield.guidance.operators import make_operator
    >>> from scorefield.models import GaussianMixture
    >>> from scorefield.sde_lib import VPSDE
    >>> model = GaussianMixture(VPSDE(), torch.eye(2), torch.full((2,), 0.1))
    >>> guided = posterior(model, make_operator("mask:half=right", (2,)), torch.tensor([[0.9]]), noise_std=0.1)
    >>> guided.x0(torch.zeros(4, 2), 0.5).shape
    torch.Size([4, 2])
    """
    check_score(model, "a posterior")
    kind, options = worded("method", METHODS, method, "method")
    chosen = kind(**options)
    operator.check_measurement(y)
    if not y.is_floating_point() or not bool(y.isfinite().all()):
        raise ArgumentError("y must be finite floating-point numbers", "y")
    if not (noise_std >= 0 and math.isfinite(noise_std)):
        raise ArgumentError(f"noise_std must be finite and not negative, got {noise_std}", "noise_std")
    if chosen.linear and not operator.linear:
        others = ", ".join(word for word, other in METHODS.items() if not other.linear)
        raise ArgumentError(f"method {method!r} needs a linear operator; for any differentiable one choose {others}",
                            "method", "operator")
    if noise_std == 0 and isinstance(operator, LinearOperator) and operator.singular:
        raise ArgumentError("the operator is singular: some measurements are those of no data, so noise_std must be above 0",
                            "noise_std", "operator")
    return PosteriorModel(model, operator, y, float(noise_std), chosen)


__all__ = ["METHODS", "Method", "PosteriorModel", "Situation", "posterior"]
