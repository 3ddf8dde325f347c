"""Measure the statistics of a model that DPM-Solver-v3 needs (samplers/dpm_solver_v3.py).

Zheng et al. 2023, section 3.2, on the model's own flow: some starts are carried along it by a dense run of `auto`, on nodes
uniform in lambda. With y = x / alpha, u = sigma eps / alpha and f = u - l y, at each node and for each element of x,

    l = E[diag(sigma d eps / dx)]      s = cov(f', f) / var(f)      b = E[f'] - s E[f]      f' = u' + l u - l' y

since y' = -u. The diagonal is v * sigma (eps(x + h v) - eps(x - h v)) / 2h for random signs v, so no gradients are needed,
and u' comes from differences of eps along the flow. The authors take noisy data in place of states of the flow.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scorefield.evaluation.tune import Models, Starts
from scorefield.models import ScoreModel
from scorefield.models.score_model import check_flow, evaluation_mode
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import PROBES, NoiseStream
from scorefield.samplers import sample_seeds
from scorefield.samplers.adams import ExponentialAdams
from scorefield.samplers.dpm_solver_v3 import Statistics
from scorefield.samplers.multistep import Schedule

STARTS, DENSE = 256, 64
STEEPEST = 4.0      # |s| at most; it is 1 where only noise is left, and -2 at the data
SHIFT = 0.01      # h / sigma, of the differences that give the diagonal
MOMENTS = ("diagonal", "eps", "x", "slope", "eps eps", "eps x", "x x", "slope eps", "slope x")


@torch.no_grad()
def measure(model: ScoreModel | Models, shape: tuple[int, ...], starts: int = STARTS, dense: int = DENSE, seed: int = 0,
            batch_size: int = 128, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
            ) -> tuple[Statistics, int]:
    """The statistics of a model, and how many evaluations of one sample they cost: starts (4 dense + 3).

        statistics, evaluations = measure(model, (1, 8, 8))
        x = DPMSolverV3.of(statistics, steps=8)(model, x_T).x

    model   the score model, or a function from the numbers of samples to theirs, as in `draw`
    shape   of one sample as the model sees it
    starts  how many runs
    dense   steps of these runs, whose nodes are those of the statistics

    Raises ArgumentError for a student and for too few starts and steps, ArithmeticError if the run is not finite.
    """
    if starts < 16:
        raise ArgumentError(f"tuning needs at least 16 starts, got {starts}", "starts")
    if dense < 4:
        raise ArgumentError(f"dense must be at least 4, got {dense}", "dense")
    models: Models = (lambda batch: model) if isinstance(model, ScoreModel) else model
    first = models(range(min(starts, batch_size)))
    check_flow(first, "tuning")
    auto = ExponentialAdams(order=3, steps=dense, grid="logsnr")
    times, evaluations = auto.times(first), 0
    lam, sums = Schedule.of(first.sde, times).lam, None
    with evaluation_mode(first):
        runs = Starts(models, shape, starts, seed, batch_size, device, dtype)
        for part, own in zip(runs.parts, runs.models, strict=True):
            x_T, seeds = runs.x_T[part.start:part.stop], sample_seeds(seed, part.start, part.stop)
            run = auto(own, x_T, trajectory=True)
            if not bool(run.x.isfinite().all()):
                raise ArithmeticError(f"the dense run of {dense} steps is not finite, so nothing can be measured on it")
            assert run.trajectory is not None
            found, spent = _moments(own, run.trajectory, times, lam[1] - lam[0], NoiseStream(seeds, PROBES))
            evaluations += (run.nfe + spent) * len(part)
            sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
    assert sums is not None
    means = dict(zip(MOMENTS, (total / starts for total in sums), strict=True))
    nodes = torch.from_numpy(lam)
    return Statistics(nodes, *_fitted(means, first.sde.alpha(times), nodes), repr(first.sde)), evaluations


def _moments(model: ScoreModel, states: Tensor, times: Tensor, h: float, noise: NoiseStream) -> tuple[list[Tensor], int]:
    """The sums over the states (nodes, batch, *event) of MOMENTS, (nodes, *event) each in float64, and evaluations."""
    predicted, diagonals, spent = [], [], 0
    for x, t in zip(states, times, strict=True):
        sigma = float(model.sde.sigma(t))
        v = noise.rademacher(x)
        ahead, behind = (model.eps(x + sign * SHIFT * sigma * v, t) for sign in (1, -1))
        diagonals.append(((ahead - behind) * v).double().div_(2 * SHIFT).sum(0))
        predicted.append(model.eps(x, t))
        spent += 3 * model.evaluations_at(t)
    eps, x = torch.stack(predicted).double(), states.double()
    slope = _slope(eps, h)
    pairs = ((eps, eps), (eps, x), (x, x), (slope, eps), (slope, x))
    return [torch.stack(diagonals), *(v.sum(1) for v in (eps, x, slope)), *((a * b).sum(1) for a, b in pairs)], spent


def _slope(values: Tensor, h: float) -> Tensor:
    """d values / d lambda at equally spaced nodes (the first dimension), of second order."""
    inner = (values[2:] - values[:-2]) / (2 * h)
    first, last = -3 * values[0] + 4 * values[1] - values[2], 3 * values[-1] - 4 * values[-2] + values[-3]
    return torch.cat([first[None] / (2 * h), inner, last[None] / (2 * h)])


def _fitted(mean: Mapping[str, Tensor], alpha: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """l, s and b (nodes, *event) from the means of MOMENTS."""
    def wide(v: Tensor) -> Tensor:
        return v.to(mean["x"].device).view(-1, *[1] * (mean["x"].ndim - 1))

    rate, scale = wide((-lam).exp()), wide(1 / alpha)
    l = mean["diagonal"]      # noqa: E741      # the paper's letter
    l_slope = _slope(l, float(lam[1] - lam[0]))
    # f = rate eps - l scale x,  f' = rate slope + (l - 1) rate eps - l_slope scale x
    of_f = {"eps": rate, "x": -l * scale}
    of_slope = {"slope": rate, "eps": (l - 1) * rate, "x": -l_slope * scale}

    def covariance(a: str, b: str) -> Tensor:
        both = mean[f"{a} {b}"] if f"{a} {b}" in mean else mean[f"{b} {a}"]
        return both - mean[a] * mean[b]

    zero = torch.zeros_like(l)
    variance = sum((of_f[a] * of_f[b] * covariance(a, b) for a in of_f for b in of_f), zero)
    together = sum((of_slope[a] * of_f[b] * covariance(a, b) for a in of_slope for b in of_f), zero)
    first, second = (sum((weight * mean[name] for name, weight in of.items()), zero) for of in (of_f, of_slope))
    s = together / variance.clamp(min=torch.finfo(torch.float64).tiny)
    s = s.clamp(-STEEPEST, STEEPEST)      # where f is 0 but for noise, as of Gaussian data, its slope may be anything
    return l.cpu(), s.cpu(), (second - s * first).cpu()
