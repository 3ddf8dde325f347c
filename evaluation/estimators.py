"""The estimators of log p of a batch, with one interface: the probability-flow ODE, and two lower bounds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scorefield.data.codec import Codec, Pixels
from scorefield.likelihood import chain_elbo, elbo, log_prob
from scorefield.models import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import Seed


@dataclass(frozen=True)
class Task:
    """The input of an estimator: x (batch, *event), the data k (batch, *shape) that it encodes, and their codec."""

    x: Tensor
    k: Tensor
    seeds: list[Seed]
    codec: Codec


Estimate = tuple[Tensor, Tensor | None, Tensor | None, int, dict[str, Tensor]]


def _ode(model: ScoreModel, task: Task, **settings: Any) -> Estimate:
    result = log_prob(model, task.x, seeds=task.seeds, **settings)
    return result.value, result.probe_error, result.solver_error, result.nfe, {}


def _elbo(model: ScoreModel, task: Task, bound_draws: int = 32, **settings: Any) -> Estimate:
    if bound_draws < 2 or bound_draws % 2:
        raise ArgumentError(f"elbo takes an even number of draws of at least 2, got {bound_draws}", "bound_draws")
    bound = elbo(model, task.x, draws=bound_draws, seeds=task.seeds, **settings)
    return bound.value, bound.error, None, bound.nfe, bound.terms


def _chain_elbo(model: ScoreModel, task: Task, bound_draws: int = 1, discrete: bool = True,
                **settings: Any) -> Estimate:
    ends: dict[str, Any] = {"low": task.codec.low, "high": task.codec.high} if isinstance(task.codec, Pixels) else {}
    k, levels = (task.k.to(task.x.device), task.codec.levels) if discrete else (task.x, None)
    bound = chain_elbo(model, k, levels, draws=bound_draws, seeds=task.seeds, dtype=task.x.dtype, **ends, **settings)
    return bound.value, bound.error, None, bound.nfe, bound.terms


# log p (batch,) in nats, its standard error, the solver's error, evaluations, terms: from a model, a task and settings.
# "chain_elbo" is of the integers themselves or, with discrete=False, of what encodes them; all others are of the latter.
ESTIMATORS: dict[str, Callable[..., Estimate]] = {"ode": _ode, "elbo": _elbo, "chain_elbo": _chain_elbo}
BOUNDS = ("elbo", "chain_elbo")      # which need a score
