"""The prior: the distribution that replaces the marginal at t_max. Samplers start from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.numerics.noise import PRIOR, NoiseStream, Seed


@dataclass(frozen=True)
class GaussianPrior:
    """N(0, std^2 I), for events of any shape."""

    std: float = 1.0

    def sample(self, event_shape: Sequence[int], seeds: Sequence[Seed], device: torch.device | str = "cpu",
               dtype: torch.dtype = torch.float32) -> Tensor:
        """One draw for each seed, (len(seeds), *event_shape); what a seed gives depends on nothing else."""
        empty = torch.empty((len(seeds), *event_shape), device=device, dtype=dtype)
        return self.std * NoiseStream(seeds, PRIOR).normal(empty)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, std^2 I) in nats, (batch,), for x (batch, *event)."""
        d = x[0].numel()
        squares = x.reshape(len(x), -1).square().sum(1)
        return -0.5 * squares / self.std**2 - d * (math.log(self.std) + 0.5 * math.log(2 * math.pi))
