"""Many completions of one x_t (Ho et al. 2020, section 4.3 and figure 7): what they share is what x_t knows of x_0.

Completions are draws of p(x_0 given x_t) by a sampler that draws noise. Their spread falls with t: at t_max they share
nothing, near 0 all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.evaluation.explore.paths import Models, carry, of_batch, on_chain
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream
from scorefield.samplers import Sampler, sample_seeds


@dataclass(frozen=True)
class Shared:
    """times (T,) as they were used; latents (T, *event), x_t; completions (T, n, *event); nfe of each at each time.

    spread  (T,): the standard deviation of an element over the completions of one x_t, root mean square over the elements
    """

    times: Tensor
    latents: Tensor
    completions: Tensor
    nfe: list[int]

    @property
    def spread(self) -> Tensor:
        return self.completions.double().var(1).flatten(1).mean(1).sqrt()


def shared_latents(model: Models, sampler: Sampler, x0: Tensor, times: Sequence[float], n: int = 7, seed: int = 0,
                   batch_size: int = 128, progress: bool = False) -> Shared:
    """n completions of x_t, for x_t of one example x_0 (*event) at each of several times, with one noise for all of them.

        shared_latents(model, make_sampler("ddim", steps=100, eta=1.0), x0[0], times=[0.25, 0.5, 1.0])

    times  from above the sampler's last time up to t_max; those of a chain move to its nearest index

    Completion i draws its noise from (seed, i), at every time the same. Raises ArgumentError for a sampler without noise,
    whose completions would all be one, for times that cannot be and for fewer than 2 completions.
    """
    if not sampler.stochastic:
        raise ArgumentError("completions of one x_t differ by the noise that a sampler draws, and this one draws none; "
                            "choose ddim with eta 1, ancestral or euler_maruyama", "sampler")
    if n < 2:
        raise ArgumentError(f"completions must be at least 2, got {n}", "num_samples")
    sde = of_batch(model, range(1)).sde
    used, latents, rows, nfe = on_chain(sde, times), [], [], []
    if not used:
        raise ArgumentError("shared latents need at least one time", "times")
    eps = NoiseStream([(seed, 0)]).normal(x0[None])
    for t in used:
        if not 0 < t <= sde.t_max:
            raise ArgumentError(f"times must lie above 0 and be at most {sde.t_max:g}, got {t:g}", "times")
        latents.append(sde.perturb(x0[None], t, eps)[0])
        x, evaluations = carry(model, sampler, latents[-1].expand(n, *x0.shape).clone(), sample_seeds(seed, 1, n + 1), t,
                               batch_size, progress)
        rows.append(x)
        nfe.append(evaluations)
    return Shared(torch.tensor(used, dtype=torch.float64), torch.stack(latents), torch.stack(rows), nfe)
