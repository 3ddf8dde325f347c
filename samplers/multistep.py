"""Linear multistep rules for the probability-flow ODE, one evaluation a step; shared by DPM-Solver, UniPC and Adams.

In lambda = log(alpha/sigma) the flow is semi-linear: with a prediction m, linear in x and eps, that a trained network
changes slowly along the flow, x at the next time is the exact solution of the linear part plus an integral of m, which
a rule replaces by a combination of the last values of m (Lu et al. 2022; Hochbruck and Ostermann 2010):

    x_(i+1) = keep x_i + sum_j predict_j m_(i-j)

A corrector then uses m at the predicted point, which the next step needs anyway, to improve x_(i+1) at no cost:

    x_(i+1) <- keep x_i + correct_0 m_(i+1) + sum_j correct_(j+1) m_(i-j)

A rule with noise adds noise z to both, with one z.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from scorefield.models.score_model import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.kept import Kept
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.base import GRID, STEPS, CountedModel, GridSampler
from scorefield.sde_lib.sde import SDE

PREDICTIONS = ("noise", "data")
Coefficients = tuple[Sequence["Rule"], Sequence[float], Sequence[float]]
_KEPT: Kept[Coefficients] = Kept()


@dataclass(frozen=True)
class Schedule:
    """A grid as float64 arrays (steps + 1,): alpha, sigma, half log-SNR lambda and the times themselves; and its process."""

    alpha: np.ndarray
    sigma: np.ndarray
    lam: np.ndarray
    t: np.ndarray
    sde: SDE

    @classmethod
    def of(cls, sde: SDE, times: Tensor) -> "Schedule":
        return cls(sde.alpha(times).numpy(), sde.sigma(times).numpy(), sde.half_log_snr(times).numpy(), times.numpy(), sde)

    def time(self, lam: np.ndarray) -> np.ndarray:
        """The times at which the half log-SNR is lam."""
        return self.sde.time(torch.from_numpy(lam)).numpy()


@dataclass(frozen=True)
class Rule:
    """The coefficients of one step, newest m first; `correct` is empty without a corrector, whose `keep` may differ."""

    keep: float
    predict: Sequence[float]
    correct: Sequence[float] = ()
    noise: float = 0.0
    keep_corrected: float | None = None


def combine(keep: float, x: Tensor, weights: Sequence[float], history: Sequence[Tensor], reuse: bool) -> Tensor:
    """keep x + sum_j weights_j history_j; in the memory of x if it may be reused and autograd records nothing."""
    x = x.mul_(keep) if reuse and not torch.is_grad_enabled() else x.mul(keep)
    for weight, m in zip(weights, history, strict=False):
        x.add_(m, alpha=weight)
    return x


def run_rules(model: CountedModel, x: Tensor, times: Tensor, rules: Sequence[Rule], of_x: Sequence[float],
              of_eps: Sequence[float], noise: NoiseStream | None = None) -> Iterator[Tensor]:
    """Take the steps of `rules` with m = of_x x + of_eps eps, coefficients at each time, yielding every state."""
    history: list[Tensor] = []
    depth = max(max(len(rule.predict), len(rule.correct)) for rule in rules)
    before, last, z = x, None, None
    for i, (rule, t, a, b) in enumerate(zip(rules, times.unbind(), of_x, of_eps, strict=False)):
        eps = model.eps(x, t)
        m = eps if a == 0 and b == 1 else eps.mul(b).add_(x, alpha=a)
        history = [m, *history[:depth - 1]]
        if last is not None and last.correct:
            keep = last.keep if last.keep_corrected is None else last.keep_corrected
            x = combine(keep, before, last.correct, history, reuse=i > 1)
            if z is not None:
                x.add_(z, alpha=last.noise)
        before, last = x, rule
        x = combine(rule.keep, x, rule.predict, history, reuse=i > 0 and not rule.correct)
        z = noise.normal(x) if noise is not None and rule.noise else None
        if z is not None:
            x.add_(z, alpha=rule.noise)
        yield x


def prediction(kind: str, s: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """of_x and of_eps of the prediction: eps itself ("noise") or x_0 = (x - sigma eps) / alpha ("data")."""
    if kind == "noise":
        return np.zeros_like(s.alpha), np.ones_like(s.alpha)
    return 1 / s.alpha, -s.sigma / s.alpha


@dataclass(frozen=True, kw_only=True)
class MultistepSampler(GridSampler):
    """A deterministic rule on a grid; a subclass defines its rules and its prediction."""

    steps: int = option(20, STEPS)
    grid: str | Sequence[float] = option("logsnr", GRID)
    stochastic = False

    def times(self, model: ScoreModel) -> Tensor:
        times = super().times(model)
        order, steps = self.order_in(len(times) - 1), len(times) - 1
        if steps < order:
            raise ArgumentError(f"order {order} needs at least {order} steps, got {steps}", "order", "steps")
        return times

    def order_in(self, steps: int) -> int:
        """The order that its option sets for that many steps."""
        return int(self.order)

    @abstractmethod
    def rules(self, s: Schedule) -> list[Rule]:
        """One rule for each step of the grid, of which there are at least `order`."""

    @abstractmethod
    def predicts(self, s: Schedule) -> tuple[np.ndarray, np.ndarray]:
        """of_x and of_eps of the prediction at each time of the grid."""

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        """The rules, and of_x and of_eps of the prediction at each time; those of a grid are kept."""
        def make() -> Coefficients:
            s = Schedule.of(sde, times)
            of_x, of_eps = self.predicts(s)
            return self.rules(s), of_x.tolist(), of_eps.tolist()

        if sde.content is None:
            return make()
        settings = tuple(getattr(self, field.name) for field in fields(self) if field.name != "grid")      # times say it
        return _KEPT.of((type(self), settings, sde.content, times.numpy().tobytes()), make)

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        yield from run_rules(model, x, times, *self.coefficients(model.sde, times), noise)
