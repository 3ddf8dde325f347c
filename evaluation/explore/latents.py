"""The latents of deterministic samplers (Song, Meng and Ermon 2021, "DDIM"): slerp between them, and inversion.

Spherical interpolation (their section 5.3, figure 6 and appendix D.5) keeps the norm that Gaussian latents have:

    sin((1 - a) theta) / sin(theta) x_T + sin(a theta) / sin(theta) x_T',        theta the angle between x_T and x_T'

Inversion (section 5.4, table 2) takes the sampler's steps backwards, from data to latent, and decodes again. The error is
that of the steps alone, and falls as they grow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scorefield.evaluation.explore.paths import Models, batches, carry, of_batch
from scorefield.models import ScoreModel
from scorefield.models.score_model import evaluation_mode
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import DDIM, Euler, Heun, ProbabilityFlow, RungeKutta4, Sampler, slerp
from scorefield.samplers.base import CountedModel

INVERTIBLE = {"ddim": DDIM, "euler": Euler, "heun": Heun, "rk4": RungeKutta4, "ode": ProbabilityFlow}


@dataclass(frozen=True)
class Slerp:
    """weights (W,) of the second latent; latents and x (pairs, W, *event); nfe of a sample."""

    weights: Tensor
    latents: Tensor
    x: Tensor
    nfe: int


@dataclass(frozen=True)
class Round:
    """Data encoded and decoded with one number of steps.

    latents, x  (n, *event)
    error       (n,), mean square of the difference to the data, in units of the model
    nfe         evaluations of both ways
    """

    latents: Tensor
    x: Tensor
    error: Tensor
    nfe: int


def slerp_samples(model: Models, sampler: Sampler, first: Tensor, second: Tensor, points: int = 11, batch_size: int = 128,
                  progress: bool = False) -> Slerp:
    """Samples along the great circle from latents `first` to latents `second` (pairs, *event), both at t_max.

        slerp_samples(model, make_sampler("ddim", steps=50), x_T[:4], x_T[4:])

    Raises ArgumentError for a sampler that draws noise, whose samples are no function of the latent, and for fewer than 2
    points.
    """
    _refuse_noise(sampler)
    if points < 2:
        raise ArgumentError(f"an interpolation needs at least 2 points, got {points}", "frames")
    weights = torch.linspace(0, 1, points, dtype=torch.float64)
    latents = torch.stack([slerp(first, second, float(weight)) for weight in weights], 1)
    x, nfe = carry(model, sampler, latents.flatten(0, 1), None, None, batch_size, progress)
    return Slerp(weights, latents, x.reshape(latents.shape), nfe)


def invert(model: ScoreModel, sampler: Sampler, x: Tensor) -> tuple[Tensor, int]:
    """The latents at t_max of x (n, *event) at the sampler's last time, and the evaluations: its steps, taken backwards.

    For ddim with eta 0 (`samplers.ddim_invert`), and euler, heun, rk4 and ode on the probability flow; ArgumentError for
    others.
    """
    check_invertible(sampler)
    counted = CountedModel(model)
    with evaluation_mode(model), torch.no_grad():
        *_, latents = sampler.solve(counted, x, sampler.times(model).flip(0), None)
    if not bool(latents.isfinite().all()):
        raise ArithmeticError("the latents are not finite; take more steps")
    return latents, counted.nfe


def inversion(model: Models, sampler: Sampler, x: Tensor, batch_size: int = 128) -> Round:
    """Data x (n, *event), taken for states at the sampler's last time, encoded to latents and decoded again.

        inversion(model, make_sampler("ddim", steps=50), x0).error.mean()
    """
    latents, evaluations = [], 0
    sampler = replace(sampler, denoise=False)      # of a chain, too: x has the noise of its last time
    for numbers in batches(len(x), batch_size):
        part, evaluations = invert(of_batch(model, numbers), sampler, x[numbers.start:numbers.stop])
        latents.append(part)
    encoded = torch.cat(latents)
    back, nfe = carry(model, sampler, encoded, None, None, batch_size)
    return Round(encoded, back, (back - x).double().square().flatten(1).mean(1), evaluations + nfe)


def inversions(model: Models, sampler_of: Callable[[int], Sampler], x: Tensor, counts: Sequence[int], batch_size: int = 128
               ) -> dict[int, Round]:
    """`inversion` for several numbers of steps, each with the sampler that `sampler_of` makes of it."""
    if not counts or min(counts) < 1:
        raise ArgumentError(f"step_counts must be whole numbers from 1 on, got {tuple(counts)}", "step_counts")
    return {steps: inversion(model, sampler_of(steps), x, batch_size) for steps in counts}


def check_invertible(sampler: Sampler) -> None:
    """ArgumentError unless the sampler's steps can be taken backwards."""
    _refuse_noise(sampler)
    if not isinstance(sampler, tuple(INVERTIBLE.values())):
        raise ArgumentError(f"only {', '.join(INVERTIBLE)} can be taken backwards", "sampler")


def _refuse_noise(sampler: Sampler) -> None:
    if sampler.stochastic:
        raise ArgumentError("samples must be a function of the latent, and this sampler draws noise; choose a deterministic "
                            "one, such as ddim with eta 0", "sampler", *(["eta"] if hasattr(sampler, "eta") else []))
