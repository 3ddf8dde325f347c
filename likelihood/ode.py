"""log p(x) by the probability-flow ODE (Song et al. 2021, section 4.3 and appendix D.2).

By the instantaneous change of variables (Chen et al. 2018), along dx/dt = F(x, t) = f x - g^2/2 score,

    log p_0(x) = log p_1(x(1)) + int_0^1 div F(x(t), t) dt
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from likelihood.divergence import with_exact_divergence, with_hutchinson_divergence
from models.denoiser import ScoreModel, evaluation_mode
from samplers.noise import PROBES, NoiseStream, Seed
from sde_lib.integrate import MAX_EVALUATIONS, integrate

DIVERGENCES = ("exact", "hutchinson")


@dataclass(frozen=True)
class LogProb:
    """value: log p(x) in nats, (batch,). latent: x(1), (batch, *event). nfe: evaluations of the network.

    probe_error: standard error of value over the probes, (batch,), where there were several.
    """

    value: Tensor
    latent: Tensor
    nfe: int
    probe_error: Tensor | None = None


def log_prob(model: ScoreModel, x: Tensor, divergence: str = "exact", rtol: float = 1e-5, atol: float = 1e-5,
             method: str = "dopri5", t_min: float | None = None, probes: int = 1,
             seeds: Sequence[Seed] | None = None, max_evaluations: int = MAX_EVALUATIONS) -> LogProb:
    """log-density of x (batch, *event) under the probability flow from t_min (the SDE's, unless given) to 1.

    divergence  "exact", D products with the Jacobian an evaluation, or "hutchinson": unbiased, with `probes`
                Rademacher vectors a sample, which stay the same along the trajectory
    seeds       one for each sample, for "hutchinson"; what sample i gets depends on its seed alone

    One forward of the network serves drift and divergence, and counts once. Raises ValueError for unusable input (NaN,
    bf16 arithmetic, missing seeds), ArithmeticError where the ODE cannot be solved.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence {divergence!r}; choose from {', '.join(DIVERGENCES)} (--divergence)")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes} (--probes)")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64, got {x.dtype}: less makes the ODE's right-hand side too rough for "
                         "adaptive steps")
    if not bool(x.isfinite().all()):
        raise ValueError("x holds values that are not finite")
    if getattr(model, "autocast", None) is not None:
        raise ValueError("likelihoods need a network in its own precision: reduced precision makes the ODE's "
                         "right-hand side too rough for adaptive steps; set denoiser.autocast = None")
    vectors = None
    if divergence == "hutchinson":
        if seeds is None or len(seeds) != len(x):
            raise ValueError(f"the Hutchinson estimator needs seeds, one for each of the {len(x)} samples")
        noise = NoiseStream(seeds, PROBES)
        vectors = torch.stack([noise.rademacher(x) for _ in range(probes)])
    sde = model.sde
    start = sde.t_min if t_min is None else t_min
    if not 0 < start < 1:
        raise ValueError(f"t_min must lie in (0, 1), got {start} (--t_min)")

    def field(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        def drift(y: Tensor) -> Tensor:
            return sde.reverse_drift(y, t, model.score(y, t), eta=0.0)

        if vectors is None:
            value, trace = with_exact_divergence(drift, state[0])
            return value, trace[None]
        return with_hutchinson_divergence(drift, state[0], vectors)

    integral = x.new_zeros(1 if vectors is None else probes, len(x))
    with evaluation_mode(model), torch.no_grad():
        states, nfe = integrate(field, (x, integral), [start, 1.0], method, rtol, atol, max_evaluations)
    latent, integral = states[-1]
    values = sde.prior_log_prob(latent) + integral
    error = values.std(0) / probes**0.5 if probes > 1 and vectors is not None else None
    return LogProb(values.mean(0), latent, nfe, error)
