"""Naive against annealed Langevin dynamics (Song and Ermon 2019, sections 3.2.2 and 4.3, algorithm 1 and figure 3).

    x <- x + e score(x) + sqrt(2 e) z

on the data's own score does not cross regions without data, so from a start in both basins the modes get the weights of the
basins, not their own. Annealing starts where the noise fills these regions and goes on to less noise, so the weights come
out right. The naive dynamics here take as many steps of the same rule as the annealed ones (`Langevin`), all of them at the
least noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.evaluation.explore.paths import Models, carry
from scorefield.models import GaussianMixture, ScoreModel
from scorefield.numerics.noise import PRIOR, NoiseStream, Seed
from scorefield.samplers import Langevin
from scorefield.sde_lib import VESDE

LEVELS, LARGEST, LEAST = 10, 20.0, 1.0      # noise levels of the published experiment
HALF_WIDTH = 8.0                            # of the square from which its points start


@dataclass(frozen=True, kw_only=True)
class NaiveLangevin(Langevin):
    """The steps of `Langevin` with the same options, all of them at its last time."""

    def times(self, model: ScoreModel) -> Tensor:
        own = super().times(model)
        return own[-1:].expand(len(own)).clone()


@dataclass(frozen=True)
class Compared:
    """naive, annealed  (n, *event): samples from one start; nfe of each."""

    naive: Tensor
    annealed: Tensor
    nfe: int


def langevin(model: Models, sampler: Langevin, start: Tensor, seeds: Sequence[Seed], batch_size: int = 2048,
             progress: bool = False) -> Compared:
    """Both dynamics from the same states (n, *event), with the same noise.

        langevin(model, make_sampler("langevin", steps=10, corrector_steps=100), start, seeds=range(len(start)))
    """
    naive = NaiveLangevin(**vars(sampler))
    results = [carry(model, own, start, seeds, None, batch_size, progress) for own in (naive, sampler)]
    return Compared(results[0][0], results[1][0], results[1][1])


def published() -> tuple[GaussianMixture, Langevin]:
    """The mixture of the paper's figure 3 with its exact scores, 1/5 N((-5, -5), I) + 4/5 N((5, 5), I), and the sampler.

    Ten noise levels in geometric progression from 20 to 1, 100 steps at each; the step e is .05 times the squared level,
    which is epsilon = .1 in the paper's algorithm. The process has one level more, its first, at which nothing is corrected.
    """
    ratio = (LARGEST / LEAST) ** (1 / (LEVELS - 1))
    means = torch.tensor([[-5.0, -5.0], [5.0, 5.0]])
    model = GaussianMixture(VESDE(LEAST, LARGEST * ratio), means, torch.ones(2), [0.2, 0.8])
    return model, Langevin(steps=LEVELS, corrector_steps=100, snr=math.sqrt(0.1) / 2, t_end=model.sde.t_min)


def published_start(n: int, seed: int = 0) -> Tensor:
    """n points, uniform on the square from -8 to 8, (n, 2) in float32; point i depends on (seed, i)."""
    uniform = NoiseStream([(seed, i) for i in range(n)], PRIOR).uniform(torch.empty(n, 2))
    return HALF_WIDTH * (2 * uniform - 1)


def shares(x: Tensor, means: Tensor) -> Tensor:
    """The share of points (n, D) that are nearest to each of `means` (K, D), float64 (K,)."""
    nearest = torch.cdist(x.double(), means.to(x.device).double()).argmin(1)
    return torch.bincount(nearest, minlength=len(means)).double().cpu() / len(x)
