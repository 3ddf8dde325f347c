"""Diffusion of points: the forward process, the reverse process and its drift (Sohl-Dickstein et al. 2015, figure 1).

The drift is that of the reverse-time SDE, taken backwards in time, as a sampler moves:

    -(f(t) x - g(t)^2 score(x, t))

Its counterpart in the paper is f_mu(x, t) - x of a step of the chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.evaluation.explore.paths import Models, batches, carry, late_steps, of_batch, recording, shown_width
from scorefield.evaluation.metrics.sliced import directions, squared_w2
from scorefield.models import ScoreModel
from scorefield.models.score_model import evaluation_mode
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream, Seed
from scorefield.samplers import Sampler

CELLS = 17      # of the grid on which the drift is shown, each way


@dataclass(frozen=True)
class Diffusion:
    """Points at some times of a sampler's path, from the data's end to the noise's: the last time, and times in about
    geometric progression from .05 t_max to t_max, where a linear schedule shows most.

    times     (frames,), increasing; forward, reverse  (frames, n, 2)
    places    (CELLS^2, 2), a grid of the plane
    drift     (frames, CELLS^2, 2), per unit of time, as the sampler moves, at `places` times `shown_width`
    distance  (frames,), sliced Wasserstein distance between forward and reverse points
    nfe       evaluations of the sampler
    """

    times: Tensor
    forward: Tensor
    reverse: Tensor
    places: Tensor
    drift: Tensor
    distance: Tensor
    nfe: int


def swiss_roll(model: Models, sampler: Sampler, x0: Tensor, x_T: Tensor, seeds: Sequence[Seed], frames: int = 5,
               half_width: float = 2.5, batch_size: int = 2048, progress: bool = False) -> Diffusion:
    """The three rows of the figure, for data x_0 (m, 2) and samples that start from x_T (n, 2).

        swiss_roll(model, make_sampler("ddim", steps=100, eta=1.0), x0, prior_sample(model.sde, (2,), range(n)), range(n))

    seeds       one for each sample; the forward noise of x_0 has the same ones, in turn
    half_width  of the square around 0 on which the drift is shown, in units of the model

    Raises ArgumentError for events that are no points in the plane and for fewer than 2 frames.
    """
    if x_T.shape[1:] != (2,):
        raise ArgumentError(f"forward, reverse and drift are drawn of points in the plane, not of shape "
                            f"{tuple(x_T.shape[1:])}", "what")
    sampler = recording(sampler, 20 * frames)      # of an adaptive solver, to choose among
    first = of_batch(model, batches(len(x_T), batch_size)[0])
    sde, grid = first.sde, sampler.times(first)
    kept = late_steps(grid, frames)
    reverse = torch.stack([x_T] * len(kept))

    def keep(numbers: range, step: int, t: float, x: Tensor) -> None:
        if step in kept:
            reverse[kept.index(step), numbers.start:numbers.stop] = x

    _, nfe = carry(model, sampler, x_T, seeds, None, batch_size, progress, on_step=keep)
    times = grid[kept].flip(0)
    eps = NoiseStream([seeds[i % len(seeds)] for i in range(len(x0))]).normal(x0)
    forward = torch.stack([sde.perturb(x0, t, eps) for t in times])
    axis = torch.linspace(-half_width, half_width, CELLS, dtype=x0.dtype)
    places = torch.cartesian_prod(axis, axis).to(x0.device)
    own = of_batch(model, range(len(places)))
    with evaluation_mode(own), torch.no_grad():
        drift = torch.stack([_towards_data(own, places * shown_width(sde, t), t) for t in times.clamp(min=sde.t_min)])
    reverse = reverse.flip(0)
    distance = torch.stack([sliced_distance(a, b) for a, b in zip(forward, reverse, strict=True)])
    return Diffusion(times, forward, reverse, places, drift, distance, nfe)


def _towards_data(model: ScoreModel, x: Tensor, t: Tensor) -> Tensor:
    return -model.sde.reverse_drift(x, t, model.score(x, t))


def sliced_distance(x: Tensor, y: Tensor) -> Tensor:
    """The sliced Wasserstein distance SW_2 between sets (n, *event) and (m, *event), a float64 scalar (metrics)."""
    a, b = (z.detach().cpu().double().flatten(1) for z in (x, y))
    theta = directions(a.shape[1], 0)
    squares, _ = squared_w2((theta @ a.T).sort(1).values, (theta @ b.T).sort(1).values)
    return squares.mean().clamp(min=0).sqrt()
