"""The likelihood's estimators as frozen dataclasses: settings that say type, default and help, and a call.

    ODE(method="exponential", divergence="exact")(model, x).value

A command line or a config is built from ESTIMATORS and the fields. `log_prob`, `elbo` and `chain_elbo` are what they call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from scorefield.likelihood.elbo import Bound, chain_elbo, check_pairs, check_repetitions, elbo
from scorefield.likelihood.ode import CLOCKS, DIVERGENCES, METHODS, PROBE_KINDS, LogProb, check_settings, log_prob
from scorefield.models.denoiser import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import Seed
from scorefield.numerics.options import option
from scorefield.sde_lib.transition import VARIANCES, check_variance

T_MIN = "where the likelihood starts; the SDE's t_min unless given"


@dataclass(frozen=True, kw_only=True)
class ODE:
    """log p(x) by the probability-flow ODE: `log_prob`, with the Hutchinson divergence unless told otherwise."""

    method: str = option("dopri5", ", ".join(METHODS))
    rtol: float | None = option(None, "relative tolerance of an adaptive method; 1e-5 unless given")
    atol: float | None = option(None, "absolute tolerance of an adaptive method; 1e-5 unless given")
    max_evaluations: int | None = option(None, "an adaptive method stops with an error beyond so many; 10000 unless given")
    steps: int | None = option(None, "evaluations of the exponential method; 30 unless given")
    divergence: str = option("hutchinson", f"{', '.join(DIVERGENCES)}; exact takes D products with the Jacobian each time")
    probes: int | None = option(None, "random vectors of the Hutchinson divergence, for each sample; 1 unless given")
    probe_kind: str | None = option(None, f"their distribution: {', '.join(PROBE_KINDS)}; rademacher unless given")
    t_min: float | None = option(None, T_MIN)
    clock: str | None = option(None, f"what an adaptive method steps in: {', '.join(CLOCKS)}; t unless given")

    def __post_init__(self) -> None:
        check_settings(self.divergence, self.rtol, self.atol, self.method, self.probes, self.max_evaluations, self.steps,
                       self.probe_kind, self.clock)

    def __call__(self, model: ScoreModel, x: Tensor, seeds: Sequence[Seed] | None = None,
                 prior: Callable[[Tensor], Tensor] | None = None, gradients: bool = False) -> LogProb:
        """Of x (batch, *event), as `log_prob`."""
        return log_prob(model, x, seeds=seeds, prior=prior, gradients=gradients, **_settings(self))


@dataclass(frozen=True, kw_only=True)
class ELBO:
    """The bound in continuous time: `elbo`."""

    draws: int = option(32, "predictions for each sample, an even number")
    t_min: float | None = option(None, T_MIN)

    def __post_init__(self) -> None:
        check_pairs(self.draws)

    def __call__(self, model: ScoreModel, x: Tensor, seeds: Sequence[Seed] | None = None) -> Bound:
        """Of x (batch, *event), as `elbo`."""
        return elbo(model, x, seeds=seeds, **_settings(self))


@dataclass(frozen=True, kw_only=True)
class ChainELBO:
    """The bound of a chain: `chain_elbo`."""

    draws: int = option(1, "independent repetitions; two or more have an error bar")
    variance: str = option("beta", f"of a step back: {', '.join(VARIANCES)}")
    steps: int | None = option(None, "steps back, evenly spaced over the chain; all of them unless given")

    def __post_init__(self) -> None:
        check_repetitions(self.draws)
        check_variance(self.variance)
        if self.steps is not None and self.steps < 2:
            raise ArgumentError(f"steps must be at least 2, got {self.steps}", "steps")

    def __call__(self, model: ScoreModel, k: Tensor, levels: int | None, seeds: Sequence[Seed] | None = None,
                 low: float = -1.0, high: float = 1.0, dequantized: bool = False,
                 dtype: torch.dtype = torch.float32) -> Bound:
        """Of integers k (batch, *event) in 0 .. levels - 1, or of real k where levels is None, as `chain_elbo`."""
        return chain_elbo(model, k, levels, low=low, high=high, dequantized=dequantized, seeds=seeds, dtype=dtype,
                          **_settings(self))


def _settings(estimator: Any) -> dict[str, Any]:
    return {field.name: getattr(estimator, field.name) for field in fields(estimator)}


ESTIMATORS: dict[str, type[ODE] | type[ELBO] | type[ChainELBO]] = {"ode": ODE, "elbo": ELBO, "chain_elbo": ChainELBO}
