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

Sources: the ODE of log p, Song et al. 2021; this clock and m as velocity, Zheng et al. 2023 ("Improved techniques for
maximum likelihood estimation for diffusion ODEs"), who solve by adaptive Runge-Kutta; the state's method, see
samplers/adams.py. The last step is an adjoint error correction (Pierce and Giles 2000; for ODEs Cao and Petzold 2004): a
residual weighted by the derivative of the result with respect to the state. Here the score is this derivative, so no
adjoint equation is solved. For a network, s is only approximately the gradient of the density that its own flow carries.
"""

import math
from collections import deque
from collections.abc import Callable

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
    lam = sde.half_log_snr(t).numpy()
    of_score = -np.sqrt(1 + np.exp(-2 * lam)) * np.exp(lam)      # s = -R e^lambda eps
    weights, coarse = quadrature(lam, QUADRATURE), quadrature(lam, QUADRATURE - 1)

    integral = coarser = correction = y.new_zeros(())
    corrected, earlier = y, deque[Tensor](maxlen=CORRECTOR - 1)
    shift = score = torch.zeros_like(y)
    for i in range(steps):
        m, slope, eps = transformed(sde, t[i], y, trace)
        integral, coarser = integral + float(weights[i]) * slope, coarser + float(coarse[i]) * slope
        last_shift, last_score, score = shift, score, eps * float(of_score[i])
        if i:
            nodes = lam[max(i - CORRECTOR + 1, 0):i + 1][::-1]
            corrected = corrected + _combine(exponential_weights(lam[i - 1], lam[i], nodes, 1.0), [m, *earlier])
            shift = corrected - y
            correction = correction + ((shift + last_shift) / 2 * (score - last_score)).flatten(1).sum(1)
        earlier.appendleft(m)
        if i + 1 < steps:
            nodes = lam[max(i - PREDICTOR + 1, 0):i + 1][::-1]
            y = corrected + _combine(exponential_weights(lam[i], lam[i + 1], nodes, 1.0), list(earlier))
    error = correction.abs() + (integral - coarser).mean(0).abs()
    return corrected, integral - correction, error


def quadrature(lam: np.ndarray, points: int) -> np.ndarray:
    """Weights of the nodes for integrals of w times a function, interpolated by its values at the nearest `points`."""
    weights = np.zeros(len(lam))
    for i in range(len(lam) - 1):
        first = min(max(i + 1 - points // 2, 0), len(lam) - points)
        near = slice(first, first + points)
        weights[near] += exponential_weights(lam[i], lam[i + 1], lam[near], 1.0)
    return weights


def _combine(weights: np.ndarray, values: list[Tensor]) -> Tensor:
    total = values[0] * float(weights[0])
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total.add_(value, alpha=float(weight))
    return total
