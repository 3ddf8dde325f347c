"""The forward process of an example: x_t = alpha(t) x_0 + sigma(t) eps at equally spaced t, with one eps for all t.

Each x_t is a draw of q(x_t given x_0) (Ho et al. 2020, equation 4). Neighbours share their noise, so that a film of them is
smooth; they are not a path of the forward SDE, whose noise is renewed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream, Seed
from scorefield.sde_lib import SDE


@dataclass(frozen=True)
class Strip:
    """times (frames,), from 0 to t_max; states (frames, n, *event)."""

    times: Tensor
    states: Tensor


def forward(sde: SDE, x0: Tensor, seeds: Sequence[Seed], frames: int = 11) -> Strip:
    """x_t of examples x_0 (n, *event) at `frames` equally spaced times.

        strip = forward(model.sde, x0, seeds=range(len(x0)), frames=11)

    The first state is x_0 itself. Raises ArgumentError for fewer than 2 frames.
    """
    if frames < 2:
        raise ArgumentError(f"frames must be at least 2, got {frames}", "frames")
    eps = NoiseStream(seeds).normal(x0)
    times = torch.linspace(0, sde.t_max, frames, dtype=torch.float64)
    return Strip(times, torch.stack([x0 if t == 0 else sde.perturb(x0, t, eps) for t in times]))
