"""The time at which a likelihood starts, chosen by the bound that it gives on training examples.

A score model is least accurate where the noise is smallest, so a likelihood that starts at a larger time may be the better
one. The density of slightly noisy data (ODE), or that of a wider decoder (bound), bounds -log P(k) as well, for any time.
Choosing it by the examples that are scored would flatter the model; training examples know nothing of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scorefield.data import Codec, Dataset
from scorefield.evaluation.likelihood import score
from scorefield.models import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE

EXAMPLES = 128      # training examples that choose
WRONG = 0.1         # bits/dim of the solver's own error, from which on a figure chooses nothing
FACTORS = tuple(10 ** (i / 2) for i in range(6))


@dataclass(frozen=True)
class Truncation:
    """t_min, the best of the times in `bits`: bits/dim of the training examples for each. One at which the solver fails is
    not chosen.
    """

    t_min: float
    bits: dict[float, float]


def candidates(sde: SDE) -> tuple[float, ...]:
    """The SDE's own t_min times powers of the root of 10, six of them, to 3 digits; those below t_max."""
    return tuple(t for factor in FACTORS if (t := max(sde.t_min, float(f"{sde.t_min * factor:.3g}"))) < sde.t_max)


def best_t_min(model: ScoreModel, dataset: Dataset, codec: Codec, times: Sequence[float] | None = None, n: int = EXAMPLES,
               **settings: Any) -> Truncation:
    """The time of `times` from which the likelihood of the first n training examples is best.

        chosen = best_t_min(model, dataset, codec, method="exponential")
        result = score(model, dataset, codec, method="exponential", t_min=chosen.t_min)

    times     by default `candidates`
    settings  those of `score`, but for t_min and split. Every time sees the same random numbers

    Raises ArgumentError for the estimator "chain_elbo", which has no such time, and as `score`.
    """
    if settings.get("estimator") == "chain_elbo":
        raise ArgumentError("chain_elbo starts at the first index of the chain; leave out t_min", "t_min", "estimator")
    times = candidates(model.sde) if times is None else tuple(times)
    if not times:
        raise ArgumentError("there must be a time to choose", "times")
    bits, solved = dict[float, float](), list[float]()
    for t in times:
        result = score(model, dataset, codec, **{**settings, "split": "train", "n": n, "t_min": t})
        bits[t] = result.mean
        solved += [t] if result.summary().get("solver_error", 0.0) <= WRONG else []
    if not solved:
        raise ArithmeticError(f"at each of the times {', '.join(f'{t:g}' for t in times)} the solver's error is above "
                              f"{WRONG} bits/dim, so none can be chosen; take more steps")
    return Truncation(min(solved, key=lambda t: bits[t]), bits)
