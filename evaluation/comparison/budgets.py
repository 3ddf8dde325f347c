"""Settings of a sampler whose evaluations keep to a budget.

A budget is a number of calls of the network for each sample. What a sampler spends is found by running it on a model that
costs as much as the real one and computes nothing, so no rule of thumb can be wrong: Heun's last step, singlestep orders,
correctors, guidance in an interval of times and a final denoising are all counted as they come.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scorefield.models.score_model import MeanGuidance, Posterior, ScoreModel
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import of_pairs
from scorefield.samplers import Sampler, make_sampler, sampler_options
from scorefield.samplers.base import CountedModel

Maker = Callable[[Mapping[str, Any]], Sampler]      # from a sampler's options


@dataclass(frozen=True)
class Asked:
    """A sampler with settings of its own: "ddim" or "ddim:eta=1" (`Asked.parse`).

    maker  makes it from its options; None: make_sampler
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    maker: Maker | None = None

    @classmethod
    def parse(cls, text: str, makers: Mapping[str, Maker] | None = None) -> "Asked":
        """From NAME[:OPTION=VALUE ...], options joined by ":"; ArgumentError for names and values that do not exist.

        makers  of the samplers that are fitted to the model, by name
        """
        name, *pairs = text.strip().split(":")
        with renamed(names={"sampler": "samplers"}):
            free = {word: field for word, field in sampler_options(name).items() if word not in ("steps", "points")}

        def refusal(pair: str, option: str) -> str:
            why = "the budgets set the steps" if option == "steps" else f"sampler {name!r} takes no {option!r}"
            return f"{why}; after a colon give OPTION=VALUE with one of {', '.join(free)}"

        options = of_pairs(text, pairs, free, refusal, "samplers")
        asked = cls(name, options, (makers or {}).get(name))
        try:
            asked.made()
        except ArgumentError as error:
            if "steps" not in error.arguments:
                raise ArgumentError(f"{text!r}: {error}", "samplers") from None
        return asked

    def made(self, **steps: int) -> Sampler:
        """The sampler, with a number of steps if it is given; ArgumentError where there is none."""
        options = {**self.options, **steps}
        return make_sampler(self.name, **options) if self.maker is None else self.maker(options)

    @property
    def text(self) -> str:
        return ":".join([self.name, *(f"{option}={value}" for option, value in self.options.items())])

    @property
    def adaptive(self) -> bool:
        """Whether it chooses the number of its evaluations itself, so that no budget applies."""
        return "steps" not in sampler_options(self.name) or self.options.get("method") == "adaptive"


class OverBudget(ValueError):
    """No number of steps keeps to the budget; the message says why."""


class _Free(ScoreModel):
    """Predicts zero without any work, and says that it costs what `model` costs."""

    def __init__(self, model: ScoreModel):
        super().__init__()
        self.sde, self.cost, self.guidance = model.sde, model.evaluations_at, model.mean_guidance()
        self.indices = model.best_indices

    def evaluations_at(self, t: float | Tensor) -> int:
        return self.cost(t)

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        return torch.zeros_like(x)

    def posterior(self, x: Tensor, t: float | Tensor) -> Posterior:
        return Posterior(torch.zeros_like(x), torch.zeros(()))

    def with_share(self, x: Tensor, t: float | Tensor, kind: str) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x), torch.zeros_like(x)

    def best_indices(self, times: Tensor, steps: int) -> Tensor:
        return self.indices(times, steps)

    def mean_guidance(self) -> MeanGuidance | None:
        if self.guidance is None:
            return None
        return MeanGuidance(_Free(self.guidance.unguided), lambda x, t: torch.zeros_like(x), self.guidance.evaluations_at)


@torch.no_grad()
def evaluations_of(sampler: Sampler, model: ScoreModel) -> int:
    """The evaluations of a sampler with a fixed grid, without one of the network. Raises what the sampler would."""
    free = _Free(model)
    counted, times = CountedModel(free), sampler.times(free)
    for _ in sampler.solve(counted, torch.zeros(1, 1), times, NoiseStream([0]) if sampler.stochastic else None):
        pass
    return counted.nfe + (model.evaluations_at(times[-1]) if sampler.denoises(free) else 0)


def within(asked: Asked, model: ScoreModel, budget: int, cost_of: Callable[[Sampler, ScoreModel], int] = evaluations_of
           ) -> tuple[Sampler, int]:
    """The sampler with the most steps whose evaluations are at most `budget`, and these; OverBudget if there is none.

        sampler, nfe = within(Asked("heun"), model, budget=20)      # 10 steps, 19 evaluations

    cost_of  what a sampler spends on that model, where it is not the evaluations of one sample
    """
    reason, fewest = "", 0

    def spent(steps: int) -> int | None:
        nonlocal reason
        try:
            return cost_of(asked.made(steps=steps), model)
        except ArgumentError as error:
            reason = str(error)
            return None

    steps, cost = budget, None      # a step takes an evaluation at least
    while steps > 0 and not ((cost := spent(steps)) is not None and cost <= budget):
        fewest = cost or fewest
        steps = steps - 1 if cost is None else min(steps - 1, steps * budget // cost + 1)
    if steps < 1 or cost is None:
        raise OverBudget(f"its fewest evaluations are {fewest}" if fewest else reason)
    while (more := spent(steps + 1)) is not None and more <= budget:
        steps, cost = steps + 1, more
    return asked.made(steps=steps), cost
