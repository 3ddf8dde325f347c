"""Restoring by a model of latents: what was measured of pictures is measured of latents through the decoder, which is no
linear map, so a method must take any differentiable operator (Chung et al. 2023, DPS; Rout et al. 2023, "Solving Linear
Inverse Problems Provably via Posterior Sampling with Latent Diffusion Models"). Answers are decoded once, at the end.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from scorefield.data.latents import Latents
from scorefield.evaluation.restore import LearnedMeasured, Measured, Problem, Restored
from scorefield.guidance.operators import Operator


class Decoded(Operator):
    """An operator of pictures as one of their latents."""

    def __init__(self, operator: Operator, codec: Latents):
        super().__init__(codec.latent, operator.measured)
        self.operator, self.codec = operator, codec

    def _measure(self, x: Tensor) -> Tensor:
        return self.operator(self.codec.pictures(x))


@dataclass(frozen=True, eq=False)
class LearnedOfLatents(LearnedMeasured):
    """Measurements by a degradation, for a model whose answers are latents."""

    latent: tuple[int, ...] = ()

    @property
    def event(self) -> tuple[int, ...]:
        return self.latent


def of_latents(problem: Problem, codec: Latents) -> Problem:
    """A problem of pictures as one of their latents."""
    if isinstance(problem, Measured):
        return Measured(Decoded(problem.operator, codec), problem.y, problem.noise_std)
    assert isinstance(problem, LearnedMeasured)
    return LearnedOfLatents(problem.rule, problem.y, latent=codec.latent)


def decoded(restored: Restored, codec: Latents) -> Restored:
    """The answers as pictures as the autoencoder sees them, with their mean and spread."""
    x = codec.pictures(restored.x.flatten(0, 1)).detach().unflatten(0, restored.x.shape[:2])
    return dataclasses.replace(restored, x=x, mean=x.mean(1), std=x.std(1, correction=0))
