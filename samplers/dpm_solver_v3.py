"""DPM-Solver-v3: an exponential multistep solver whose linear part, scaling and bias are measured on the model.

Zheng et al. 2023, "DPM-Solver-v3: Improved diffusion ODE solver with empirical model statistics", algorithm 1. In lambda =
log(alpha / sigma), with y = x / alpha, the flow is

    dy/dlambda = -l y - f,      f = (sigma eps - l x) / alpha      g = e^-S f - B      S = int s,  B = int e^-S b

for any l, s and b of lambda, an element of x each. With E = e^int(l + s) and A = e^-int(l), all integrals from lambda_i on,

    x_(i+1) = alpha_(i+1) A (x_i / alpha_i - int E (g + B) dlambda)

and g is replaced by the polynomial through its last `order` values; the corrector puts that at the predicted point in place
of the oldest. l makes the Jacobian of f small, and s and b the slope of g (Statistics says how; evaluation/statistics.py
measures them). l = 1, s = b = 0 is DPM-Solver++, and l = 0, s = -1, b = 0 is DPM-Solver, as exponential Adams methods.

Between the nodes where they were measured l, s and b are linear, and the integrals are exact to rounding; the authors' code
rounds the times of a grid to these nodes and takes the trapezoidal rule. Their pseudo-orders are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scorefield.models.score_model import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import read_arrays
from scorefield.numerics.kept import Kept
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.base import GRID, STEPS, CountedModel, GridSampler
from scorefield.samplers.multistep import Schedule

AGAIN = "measure them again with mode tune, sampler dpm_solver_v3"
LEGENDRE = np.polynomial.legendre.leggauss(6)      # places in [-1, 1] and weights, in each panel
PANEL = 0.25      # longest panel of the quadrature, in lambda
SLACK = 1e-6      # of lambda, beyond the nodes, that is rounding


@dataclass(frozen=True, eq=False, repr=False)
class Statistics:
    """l, s and b (n, *event) at increasing half log-SNR lam (n,), in float64, and the repr of their process.

    l  the mean of the diagonal of sigma d eps / dx, which makes the mean square of the Jacobian of f least
    s, b  the slope and the intercept of the regression of df/dlambda, along the flow, by f
    """

    lam: Tensor
    l: Tensor      # noqa: E741      # the paper's letter
    s: Tensor
    b: Tensor
    sde: str
    made_from: str = "{}"      # what they were measured on and how, as JSON

    def __post_init__(self) -> None:
        n, shape = len(self.lam), self.l.shape
        if n < 2 or shape[:1] != (n,) or self.s.shape != shape or self.b.shape != shape:
            raise ArgumentError("statistics need l, s and b of one shape, a value for each of two nodes or more",
                                "statistics")
        if not bool((self.lam.diff() > 0).all()) or not all(bool(v.isfinite().all()) for v in (self.l, self.s, self.b)):
            raise ArgumentError("statistics must be finite, at nodes that increase", "statistics")

    def __repr__(self) -> str:      # by which samples know what they were drawn with
        return f"Statistics({self.digest})"

    @classmethod
    def read(cls, path: str | Path) -> Statistics:
        """Those of a file that mode tune wrote; ArgumentError of "statistics" if there is none, or a damaged one."""
        try:
            found = read_arrays(Path(path))
            lam, l, s, b = (torch.from_numpy(np.asarray(found[name], np.float64)) for name in ("lam", "l", "s", "b"))  # noqa: E741
            return cls(lam, l, s, b, str(found["sde"]), str(found["made_from"]))
        except FileNotFoundError:
            raise ArgumentError(f"there are no statistics {path}; make them with mode tune, sampler dpm_solver_v3",
                                "statistics") from None
        except ArgumentError as error:
            raise ArgumentError(f"{path} is damaged ({error}); {AGAIN}", "statistics") from None
        except Exception as error:      # the parsers of damaged files raise errors of every type
            raise ArgumentError(f"{path} is damaged ({type(error).__name__}); {AGAIN}", "statistics") from None

    def stored(self) -> dict[str, np.ndarray]:
        """As arrays, for a file."""
        values = {name: getattr(self, name).cpu().numpy() for name in ("lam", "l", "s", "b")}
        return {**values, "sde": np.array(self.sde), "made_from": np.array(self.made_from)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers and the process."""
        sha = hashlib.sha256(self.sde.encode())
        for value in (self.lam, self.l, self.s, self.b):
            sha.update(np.ascontiguousarray(value.cpu().numpy()).tobytes())
        return sha.hexdigest()

    @cached_property
    def sums(self) -> tuple[Tensor, Tensor]:
        """The integrals of l and s from the first node to each, (n, *event)."""
        width = self._wide(self.lam.diff())
        return tuple(torch.cat([v.new_zeros(1, *v.shape[1:]), ((v[1:] + v[:-1]) / 2 * width).cumsum(0)])
                     for v in (self.l, self.s))      # type: ignore[return-value]

    def at(self, lam: Tensor) -> At:
        """Everything at lam (k,), each (k, *event)."""
        i = (torch.searchsorted(self.lam, lam, right=True) - 1).clamp(0, len(self.lam) - 2)
        width = self.lam[i + 1] - self.lam[i]
        place, wide = self._wide((lam - self.lam[i]) / width), self._wide(width)
        l, s, b = (v[i] + place * (v[i + 1] - v[i]) for v in (self.l, self.s, self.b))      # noqa: E741
        big_l, big_s = (sums[i] + wide * place * (v[i] + now) / 2
                        for sums, v, now in ((self.sums[0], self.l, l), (self.sums[1], self.s, s)))
        return At(l, b, big_l, big_s)

    def _wide(self, v: Tensor) -> Tensor:
        return v.view(-1, *[1] * (self.l.ndim - 1))


class At(NamedTuple):
    """l and b, and the integrals of l and s from the first node on, at some lambda."""

    l: Tensor      # noqa: E741
    b: Tensor
    sum_l: Tensor
    sum_s: Tensor


class Part(NamedTuple):
    """x' = keep x + offset + sum_j weights_j f_j of one step, each (*event); the newest f first."""

    keep: Tensor
    offset: Tensor
    weights: Sequence[Tensor]

    def like(self, x: Tensor) -> Part:
        """In the dtype and on the device of x."""
        return Part(self.keep.to(x), self.offset.to(x), [weight.to(x) for weight in self.weights])


class Step(NamedTuple):
    """l at the beginning of a step, and its predictor and corrector, if any."""

    l: Tensor      # noqa: E741
    predict: Part
    correct: Part | None


_KEPT: Kept[Sequence[Step]] = Kept(most=4)      # as large as some samples each


@dataclass(frozen=True, kw_only=True)
class DPMSolverV3(GridSampler):
    """DPM-Solver-v3 by statistics that were measured on the model: `DPMSolverV3.of(statistics, steps=8)`.

    From the command line, `statistics` are those of the run. Raises ArgumentError for a model of another SDE or of events of
    another shape, and for times that the statistics do not cover.
    """

    steps: int = option(20, STEPS)
    grid: str | Sequence[float] = option("logsnr", GRID)
    order: int = option(3, "how many values of g a polynomial goes through, 1 to 3")
    correct: bool = option(True, "improve each step with a corrector, which needs no extra evaluation")
    lower_order_final: bool = option(True, "lower orders in the last steps, as in the authors' code")
    statistics: str | None = option(None, "file of the statistics; by default that of the run, solvers/dpm_solver_v3.npz")
    stochastic = False

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 3:
            raise ArgumentError(f"order must lie between 1 and 3, got {self.order}", "order")
        if self.statistics is None:
            raise ArgumentError("sampler dpm_solver_v3 needs statistics of the model, which mode tune measures (sampler "
                                "dpm_solver_v3); give statistics", "statistics")
        object.__setattr__(self, "made", Statistics.read(self.statistics))

    @classmethod
    def of(cls, made: Statistics, **options: object) -> DPMSolverV3:
        """The sampler of statistics that are in no file."""
        sampler = object.__new__(cls)
        for name, field in cls.__dataclass_fields__.items():
            object.__setattr__(sampler, name, options.pop(name, field.default))
        if options:
            raise ArgumentError(f"sampler 'dpm_solver_v3' takes no {next(iter(options))!r}", next(iter(options)))
        if not 1 <= sampler.order <= 3:
            raise ArgumentError(f"order must lie between 1 and 3, got {sampler.order}", "order")
        object.__setattr__(sampler, "made", made)
        return sampler

    def times(self, model: ScoreModel) -> Tensor:
        made: Statistics = self.made      # type: ignore[attr-defined]
        if repr(model.sde) != made.sde:
            raise ArgumentError(f"the statistics were measured for {made.sde}, and the model has {model.sde}; {AGAIN}",
                                "statistics")
        times = super().times(model)
        lam = model.sde.half_log_snr(times)
        if float(lam[0]) < float(made.lam[0]) - SLACK or float(lam[-1]) > float(made.lam[-1]) + SLACK:
            low, high = model.sde.time(made.lam[[-1, 0]]).tolist()
            raise ArgumentError(f"the statistics cover times from {low:.6g} to {high:.6g}, and the grid goes from "
                                f"{float(times[0]):.6g} to {float(times[-1]):.6g}; {AGAIN}", "t_end", "grid")
        return times

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        made: Statistics = self.made      # type: ignore[attr-defined]
        if x.shape[1:] != made.l.shape[1:] and made.l[0].numel() != 1 and x.numel() > 1:
            raise ArgumentError(f"the statistics are of samples of shape {tuple(made.l.shape[1:])}, and these have "
                                f"{tuple(x.shape[1:])}; {AGAIN}", "statistics")
        s = Schedule.of(model.sde, times)
        key = (made.digest, self.order, self.correct, self.lower_order_final, times.numpy().tobytes())
        history: list[Tensor] = []
        before, last = x, None
        for i, step in enumerate(_KEPT.of(key, lambda: [*self.rules(s)])):
            step = Step(step.l.to(x), step.predict.like(x), None if step.correct is None else step.correct.like(x))
            f = (model.eps(x, times[i]) * float(s.sigma[i]) - step.l * x) / float(s.alpha[i])
            history = [f, *history[:self.order]]
            if last is not None and last.correct is not None:
                x = _combined(last.correct, before, history)
            before, last = x, step
            x = _combined(step.predict, x, history)
            yield x

    def rules(self, s: Schedule) -> Iterator[Step]:
        """The steps of a grid."""
        made: Statistics = self.made      # type: ignore[attr-defined]
        n = len(s.lam) - 1
        lam = torch.from_numpy(s.lam).clamp(made.lam[0], made.lam[-1])
        for i in range(n):
            order = min(self.order, i + 1, n - i if self.lower_order_final else n)
            nodes = [*range(i, i - order, -1)]
            integrals = _Integrals(made, lam, i, nodes[-1])
            predict = integrals.part(s, nodes)
            correct = integrals.part(s, [i + 1, *nodes[:-1]]) if self.correct and order > 1 and i < n - 1 else None
            yield Step(made.at(lam[i:i + 1]).l[0], predict, correct)


class _Integrals:
    """What a step from node i needs, by Gauss-Legendre quadrature in panels that end at the nodes of the statistics."""

    def __init__(self, made: Statistics, lam: Tensor, i: int, oldest: int):
        self.made, self.lam, self.i = made, lam, i
        self.here = made.at(lam[i:i + 1])
        self.points, self.weights, b_at = self._panels(lam[i], lam[i + 1])
        at = made.at(self.points)
        self.e = (at.sum_l - self.here.sum_l + at.sum_s - self.here.sum_s).exp()
        self.b = {i: torch.zeros_like(self.here.l[0]), i + 1: b_at[1]}
        self.of_b = (made._wide(self.weights) * self.e * b_at[0]).sum(0)
        for j in range(oldest, i):
            points, weights, _ = self._panels(lam[j], lam[i], bias=False)
            at = made.at(points)
            self.b[j] = -(made._wide(weights) * (self.here.sum_s - at.sum_s).exp() * at.b).sum(0)

    def part(self, s: Schedule, nodes: Sequence[int]) -> Part:
        """The step by the polynomial through g at these nodes, newest f first."""
        i = self.i
        end = self.made.at(self.lam[i + 1:i + 2])
        scale = (self.here.sum_l - end.sum_l).exp()[0] * float(s.alpha[i + 1])
        weights, offset = {}, self.of_b
        for j in nodes:
            lagrange = torch.ones_like(self.points)
            for k in nodes:
                if k != j:
                    lagrange = lagrange * (self.points - self.lam[k]) / (self.lam[j] - self.lam[k])
            weight = (self.made._wide(self.weights * lagrange) * self.e).sum(0)
            at = self.made.at(self.lam[j:j + 1])
            weights[j] = -scale * weight * (self.here.sum_s - at.sum_s).exp()[0]
            offset = offset - weight * self.b[j]
        return Part(scale / float(s.alpha[i]), -scale * offset, [weights[j] for j in sorted(nodes, reverse=True)])

    def _panels(self, start: Tensor, end: Tensor, bias: bool = True) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Points and weights (k,) over [start, end]; and B at the points and at the end, if asked for."""
        inner = self.made.lam[(self.made.lam > start) & (self.made.lam < end)]
        ends = torch.cat([start[None], inner, end[None]])
        parts = [torch.linspace(float(a), float(b), 2 + int((b - a) / PANEL), dtype=torch.float64)[:-1]
                 for a, b in zip(ends, ends[1:], strict=False)]
        ends = torch.cat([*parts, end[None]])
        places, weight = (torch.from_numpy(v) for v in LEGENDRE)
        half = ends.diff()[:, None] / 2
        points, weights = ((ends[:-1, None] + half * (1 + places)).flatten(), (half * weight).flatten())
        if not bias:
            return points, weights, (points, points)
        at = self.made.at(points)
        rate = ((self.here.sum_s - at.sum_s).exp() * at.b).unflatten(0, (len(half), -1))
        inside = torch.einsum("pq,nq...->np...", _running(), rate) * half.view(-1, *[1] * (rate.ndim - 1))
        whole = torch.einsum("q,nq...->n...", weight, rate) * self.made._wide(half[:, 0])
        before = torch.cat([whole.new_zeros(1, *whole.shape[1:]), whole.cumsum(0)])
        return points, weights, ((before[:-1, None] + inside).flatten(0, 1), before[-1])


def _running() -> Tensor:
    """(p, q): the integral over [-1, places_p] of the Lagrange polynomial of places_q."""
    places, _ = LEGENDRE
    columns = []
    for q in range(len(places)):
        polynomial = np.polynomial.Polynomial.fromroots(np.delete(places, q))
        integral = (polynomial / polynomial(places[q])).integ(lbnd=-1)
        columns.append(integral(places))
    return torch.from_numpy(np.stack(columns, 1))


def _combined(part: Part, x: Tensor, history: Sequence[Tensor]) -> Tensor:
    x = torch.addcmul(part.offset, part.keep, x)
    for weight, f in zip(part.weights, history, strict=False):
        x = x.addcmul(weight, f)
    return x
