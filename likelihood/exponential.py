"""log p(x) on a fixed budget: an exponential Adams method for the probability flow and its change of variables.

The coordinates are y = x / (alpha R) with R = sqrt(1 + e^(-2 lambda)), and the clock is lambda (samplers/adams.py with
v = 1). There the flow and the log-density of y that it carries, log q_lambda, follow

    dy/dlambda = w m(y, lambda)                   w = e^-lambda / R^2,   m = e^-lambda y - R eps
    d/dlambda log q_lambda(y) = -w div m          div m = D e^-lambda - alpha R^2 div_x eps

m and div m are interpolated in lambda and integrated against w exactly. The state takes an Adams-Bashforth predictor of
order 3 and an Adams-Moulton corrector of order 4 without an evaluation of its own. The log-density takes cubics through
all nodes. Each node is evaluated once, at the predictor's state, which differs from the corrector's by d = y - y_predicted.
This difference makes most of the error of log p, and it is known. Along any path y~ the continuity equation gives

    d/dlambda log q_lambda(y~) = -w div m(y~) + s . (dy~/dlambda - w m(y~)),       s = grad log q_lambda = -R e^lambda eps

The derivative of the predicted states is w m(y~) - dd/dlambda. Integration by parts leaves one integral to subtract from
log p, and the nodes already hold its integrand:

    log p(x) = [log p by the states and the quadrature]  -  int d . ds

The error is estimated by the size of this integral, plus the difference between cubics and parabolas for -s . m in place of
div m. Both have one mean over q (integration by parts) and about the same roughness, but s . m has no probe's noise in it,
which for a new probe at every node (probes.py) would be taken for an error of the steps.

Sources: the ODE of log p, Song et al. 2021; this clock and m as velocity, Zheng et al. 2023 ("Improved techniques for
maximum likelihood estimation for diffusion ODEs"), who solve by adaptive Runge-Kutta; the state's method, see
samplers/adams.py. The last step is an adjoint error correction (Pierce and Giles 2000; for ODEs Cao and Petzold 2004): a
residual weighted by the derivative of the result with respect to the state. Here the score is this derivative, so no
adjoint equation is solved. For a network, s is only approximately the gradient of the density that its own flow carries.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.grids import sinh
from scorefield.numerics.quadrature import exponential_weights
from scorefield.sde_lib.sde import SDE

STEPS = 30
PREDICTOR, CORRECTOR, QUADRATURE = 3, 4, 4      # points of the interpolations; orders, too
# ("eps" or "score", t, x) -> that prediction (batch, *event) and its divergence (probes, batch), from one evaluation
Trace = Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]


def check_steps(steps: int) -> None:
    """ArgumentError unless the quadrature has nodes enough."""
    if not 2 * QUADRATURE <= steps <= 10_000:
        raise ArgumentError(f"steps must lie between {2 * QUADRATURE} and 10000, got {steps}", "steps")


def scale(sde: SDE, t: float | Tensor) -> float:
    """x / y = alpha R = sqrt(alpha^2 + sigma^2) at t."""
    return math.hypot(float(sde.alpha(t)), float(sde.sigma(t)))


def transformed(sde: SDE, t: Tensor, y: Tensor, trace: Trace) -> tuple[Tensor, Tensor, Tensor]:
    """m (batch, *event), its divergence (probes, batch) and eps (batch, *event) at y and t, from one evaluation."""
    alpha, noise = float(sde.alpha(t)), math.exp(-float(sde.half_log_snr(t)))
    spread = math.sqrt(1 + noise**2)
    eps, divergence = trace("eps", t, y * (alpha * spread))
    return y * noise - eps * spread, y[0].numel() * noise - alpha * spread**2 * divergence, eps


def exponential_flow(sde: SDE, y: Tensor, steps: int, t_min: float, trace: Trace) -> tuple[Tensor, Tensor, Tensor]:
    """Carry y (batch, *event) from t_min to t_max in `steps` evaluations, both ends among them.

    Returns y at t_max (batch, *event), the integral of w div m along the way (probes, batch) in nats, so that
    log q(y at t_min) = log q(y at t_max) + integral, and an estimate of its error (batch,).
    """
    check_steps(steps)
    t = sinh(sde, steps - 1, t_min, width=1.0).flip(0)
    t[0], t[-1] = t_min, sde.t_max
    rules = _rules(tuple(sde.half_log_snr(t).tolist()))

    integral = difference = correction = y.new_zeros(())
    corrected, earlier = y, deque[Tensor](maxlen=CORRECTOR - 1)
    shift = score = torch.zeros_like(y)
    for i in range(steps):
        m, slope, eps = transformed(sde, t[i], y, trace)
        last_shift, last_score, score = shift, score, eps * rules.of_score[i]
        integral = integral + rules.weights[i] * slope
        difference = difference - rules.difference[i] * (score * m).flatten(1).sum(1)
        if i:
            corrected = corrected + _combine(rules.correct[i - 1], [m, *earlier])
            shift = corrected - y
            correction = correction + ((shift + last_shift) / 2 * (score - last_score)).flatten(1).sum(1)
        earlier.appendleft(m)
        if i + 1 < steps:
            y = corrected + _combine(rules.predict[i], earlier)
    error = correction.abs() + difference.abs()
    return corrected, integral - correction, error


@dataclass(frozen=True)
class _Rules:
    """The numbers of a grid of n nodes: of the score in eps, of the quadrature, and of the steps, newest m first.

    of_score    s = of_score eps                              (n,)
    weights     of the quadrature                             (n,)
    difference  from those of a quadrature of one order less  (n,)
    predict     of the step that leaves node i, correct of the one that arrives at node i + 1; n - 1 lists each
    """

    of_score: list[float]
    weights: list[float]
    difference: list[float]
    predict: list[list[float]]
    correct: list[list[float]]


@lru_cache(maxsize=32)
def _rules(lambdas: tuple[float, ...]) -> _Rules:
    lam = np.array(lambdas)
    weights = quadrature(lam, QUADRATURE)

    def step(i: int, nodes: np.ndarray) -> list[float]:
        return exponential_weights(lam[i], lam[i + 1], nodes[::-1], 1.0).tolist()

    steps = range(len(lam) - 1)
    return _Rules((-np.sqrt(1 + np.exp(-2 * lam)) * np.exp(lam)).tolist(), weights.tolist(),
                  (weights - quadrature(lam, QUADRATURE - 1)).tolist(),
                  [step(i, lam[max(i - PREDICTOR + 1, 0):i + 1]) for i in steps],
                  [step(i, lam[max(i - CORRECTOR + 2, 0):i + 2]) for i in steps])


def quadrature(lam: np.ndarray, points: int) -> np.ndarray:
    """Weights of the nodes for integrals of w times a function, interpolated by its values at the nearest `points`."""
    weights = np.zeros(len(lam))
    for i in range(len(lam) - 1):
        first = min(max(i + 1 - points // 2, 0), len(lam) - points)
        near = slice(first, first + points)
        weights[near] += exponential_weights(lam[i], lam[i + 1], lam[near], 1.0)
    return weights


def _combine(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    total = values[0] * weights[0]
    for weight, value in zip(weights[1:], list(values)[1:], strict=True):
        total.add_(value, alpha=weight)
    return total
