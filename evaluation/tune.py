"""Fit the grid and the coefficients of sampler "auto" to one model and one number of steps, without gradients.

1. A dense run of `auto` from some starts: the states y and predictions m at its nodes (adams.py).
2. The grid. The residual of an Adams step through nodes a, b, c of the dense run is y_c - y_b - sum w m, with its known y
   and m. The nodes with the least sum of residuals, over the starts, are found by dynamic programming over pairs of nodes.
   Two more grids are that of `auto` and the one halfway between: the sum of residuals is not the error.
3. The coefficients. On each grid, step by step, from the states that the solver itself has reached, corrections of the
   predictor's and then of the corrector's coefficients lead as near as may be to the dense run's next state. The distances
   of the starts are weighed by 1 / (1 + (r / s)^2), s their median or some times that: in plain least squares the few starts
   that change branches decide.
4. Starts that were held back choose between what was fitted and `auto`, whose place is lost only if median and RMS of the
   distance to the dense run's end are less.

Nearest published: DPM-Solver-v3 (Zheng et al. 2023) fits coefficients of its prediction from statistics of a model; grids by
optimisation of residuals are in Xue et al. 2024 ("Accelerating Diffusion Sampling with Optimized Time Steps"), and learned
coefficients of multistep rules in Bespoke and in S4S (Frankel et al. 2025), by gradients through the solver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.models import ScoreModel
from scorefield.models.score_model import check_flow, evaluation_mode
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.quadrature import exponential_moments
from scorefield.samplers import prior_sample, sample_seeds
from scorefield.samplers.adams import ExponentialAdams
from scorefield.samplers.multistep import Rule, Schedule
from scorefield.samplers.tuned import Solver

STARTS, HELD, DENSE, LEAST = 64, 24, 64, 2
ORDER = 2              # of the predictor whose residuals choose the grid, as that of auto
DEPTH = 3              # values of m in a fitted rule
ELEMENTS = 256         # of a sample, at most, of which residuals are tabulated
ROUNDS = 12            # of robust least squares
FITS = ((1e-4, 1.0), (1e-3, 8.0))      # (ridge, spread) of robust least squares, each of which is tried on each grid
MARGIN, FLOOR = 0.99, 100      # a candidate wins by at least 1 %, and by more than so many roundings
Models = Callable[[range], ScoreModel]


@dataclass(frozen=True)
class Tuning:
    """A fitted solver and what it has cost.

    figures      for each candidate the median and the RMS of the distance to the dense run's end, over the starts that were
                 held back, and over all
    evaluations  of the network, of one sample each
    """

    solver: Solver
    chosen: str
    figures: Mapping[str, Mapping[str, float]]
    evaluations: int


class Starts:
    """States that begin at the prior, and the predictions m of their models, which it counts.

    models  of the numbers of samples their score model
    """

    def __init__(self, models: Models, shape: tuple[int, ...], n: int, seed: int, batch_size: int, device: Any,
                 dtype: torch.dtype):
        self.parts = [range(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]
        self.models = [models(part) for part in self.parts]
        self.sde, self.evaluations = self.models[0].sde, 0
        self.x_T = prior_sample(self.sde, shape, sample_seeds(seed, 0, n), device, dtype)

    def m(self, x: Tensor, t: Tensor, of_x: float, of_eps: float) -> Tensor:
        """of_x x + of_eps eps(x, t), of x's shape."""
        eps = []
        for part, model in zip(self.parts, self.models, strict=True):
            self.evaluations += len(part) * model.evaluations_at(t)
            eps.append(model.eps(x[part.start:part.stop], t))
        return torch.cat(eps).mul(of_eps).add_(x, alpha=of_x)


class Dense:
    """The dense run: `y` and `m` (nodes, starts, elements) in float64 at `times`, its half log-SNR `lam`, and its `end`."""

    def __init__(self, starts: Starts, steps: int, data_std: float):
        self.starts, self.data_std = starts, data_std
        auto = ExponentialAdams(order=3, steps=steps, data_std=data_std)
        self.times = auto.times(starts.models[0])
        walk = Walk(starts, self.times, data_std, order=3)
        for _ in range(steps):
            walk.predict(walk.rule.keep, walk.rule.predict)
            if walk.rule_before.correct:
                walk.correct(walk.rule_before.keep, walk.rule_before.correct)
        self.lam, self.end = walk.schedule.lam, walk.x
        self.y = torch.stack([flat(x) / scale for x, scale in zip(walk.states, walk.scale, strict=True)])
        walk.value()      # at the end, for the slope there
        self.m = torch.stack([flat(m) for m in walk.values])

    def at(self, times: Tensor) -> Tensor:
        """y at times (n,), (n, starts, elements): Hermite's cubic in lambda, since dy/dlambda is known at the nodes."""
        lam = Schedule.of(self.starts.sde, times).lam.clip(self.lam[0], self.lam[-1])
        first = np.searchsorted(self.lam, lam, side="right").clip(1, len(self.lam) - 1) - 1
        h, place = self.lam[first + 1] - self.lam[first], (lam - self.lam[first]) / (self.lam[first + 1] - self.lam[first])
        rate = np.exp(-self.lam) / (self.data_std**2 + np.exp(-2 * self.lam))

        def weigh(weights: np.ndarray, values: Tensor) -> Tensor:
            return torch.as_tensor(weights, device=values.device)[:, None, None] * values

        late = place**2 * (3 - 2 * place)
        return (weigh(1 - late, self.y[first]) + weigh(late, self.y[first + 1])
                + weigh(h * rate[first] * place * (1 - place)**2, self.m[first])
                + weigh(h * rate[first + 1] * place**2 * (place - 1), self.m[first + 1]))

    def grid(self, steps: int) -> list[int]:
        """The nodes, from the first to the last, of the grid with the least sum of residuals."""
        corrected, predicted, first = self.residuals
        cost = np.full(predicted.shape, np.inf)      # of the best way to the pair of the last two nodes
        cost[0] = first
        ways = []
        for _ in range(steps - 2):
            total = cost[:, :, None] + corrected
            ways.append(total.argmin(0))
            cost = total.min(0)
        a, b = np.unravel_index((cost + predicted).argmin(), cost.shape)
        nodes = [len(self.lam) - 1, int(b), int(a)]
        for way in reversed(ways):
            nodes.append(int(way[nodes[-1], nodes[-2]]))
        return nodes[::-1]

    @cached_property
    def residuals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mean over starts of the size of a step's residual: [a, b, c] of the corrector from b to c after a, [a, b] of
        the predictor from b to the last node after a, and [c] of the corrector from the first node to c.
        """
        n, lam = len(self.lam), self.lam
        stride = -(-self.y.shape[2] // ELEMENTS)
        y, m = self.y[..., ::stride], self.m[..., ::stride]
        corrected, predicted, first = np.full((n, n, n), np.inf), np.full((n, n), np.inf), np.full(n, np.inf)

        def size(residual: Tensor) -> np.ndarray:
            return residual.square().mean(-1).sqrt().mean(-1).cpu().numpy()

        def weigh(weights: np.ndarray, values: Tensor) -> Tensor:
            return torch.as_tensor(weights, device=y.device)[..., None, None] * values

        for b in range(n - 1):
            for c in range(b + 1, n):
                one, linear, square = exponential_moments(lam[b], lam[c], 3, self.data_std)
                ahead, step = lam[c] - lam[b], y[c] - y[b]
                if b == 0:
                    of_c = linear / ahead
                    first[c] = size(step - of_c * m[c] - (one - of_c) * m[b])
                    continue
                behind = lam[:b] - lam[b]
                of_a, of_c = ((square - ahead * linear) / (behind * (behind - ahead)),
                              (square - behind * linear) / (ahead * (ahead - behind)))
                corrected[:b, b, c] = size(step - weigh(of_c, m[c]) - weigh(one - of_a - of_c, m[b]) - weigh(of_a, m[:b]))
                if c == n - 1:
                    of_a = linear / behind
                    predicted[:b, b] = size(step - weigh(one - of_a, m[b]) - weigh(of_a, m[:b]))
        return corrected, predicted, first


class Walk:
    """The steps of a rule on a grid, one after the other, that may be changed: `x` the state now, `values` of m so far."""

    def __init__(self, starts: Starts, times: Tensor, data_std: float, order: int = ORDER):
        auto = ExponentialAdams(order=order, data_std=data_std)
        self.starts, self.times, self.schedule = starts, times, Schedule.of(starts.sde, times)
        self.rules, (self.of_x, self.of_eps) = auto.rules(self.schedule), auto.predicts(self.schedule)
        self.scale = self.schedule.alpha * np.sqrt(data_std**2 + np.exp(-2 * self.schedule.lam))
        self.x, self.states, self.values = starts.x_T, [starts.x_T], list[Tensor]()
        self.value()

    @property
    def step(self) -> int:
        """How many steps have been predicted."""
        return len(self.states) - 1

    @property
    def rule(self) -> Rule:
        """Of the next step."""
        return self.rules[self.step]

    @property
    def rule_before(self) -> Rule:
        """Of the step that has been predicted."""
        return self.rules[self.step - 1]

    def history(self, n: int) -> list[Tensor]:
        """The last n values of m, newest first."""
        return self.values[::-1][:n]

    def predict(self, keep: float, weights: Sequence[float]) -> None:
        """A step of the predictor, and m there unless it is the last."""
        self.x = keep * self.x + sum(w * m for w, m in zip(weights, self.history(len(weights)), strict=True))
        self.states.append(self.x)
        if self.step < len(self.rules):
            self.value()

    def correct(self, keep: float, weights: Sequence[float]) -> None:
        """The corrector of the step that has been predicted."""
        before = self.states[-2]
        self.x = keep * before + sum(w * m for w, m in zip(weights, self.history(len(weights)), strict=True))
        self.states[-1] = self.x

    def value(self) -> None:
        """m at the state now."""
        i = self.step
        self.values.append(self.starts.m(self.x, self.times[i], float(self.of_x[i]), float(self.of_eps[i])))


@torch.no_grad()
def tune(model: ScoreModel | Models, shape: tuple[int, ...], steps: Sequence[int] = (8,), starts: int = STARTS,
         dense: int = DENSE, seed: int = 0, batch_size: int = 128, device: torch.device | str = "cpu",
         dtype: torch.dtype = torch.float32, data_std: float = 1.0) -> list[Tuning]:
    """Solvers for a model, one for each number of steps, in their order, from one dense run.

        tuning, = tune(model, (1, 8, 8), steps=[8])
        x = Tuned.of(tuning.solver)(model, x_T).x

    model   the score model, or a function from the numbers of samples to theirs, as in `draw`
    shape   of one sample as the model sees it
    starts  how many runs; HELD of 64 of them, and as large a share of others, are held back
    dense   steps of the dense run

    Raises ArgumentError for a student, for numbers that are too small or too large, and for an SDE that differs by sample.
    """
    for number in steps:
        if not LEAST <= number <= dense // 2:
            raise ArgumentError(f"steps must lie in {LEAST} .. {dense // 2}, half of those of the dense run, got {number}",
                                "steps", "dense")
    if starts < 16:
        raise ArgumentError(f"tuning needs at least 16 starts, got {starts}", "starts")
    models: Models = (lambda batch: model) if isinstance(model, ScoreModel) else model
    first = models(range(min(starts, batch_size)))
    check_flow(first, "tuning")
    with evaluation_mode(first):
        all_starts = Starts(models, shape, starts, seed, batch_size, device, dtype)
        run = Dense(all_starts, dense, data_std)
        if not bool(run.end.isfinite().all()):
            raise ArithmeticError(f"the dense run of {dense} steps is not finite, so nothing can be fitted to it")
        spent, results = all_starts.evaluations, []
        for number in steps:
            before = all_starts.evaluations
            result = _tuned(run, number)
            results.append(replace(result, evaluations=spent + all_starts.evaluations - before))
    return results


def _tuned(run: Dense, steps: int) -> Tuning:
    """The best candidate of so many steps, on the starts that were held back."""
    starts = run.starts
    held = len(starts.x_T) * HELD // STARTS
    auto = ExponentialAdams(steps=steps, data_std=run.data_std).times(starts.models[0])
    nodes = run.grid(steps)
    grids = {"auto": auto, "least residuals": run.times[nodes], "between": _between(starts.sde, auto, run.times[nodes])}
    tries: dict[str, tuple[Tensor, Fit | None]] = {"auto": (auto, None)}
    tries |= {f"grid {name}, ridge {ridge:g}, spread {spread:g}": (
        times, Fit(run.at(times), len(starts.x_T) - held, ridge, spread))
        for name, times in grids.items() for ridge, spread in FITS}
    solvers, figures, errors = {}, {}, {}
    for name, (times, fit) in tries.items():
        walk = Walk(starts, times, run.data_std)
        rules = _walked(walk, fit)
        error = flat(walk.x - run.end).square().mean(1).sqrt()
        errors[name] = [float(of(part)) for part in (error[-held:], error) for of in (Tensor.median, _rms)]
        figures[name] = dict(zip(("median", "rms", "median of all", "rms of all"), errors[name], strict=True))
        solvers[name] = Solver(times.tolist(), rules, repr(starts.sde), run.data_std)

    floor = FLOOR * torch.finfo(starts.x_T.dtype).eps * float(flat(run.end).square().mean().sqrt())

    def wins(name: str) -> bool:
        return all(mine < MARGIN * theirs - floor for mine, theirs in zip(errors[name], errors["auto"], strict=True))

    chosen = min([name for name in tries if wins(name)], key=lambda name: errors[name][0] * errors[name][1], default="auto")
    return Tuning(solvers[chosen], chosen, figures, 0)


def _between(sde: Any, a: Tensor, b: Tensor) -> Tensor:
    """The grid halfway between two, in asinh(lambda)."""
    lam = torch.stack([sde.half_log_snr(a), sde.half_log_snr(b)]).asinh().mean(0).sinh()
    times = sde.time(lam)
    times[0], times[-1] = a[0], a[-1]
    return times


@dataclass(frozen=True)
class Fit:
    """To what rules are fitted, and how: y (steps + 1, starts, elements), the first `n` starts, and the arguments of
    `robust_least_squares`.
    """

    reference: Tensor
    n: int
    ridge: float
    spread: float

    def improved(self, walk: Walk, i: int, before: Tensor, keep: float, weights: Sequence[float]
                 ) -> tuple[float, list[float]]:
        """keep and weights with the corrections by which a step from the state `before` comes nearest to y at node i."""
        history = walk.history(max(DEPTH, len(weights)))
        padded = [*weights, *[0.0] * (len(history) - len(weights))]
        reached = flat(keep * before + sum(w * m for w, m in zip(padded, history, strict=True))) / walk.scale[i]
        features = torch.stack([flat(before) / walk.scale[i - 1], *map(flat, history)], -1)
        missed = self.reference[i] - reached
        change = (robust_least_squares(features[:self.n], missed[:self.n], self.ridge, self.spread) * walk.scale[i]).tolist()
        return keep + change[0] / walk.scale[i - 1], [w + d for w, d in zip(padded, change[1:], strict=True)]


def _walked(walk: Walk, fit: Fit | None) -> list[Rule]:
    """Walk to the end, by rules that are fitted on the way if asked; returns the rules that were taken."""
    taken: list[Rule] = []
    for i, rule in enumerate(walk.rules, start=1):
        before, keep, predict = walk.x, rule.keep, [*rule.predict]
        if fit is not None:
            keep, predict = fit.improved(walk, i, before, rule.keep, rule.predict)
        walk.predict(keep, predict)
        keep_corrected, correct = rule.keep, [*rule.correct]
        if correct:
            if fit is not None:
                keep_corrected, correct = fit.improved(walk, i, before, rule.keep, rule.correct)
            walk.correct(keep_corrected, correct)
        taken.append(Rule(keep, predict, correct, keep_corrected=keep_corrected))
    return taken


def robust_least_squares(features: Tensor, target: Tensor, ridge: float, spread: float = 1.0) -> Tensor:
    """d (p,) that brings features (n, D, p) d near to target (n, D), where row n counts 1 / (1 + (r_n / s)^2), r_n being the
    size of its residual and s their median times `spread`, by iterated least squares.

    ridge  on d^2, beside the features' mean squares
    """
    gram = torch.einsum("ndp,ndq->npq", features, features)
    moment = torch.einsum("ndp,nd->np", features, target)
    size = gram.mean(0).diagonal().sqrt().clamp(min=1e-300)
    weight, d = torch.ones_like(target[:, 0]), torch.zeros_like(size)
    penalty = ridge * torch.eye(len(size), dtype=size.dtype, device=size.device)
    for _ in range(ROUNDS):
        share = weight / weight.sum()
        left = torch.einsum("n,npq->pq", share, gram) / size[:, None] / size
        d = torch.linalg.solve(left + penalty, (share @ moment) / size) / size
        residual = (target - features @ d).square().mean(1).sqrt()
        weight = 1 / (1 + (residual / (spread * residual.median()).clamp(min=1e-300)).square())
    return d


def flat(x: Tensor) -> Tensor:
    """x (batch, *event) as float64 (batch, elements)."""
    return x.flatten(1).double()


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
