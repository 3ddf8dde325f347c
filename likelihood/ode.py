"""log p(x) by the probability-flow ODE (Song et al. 2021, section 4.3 and appendix D.2).

By the instantaneous change of variables (Chen et al. 2018), along dx/dt = F(x, t) = f x - g^2/2 score,

    log p_0(x) = log p_T(x(T)) + int_0^T div F(x(t), t) dt,       div F = D f - g^2/2 div score

solved by one of torchdiffeq's adaptive methods, or on a fixed budget by the exponential method of exponential.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scorefield.likelihood.checks import check_input, fitting, start_time
from scorefield.likelihood.exponential import STEPS, check_steps, exponential_flow, scale, transformed
from scorefield.likelihood.probes import HADAMARD, PROBE_KINDS, Probes, probes_along
from scorefield.models.bridge import BridgeFlow
from scorefield.models.score_model import ScoreModel, check_density, evaluation_mode
from scorefield.numerics import integrate as adaptive
from scorefield.numerics.divergence import with_exact_divergence, with_hutchinson_divergence
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import Seed

DIVERGENCES = ("exact", "hutchinson")
METHODS = (*adaptive.METHODS, "exponential")
CLOCKS = ("t", "lambda")
TOLERANCE = 1e-5      # of the adaptive methods


@dataclass(frozen=True)
class LogProb:
    """value: log p(x) in nats, (batch,). latent: x at t_max, (batch, *event). nfe: evaluations of the network.

    probe_error   standard error of value over the probes, (batch,), if there are several
    solver_error  estimate of what the steps left of error in value, (batch,), from method "exponential"; rather too
                  large than too small, and free of the probes' noise (docs/likelihood.md)
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
             clock: str | None = None, gradients: bool = False, fresh_probes: bool | None = None,
             tolerance: float | None = None) -> LogProb:
    """log-density of x (batch, *event) under the probability flow from t_min (the SDE's, unless given) to t_max.

        result = log_prob(model, x, "hutchinson", method="exponential", seeds=range(len(x)), tolerance=1e-3)

    divergence  "exact", D products with the Jacobian an evaluation, or "hutchinson": unbiased, with `probes` (1)
                random vectors a sample of a probe_kind (probes.py)
    fresh_probes  new vectors at every evaluation, for method "exponential", where it is the default, with probe_kind
                "hadamard"; otherwise the same along the trajectory, "rademacher" unless told otherwise
    seeds       one for each sample, for "hutchinson"; the random numbers of sample i depend only on its seed
    method      an adaptive method of torchdiffeq with rtol, atol (1e-5) and at most max_evaluations (10,000) of the flow,
                or "exponential" with exactly `steps` evaluations (30)
    tolerance   of method "exponential", in bits a dimension: twice as many steps, again and again, until solver_error is
                within it, for each sample by itself, in at most max_evaluations (10,000) of the flow for all of them
    clock       of the adaptive methods: "t" (the default), or "lambda", the half log-SNR, with the state in the coordinates
                of exponential.py: fewer evaluations at tight tolerances, coarser at loose ones
    prior       log-density (batch,) of the latent at t_max; the SDE's prior unless given
    gradients   record what autograd needs to differentiate value and latent with respect to x and the model's parameters;
                memory grows with every evaluation. Adaptive step sizes are taken as given

    The state has the dtype of x, the network its own. One prediction serves drift and divergence, and counts once. Raises
    ValueError for unusable input (NaN, an event that does not fit the network, bf16 arithmetic, missing seeds, settings of
    another method), ArithmeticError if the ODE cannot be solved, or not to the tolerance.
    """
    start = start_time(model.sde, t_min)
    check_settings(divergence, rtol, atol, method, probes, max_evaluations, steps, probe_kind, clock, fresh_probes,
                   tolerance)
    check_density(model)
    if isinstance(model, BridgeFlow) and method == "exponential":
        raise ArgumentError("method 'exponential' is for flows whose noise grows with the log-SNR, and that of a bridge "
                            "ends in examples; choose an adaptive method, such as dopri5", "method")
    check_input(model, x)
    if divergence == "hutchinson" and (seeds is None or len(seeds) != len(x)):
        raise ArgumentError(f"the Hutchinson estimator needs seeds, one for each of the {len(x)} samples", "seeds")
    most = adaptive.MAX_EVALUATIONS if max_evaluations is None else max_evaluations
    prior = prior or model.sde.prior.log_prob

    def trace(nodes: int) -> _Trace:
        draw = None if seeds is None or divergence == "exact" else probes_along(
            x, probe_kind, probes or 1, seeds, nodes, _fresh(method, fresh_probes))
        return _Trace(model, draw, method, gradients)

    def exponential(steps: int) -> LogProb:
        return _exponential(x, start, trace(steps), steps, prior)

    with evaluation_mode(model), torch.set_grad_enabled(gradients):
        if method != "exponential":
            tolerances = TOLERANCE if rtol is None else rtol, TOLERANCE if atol is None else atol
            return _adaptive(x, start, trace(1), method, clock or "t", tolerances, most, prior)
        steps = STEPS if steps is None else steps
        return exponential(steps) if tolerance is None else _refined(exponential, steps, tolerance, most)


def check_settings(divergence: str, rtol: float | None, atol: float | None, method: str, probes: int | None,
                   max_evaluations: int | None, steps: int | None, probe_kind: str | None, clock: str | None,
                   fresh_probes: bool | None = None, tolerance: float | None = None) -> None:
    """ArgumentError for words that `log_prob` does not know, settings of another method, and values out of range."""
    words = (("method", method, METHODS), ("clock", clock, CLOCKS), ("divergence", divergence, DIVERGENCES),
             ("probe_kind", probe_kind, PROBE_KINDS))
    for name, value, known in words:
        if value is not None and value not in known:
            raise ArgumentError(f"unknown {name} {value!r}; choose from {', '.join(known)}", name)
    if probes is not None and probes < 1:
        raise ArgumentError(f"probes must be at least 1, got {probes}", "probes")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ArgumentError(f"tolerance must be above 0, in bits a dimension, got {tolerance}", "tolerance")
    _refuse_foreign(divergence, method, tolerance, {
        "rtol": rtol, "atol": atol, "max_evaluations": max_evaluations, "steps": steps, "clock": clock, "probes": probes,
        "probe_kind": probe_kind, "fresh_probes": fresh_probes, "tolerance": tolerance})
    if probe_kind == HADAMARD and not _fresh(method, fresh_probes):
        raise ArgumentError("hadamard probes differ between evaluations: they are for method 'exponential' with fresh "
                            "probes; choose rademacher or gaussian", "probe_kind", "fresh_probes")
    most = adaptive.MAX_EVALUATIONS if max_evaluations is None else max_evaluations
    if method == "exponential":
        first = STEPS if steps is None else steps
        check_steps(first)
        if most < first:
            raise ArgumentError(f"max_evaluations must be at least the first {first} steps, got {most}", "max_evaluations",
                                "steps")
    else:
        adaptive.check_tolerances(method, TOLERANCE if rtol is None else rtol, TOLERANCE if atol is None else atol, most)


def _refuse_foreign(divergence: str, method: str, tolerance: float | None, settings: dict[str, Any]) -> None:
    """ArgumentError for a setting that the method or the divergence does not take."""
    foreign = ("steps", "fresh_probes", "tolerance") if method != "exponential" else (
        "rtol", "atol", "clock", *(("max_evaluations",) if tolerance is None else ()))
    of_probes = ("probes", "probe_kind", "fresh_probes") if divergence == "exact" else ()
    for owner, names, taker in ((f"method {method!r}", foreign, ""),
                                (f"divergence {divergence!r}", of_probes, "; it belongs to divergence 'hutchinson'")):
        if given := [name for name in names if settings[name] is not None]:
            without = " without tolerance" if given[0] == "max_evaluations" else ""
            raise ArgumentError(f"{owner} takes no {given[0]}{without}{taker}", given[0])


def _fresh(method: str, fresh_probes: bool | None) -> bool:
    return method == "exponential" and fresh_probes is not False


# ---- the methods -------------------------------------------------------------------------------------------------------


def _exponential(x: Tensor, start: float, trace: "_Trace", steps: int, prior: Callable[[Tensor], Tensor]) -> LogProb:
    sde = trace.model.sde
    first, last = scale(sde, start), scale(sde, sde.t_max)      # in lambda the state is y = x / scale
    end, integral, error = exponential_flow(sde, x / first, steps, start, trace)
    return _result(x, end * last, integral + x[0].numel() * math.log(last / first), trace, prior, error)


def _refined(solve: Callable[[int], LogProb], steps: int, tolerance: float, most: int) -> LogProb:
    """Solve in `steps`, twice as many, and so on; each sample keeps the first value whose error passes."""
    best = last = solve(steps)
    unit, evaluations = math.log(2) * best.latent[0].numel(), best.nfe
    while True:
        assert best.solver_error is not None
        errors = best.solver_error / unit
        missing = ~(errors <= tolerance)
        if not bool(missing.any()):
            return replace(best, nfe=evaluations)
        if evaluations + 2 * last.nfe > most:
            worst = int((errors * missing).argmax())
            raise ArithmeticError(
                f"the estimated error of {int(missing.sum())} of {len(missing)} examples is above tolerance={tolerance:g} "
                f"(of example {worst} of the batch {float(errors[worst]):.2g} bits/dim) after {evaluations} evaluations, "
                f"the last {last.nfe} in one go; twice as many would be more than max_evaluations={most}; raise one")
        steps *= 2
        last = solve(steps)
        evaluations += last.nfe
        best = _where(missing, last, best)


def _where(taken: Tensor, new: LogProb, old: LogProb) -> LogProb:
    """`new` for the samples that are taken, `old` for the others."""
    def chosen(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.where(taken.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    value, latent = chosen(new.value, old.value), chosen(new.latent, old.latent)
    assert value is not None and latent is not None
    return LogProb(value, latent, new.nfe, chosen(new.probe_error, old.probe_error),
                   chosen(new.solver_error, old.solver_error))


def _adaptive(x: Tensor, start: float, trace: "_Trace", method: str, clock: str, tolerances: tuple[float, float], most: int,
              prior: Callable[[Tensor], Tensor]) -> LogProb:
    sde = trace.model.sde
    ends = torch.tensor([start, sde.t_max], dtype=torch.float64)
    first, last, field, span = 1.0, 1.0, _by_t(trace), ends
    if clock == "lambda":
        first, last, field, span = scale(sde, start), scale(sde, sde.t_max), _by_lambda(trace, start), sde.half_log_snr(ends)
    zero = x.new_zeros(1 if trace.probes is None else len(trace.probes()), len(x))
    states, _ = adaptive.integrate(field, (x / first, zero), span.tolist(), method, *tolerances, most, clock)
    end, integral = states[-1]
    return _result(x, end * last, integral + x[0].numel() * math.log(last / first), trace, prior)


def _result(x: Tensor, latent: Tensor, change: Tensor, trace: "_Trace", prior: Callable[[Tensor], Tensor],
            error: Tensor | None = None) -> LogProb:
    """From the latent (batch, *event) and the change of log p along the way (probes, batch)."""
    values = prior(latent) + change
    if not bool(values.isfinite().all()):
        raise ArithmeticError(f"log p(x) is not finite after {trace.evaluations} evaluations (method {trace.method})")
    spread = values.std(0) / len(values)**0.5 if len(values) > 1 else None
    return LogProb(values.mean(0), latent, trace.evaluations, spread, error)


class _Trace:
    """A prediction and its divergence from one evaluation, which it counts; probes: None for the exact divergence."""

    def __init__(self, model: ScoreModel, probes: Probes | None, method: str, gradients: bool):
        self.model, self.probes, self.method, self.gradients = model, probes, method, gradients
        self.evaluations = 0

    def __call__(self, kind: str, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += self.model.evaluations_at(t)

        def field(z: Tensor) -> Tensor:
            with fitting(z):
                return self.model.predict(z, t, kind)

        if self.probes is None:
            value, exact = with_exact_divergence(field, y, gradients=self.gradients)
            divergence = exact[None]
        else:
            value, divergence = with_hutchinson_divergence(field, y, self.probes(), self.gradients)
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
