"""Interpolation of two examples at time t (Ho et al. 2020, section 4.4, figures 8 and 9).

    x_t = alpha x_0 + sigma eps,  x_t' = alpha x_0' + sigma eps,  (1 - lambda) x_t + lambda x_t' denoised from t to the data

with one eps for both. At t = 0 that is the mixture of the examples themselves; the larger t is, the coarser is what stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.evaluation.explore.paths import Models, carry, of_batch, on_chain
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream, Seed
from scorefield.samplers import Sampler


@dataclass(frozen=True)
class Interpolation:
    """times (T,) as they were used; weights (W,), of the second example; x (T, W, *event); nfe of a sample at each time."""

    times: Tensor
    weights: Tensor
    x: Tensor
    nfe: list[int]


def interpolate(model: Models, sampler: Sampler, first: Tensor, second: Tensor, times: Sequence[float], points: int = 11,
                seed: Seed = 0, batch_size: int = 128, progress: bool = False) -> Interpolation:
    """The way from one example (*event) to another, through time t, for each of several t.

        interpolate(model, make_sampler("auto", steps=20), x0[0], x0[1], times=[0.25, 0.5, 1.0])

    times   0, or from above the sampler's last time up to t_max; those of a chain move to its nearest index
    points  how many weights, equally spaced from 0 to 1
    seed    of eps, and of the noise of stochastic samplers, which is the same for every weight and time

    Raises ArgumentError for times that cannot be and for fewer than 2 points.
    """
    if points < 2:
        raise ArgumentError(f"an interpolation needs at least 2 points, got {points}", "frames")
    sde, weights = of_batch(model, range(1)).sde, torch.linspace(0, 1, points, dtype=torch.float64)
    used, rows, nfe = on_chain(sde, times), [], []
    if not used:
        raise ArgumentError("an interpolation needs at least one time", "times")
    ends = torch.stack([first, second])
    eps = NoiseStream([seed]).normal(first[None])
    for t in used:
        if not 0 <= t <= sde.t_max:
            raise ArgumentError(f"times must lie in 0 .. {sde.t_max:g}, got {t:g}", "times")
        a, b = ends if t == 0 else sde.perturb(ends, t, eps.expand_as(ends))
        mixed = torch.stack([torch.lerp(a, b, float(weight)) for weight in weights])
        x, evaluations = (mixed, 0) if t == 0 else carry(model, sampler, mixed, [seed] * points, t, batch_size, progress)
        rows.append(x)
        nfe.append(evaluations)
    return Interpolation(torch.tensor(used, dtype=torch.float64), weights, torch.stack(rows), nfe)
