"""The likelihood's estimators as frozen dataclasses: settings that say type, default and help, and a call.

    ODE(method="exponential", divergence="exact")(model, x).value

A command line or a config is built from ESTIMATORS and the fields. They call `log_prob`, `elbo` and `chain_elbo`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from scorefield.likelihood.elbo import Bound, chain_elbo, check_grid, check_pairs, check_repetitions, elbo
from scorefield.likelihood.ode import CLOCKS, DIVERGENCES, METHODS, LogProb, check_settings, log_prob
from scorefield.likelihood.probes import PROBE_KINDS
from scorefield.models.denoiser import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import Seed
from scorefield.numerics.options import option
from scorefield.sde_lib.transition import VARIANCES, check_variance

T_MIN = "time at which the likelihood starts; by default the SDE's t_min; best: the one that training examples choose"


@dataclass(frozen=True, kw_only=True)
class ODE:
    """log p(x) by the probability-flow ODE: `log_prob`, with the Hutchinson divergence by default."""

    method: str = option("dopri5", ", ".join(METHODS))
    rtol: float | None = option(None, "relative tolerance of an adaptive method; by default 1e-5")
    atol: float | None = option(None, "absolute tolerance of an adaptive method; by default 1e-5")
    max_evaluations: int | None = option(None, "largest number of evaluations of an adaptive method, or to a tolerance; by "
                                               "default 10000")
    steps: int | None = option(None, "evaluations of the exponential method; by default 30")
    tolerance: float | None = option(None, "bits/dim: the exponential method doubles its steps until its estimated error "
                                           "is within")
    divergence: str = option("hutchinson", f"{', '.join(DIVERGENCES)}; exact takes D products with the Jacobian each time")
    probes: int | None = option(None, "random vectors per sample of the Hutchinson divergence; by default 1")
    probe_kind: str | None = option(None, f"distribution of the probes: {', '.join(PROBE_KINDS)}; by default hadamard if "
                                          "fresh, else rademacher")
    fresh_probes: bool | None = option(None, "new probes at each evaluation of the exponential method, as by default")
    t_min: float | None = option(None, T_MIN)
    clock: str | None = option(None, f"variable over which an adaptive method integrates: {', '.join(CLOCKS)}; by default t")

    def __post_init__(self) -> None:
        check_settings(self.divergence, self.rtol, self.atol, self.method, self.probes, self.max_evaluations, self.steps,
                       self.probe_kind, self.clock, self.fresh_probes, self.tolerance)

    def __call__(self, model: ScoreModel, x: Tensor, seeds: Sequence[Seed] | None = None,
                 prior: Callable[[Tensor], Tensor] | None = None, gradients: bool = False) -> LogProb:
        """Of x (batch, *event), as `log_prob`."""
        return log_prob(model, x, seeds=seeds, prior=prior, gradients=gradients, **_settings(self))


@dataclass(frozen=True, kw_only=True)
class ELBO:
    """The bound in continuous time: `elbo`."""

    draws: int = option(32, "number of predictions per sample, even")
    t_min: float | None = option(None, T_MIN)

    def __post_init__(self) -> None:
        check_pairs(self.draws)

    def __call__(self, model: ScoreModel, x: Tensor, seeds: Sequence[Seed] | None = None) -> Bound:
        """Of x (batch, *event), as `elbo`."""
        return elbo(model, x, seeds=seeds, **_settings(self))


@dataclass(frozen=True, kw_only=True)
class ChainELBO:
    """The bound of a chain: `chain_elbo`."""

    draws: int = option(1, "number of independent repetitions; two or more give an error bar")
    variance: str = option("beta", f"variance of a step back: {', '.join(VARIANCES)}")
    steps: int | None = option(None, "number of steps back; by default all of the chain")
    grid: str = option("even", "indices of the steps: even, or optimal, for a model with a fitted variance")

    def __post_init__(self) -> None:
        check_repetitions(self.draws)
        check_variance(self.variance)
        check_grid(self.grid)
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
