"""log p(x) by the probability-flow ODE (Song et al. 2021, section 4.3 and appendix D.2).

By the instantaneous change of variables (Chen et al. 2018), along dx/dt = F(x, t) = f x - g^2/2 score,

    log p_0(x) = log p_T(x(T)) + int_0^T div F(x(t), t) dt,       div F = D f - g^2/2 div score

solved by one of torchdiffeq's adaptive methods, or on a fixed budget by the exponential method of exponential.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.likelihood.checks import check_input, fitting, start_time
from scorefield.likelihood.exponential import STEPS, check_steps, exponential_flow, scale, transformed
from scorefield.models.score_model import ScoreModel, check_density, evaluation_mode
from scorefield.numerics import integrate as adaptive
from scorefield.numerics.divergence import with_exact_divergence, with_hutchinson_divergence
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import PROBES, NoiseStream, Seed

DIVERGENCES = ("exact", "hutchinson")
PROBE_KINDS = ("rademacher", "gaussian")
METHODS = (*adaptive.METHODS, "exponential")
CLOCKS = ("t", "lambda")
TOLERANCE = 1e-5      # of the adaptive methods


@dataclass(frozen=True)
class LogProb:
    """value: log p(x) in nats, (batch,). latent: x at t_max, (batch, *event). nfe: evaluations of the network.

    probe_error   standard error of value over the probes, (batch,), if there are several
    solver_error  estimate of what the steps left of error in value, (batch,), from method "exponential"; rather too
                  large than too small (docs/likelihood.md)
    """

    value: Tensor
    latent: Tensor
    nfe: int
    probe_error: Tensor | None = None
    solver_error: Tensor | None = None


def log_prob(model: ScoreModel, x: Tensor, divergence: str = "exact", rtol: float | None = None,
             atol: float | None = None, method: str = "dopri5", t_min: float | None = None, probes: int | None = None,
             seeds: Sequence[Seed] | None = None, max_evaluations: int | None = None, steps: int | None = None,
             probe_kind: str | None = None, prior: Callable[[Tensor], Tensor] | None = None,
             clock: str | None = None, gradients: bool = False) -> LogProb:
    """log-density of x (batch, *event) under the probability flow from t_min (the SDE's, unless given) to t_max.

    divergence  "exact", D products with the Jacobian an evaluation, or "hutchinson": unbiased, with `probes` (1)
                random vectors a sample, "rademacher" (the default) or "gaussian", the same along the trajectory
    seeds       one for each sample, for "hutchinson"; the random numbers of sample i depend only on its seed
    method      an adaptive method of torchdiffeq with rtol, atol (1e-5) and at most max_evaluations (10,000) of the flow,
                or "exponential" with exactly `steps` evaluations (30)
    clock       of the adaptive methods: "t" (the default), or "lambda", the half log-SNR, with the state in the coordinates
                of exponential.py: fewer evaluations at tight tolerances, coarser at loose ones
    prior       log-density (batch,) of the latent at t_max; the SDE's prior unless given
    gradients   record what autograd needs to differentiate value and latent with respect to x and the model's parameters;
                memory grows with every evaluation. Adaptive step sizes are taken as given

    The state has the dtype of x, the network its own. One prediction serves drift and divergence, and counts once. Raises
    ValueError for unusable input (NaN, an event that does not fit the network, bf16 arithmetic, missing seeds, settings of
    another method), ArithmeticError if the ODE cannot be solved.
    """
    sde = model.sde
    start = start_time(sde, t_min)
    check_settings(divergence, rtol, atol, method, probes, max_evaluations, steps, probe_kind, clock)
    check_density(model)
    check_input(model, x)
    trace = _Trace(model, _probes(x, divergence, probes, probe_kind, seeds), method, gradients)

    # In lambda, by either method, the state is y = x / scale, and its volume is that of x over scale^D.
    in_y = method == "exponential" or clock == "lambda"
    first, last = (scale(sde, start), scale(sde, sde.t_max)) if in_y else (1.0, 1.0)
    error = None
    with evaluation_mode(model), torch.set_grad_enabled(gradients):
        if method == "exponential":
            end, integral, error = exponential_flow(sde, x / first, STEPS if steps is None else steps, start, trace)
        else:
            ends = torch.tensor([start, sde.t_max], dtype=torch.float64)
            field, span = (_by_lambda(trace, start), sde.half_log_snr(ends)) if in_y else (_by_t(trace), ends)
            zero = x.new_zeros(1 if trace.vectors is None else len(trace.vectors), len(x))
            states, _ = adaptive.integrate(
                field, (x / first, zero), span.tolist(), method, TOLERANCE if rtol is None else rtol,
                TOLERANCE if atol is None else atol,
                adaptive.MAX_EVALUATIONS if max_evaluations is None else max_evaluations, clock or "t")
            end, integral = states[-1]
        latent = end * last
        values = (prior or sde.prior.log_prob)(latent) + integral + x[0].numel() * math.log(last / first)
        if not bool(values.isfinite().all()):
            raise ArithmeticError(f"log p(x) is not finite after {trace.evaluations} evaluations (method {method})")
        spread = values.std(0) / len(values)**0.5 if len(values) > 1 else None
        return LogProb(values.mean(0), latent, trace.evaluations, spread, error)


def check_settings(divergence: str, rtol: float | None, atol: float | None, method: str, probes: int | None,
                   max_evaluations: int | None, steps: int | None, probe_kind: str | None, clock: str | None) -> None:
    """ArgumentError for words that `log_prob` does not know, settings of another method, and values out of range."""
    words = (("method", method, METHODS), ("clock", clock, CLOCKS), ("divergence", divergence, DIVERGENCES),
             ("probe_kind", probe_kind, PROBE_KINDS))
    for name, value, known in words:
        if value is not None and value not in known:
            raise ArgumentError(f"unknown {name} {value!r}; choose from {', '.join(known)}", name)
    if probes is not None and probes < 1:
        raise ArgumentError(f"probes must be at least 1, got {probes}", "probes")
    foreign = {"steps": steps} if method != "exponential" else {
        "rtol": rtol, "atol": atol, "max_evaluations": max_evaluations, "clock": clock}
    of_probes = {"probes": probes, "probe_kind": probe_kind} if divergence == "exact" else {}
    for owner, settings, taker in ((f"method {method!r}", foreign, ""),
                                   (f"divergence {divergence!r}", of_probes, "; it belongs to divergence 'hutchinson'")):
        if given := [name for name, setting in settings.items() if setting is not None]:
            raise ArgumentError(f"{owner} takes no {given[0]}{taker}", given[0])
    if method == "exponential":
        check_steps(STEPS if steps is None else steps)
    else:
        adaptive.check_tolerances(method, TOLERANCE if rtol is None else rtol, TOLERANCE if atol is None else atol,
                                  adaptive.MAX_EVALUATIONS if max_evaluations is None else max_evaluations)


class _Trace:
    """A prediction and its divergence from one evaluation, which it counts; vectors: None for the exact divergence."""

    def __init__(self, model: ScoreModel, vectors: Tensor | None, method: str, gradients: bool):
        self.model, self.vectors, self.method, self.gradients = model, vectors, method, gradients
        self.evaluations = 0

    def __call__(self, kind: str, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += self.model.evaluations_at(t)

        def field(z: Tensor) -> Tensor:
            with fitting(z):
                return self.model.predict(z, t, kind)

        if self.vectors is None:
            value, exact = with_exact_divergence(field, y, gradients=self.gradients)
            divergence = exact[None]
        else:
            value, divergence = with_hutchinson_divergence(field, y, self.vectors, self.gradients)
        if not bool(value.isfinite().all() and divergence.isfinite().all()):
            raise ArithmeticError(f"the score or its divergence is not finite at t = {float(t):.4g}, in evaluation "
                                  f"{self.evaluations} (method {self.method}); the weights or the data may be damaged")
        return value, divergence


Field = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _by_t(trace: _Trace) -> Field:
    """d(x, log p)/dt."""
    sde = trace.model.sde

    def field(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y = state[0]
        score, div_score = trace("score", t, y)
        linear, weight = sde.drift(t).to(y.dtype), sde.g2(t).to(y.dtype) / 2
        return linear * y - weight * score, linear * y[0].numel() - weight * div_score

    return field


def _by_lambda(trace: _Trace, start: float) -> Field:
    """d(y, log p of y)/dlambda, in the coordinates of exponential.py."""
    sde = trace.model.sde

    def field(lam: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        t = sde.time(torch.tensor(float(lam), dtype=torch.float64)).clamp(start, sde.t_max)
        m, div_m, _ = transformed(sde, t, state[0], trace)
        noise = math.exp(-float(lam))
        weight = noise / (1 + noise**2)
        return weight * m, weight * div_m

    return field


def _probes(x: Tensor, divergence: str, probes: int | None, kind: str | None,
            seeds: Sequence[Seed] | None) -> Tensor | None:
    """The vectors (probes, batch, *event) of the Hutchinson estimator; None for the exact trace."""
    if divergence == "exact":
        return None
    if seeds is None or len(seeds) != len(x):
        raise ArgumentError(f"the Hutchinson estimator needs seeds, one for each of the {len(x)} samples", "seeds")
    noise = NoiseStream(seeds, PROBES)
    draw = noise.normal if kind == "gaussian" else noise.rademacher
    return torch.stack([draw(x) for _ in range(probes or 1)])
