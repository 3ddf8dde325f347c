"""Progressive generation (Ho et al. 2020, section 4.3 and figure 6): the x_0 predicted at each time of a sampler's path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.evaluation.explore.paths import Models, batches, carry, of_batch, recording, spread_steps
from scorefield.models.score_model import evaluation_mode
from scorefield.numerics.noise import Seed
from scorefield.samplers import Sampler


@dataclass(frozen=True)
class Film:
    """A path from noise to data, seen at some of its times.

    times        (frames,), decreasing
    states       (frames, n, *event): x_t
    predictions  (frames, n, *event): E[x_0 given x_t] by the model
    x            (n, *event): the samples
    nfe          evaluations of the sampler; the film's own predictions come on top
    """

    times: Tensor
    states: Tensor
    predictions: Tensor
    x: Tensor
    nfe: int


def progressive(model: Models, sampler: Sampler, x_T: Tensor, seeds: Sequence[Seed] | None = None, frames: int = 11,
                batch_size: int = 128, progress: bool = False) -> Film:
    """The film of samples that start from x_T (n, *event), at equally spaced steps of the sampler, both ends included.

        film = progressive(model, make_sampler("auto", steps=20), prior_sample(model.sde, (1, 8, 8), range(4)))

    model  or a function from the numbers of samples to their score model (evaluation/draw.py)

    At t = 0, where samplers such as edm end, the prediction is the state itself. Raises ArgumentError for fewer than 2
    frames.
    """
    sampler = recording(sampler, frames)
    first = of_batch(model, batches(len(x_T), batch_size)[0])
    kept = spread_steps(sampler, first, frames)
    times = sampler.times(first)
    states = torch.stack([x_T] * len(kept))
    predictions = torch.empty_like(states)

    def keep(numbers: range, step: int, t: float, x: Tensor) -> None:
        if step in kept:
            at, rows = kept.index(step), slice(numbers.start, numbers.stop)
            states[at, rows] = x
            predictions[at, rows] = x if t == 0 else of_batch(model, numbers).x0(x, times[step])

    with torch.no_grad():
        for numbers in batches(len(x_T), batch_size):
            own = of_batch(model, numbers)
            with evaluation_mode(own):
                keep(numbers, 0, float(times[0]), x_T[numbers.start:numbers.stop])
    x, nfe = carry(model, sampler, x_T, seeds, None, batch_size, progress, on_step=keep)
    return Film(times[kept], states, predictions, x, nfe)
