"""Drawing samples from a denoiser and scoring data with it, in batches, with what it cost."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data import Dataset, dequantize
from likelihood import bits_per_dim, log_prob
from models import ScoreModel
from samplers import Result, Sampler, prior_sample, sample_seeds
from samplers.noise import DEQUANTIZATION, NoiseStream


@dataclass(frozen=True)
class Samples:
    """x (n, *event) on the CPU, evaluations of the network a sample (a mean, where batches differ), seconds.

    first: the result of the first batch, with its trajectory where that was asked for.
    """

    x: Tensor
    nfe: float
    seconds: float
    first: Result


def draw(model: ScoreModel, sampler: Sampler, shape: tuple[int, ...], n: int, seed: int, batch_size: int = 64,
         device: torch.device | str = "cpu", trajectory: bool = False, progress: bool = True) -> Samples:
    """n samples; sample i depends on (seed, i), not on batch_size (under adaptive solvers: up to their tolerance)."""
    start, parts, evaluations = time.perf_counter(), [], 0
    first = None
    steps = len(sampler.times(model)) - 1
    batches = range(0, n, batch_size)
    with tqdm(total=len(batches) * steps, unit="step", disable=None if progress else True) as bar:
        def advance(step: int, t: float, x: Tensor) -> None:
            bar.update()

        for begin in batches:
            seeds = sample_seeds(seed, begin, min(begin + batch_size, n))
            x_T = prior_sample(model.sde.prior_std, shape, seeds, device)
            result = sampler(model, x_T, seeds, trajectory and begin == 0, advance)
            first = first or result
            parts.append(result.x.cpu())
            evaluations += result.nfe * len(seeds)
    assert first is not None
    return Samples(torch.cat(parts), evaluations / n, time.perf_counter() - start, first)


@dataclass(frozen=True)
class Score:
    """bits_per_dim (n,) of each example, float64; evaluations of the network an example; seconds."""

    bits_per_dim: Tensor
    nfe: float
    seconds: float

    @property
    def mean(self) -> float:
        return float(self.bits_per_dim.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean: spread of data, dequantisation and probes together; NaN for a single example."""
        n = len(self.bits_per_dim)
        return float(self.bits_per_dim.std()) / math.sqrt(n) if n > 1 else math.nan


def score(model: ScoreModel, dataset: Dataset, low: float, high: float, split: str = "test", n: int | None = None,
          seed: int = 0, batch_size: int = 128, device: torch.device | str = "cpu", progress: bool = True,
          **settings: Any) -> Score:
    """Bits/dim of the first n examples of a split (None: all), by the probability-flow ODE.

    Integer levels are scaled to [low, high] and dequantised by u ~ U[0, 1); points are scored as a density, with no
    offset. What example i draws depends on (seed, i) alone. `settings` go to likelihood.log_prob.
    """
    examples = dataset.test if split == "test" else dataset.train
    total = len(examples) if n is None else min(n, len(examples))
    start, parts, evaluations = time.perf_counter(), [], 0
    with tqdm(total=total, unit="example", disable=None if progress else True) as bar:
        for indices in torch.arange(total).split(batch_size):
            seeds = sample_seeds(seed, int(indices[0]), int(indices[-1]) + 1)
            x = examples[indices]
            if dataset.levels is not None:
                u = NoiseStream(seeds, DEQUANTIZATION).uniform(torch.empty(x.shape))
                x = dequantize(x, u, dataset.levels, low, high)
            result = log_prob(model, x.to(device), seeds=seeds, **settings)
            parts.append(bits_per_dim(result.value.cpu().double(), x[0].numel(), dataset.levels, low, high))
            evaluations += result.nfe * len(indices)
            bar.update(len(indices))
    return Score(torch.cat(parts), evaluations / total, time.perf_counter() - start)
