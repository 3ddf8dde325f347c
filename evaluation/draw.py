"""Draw samples from a score model in batches, and record the cost."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from scorefield.models import ScoreModel
from scorefield.samplers import Result, Sampler, prior_sample, sample_seeds
from scorefield.samplers.base import Callback


@dataclass(frozen=True)
class Samples:
    """x (n, *event) on the CPU, network evaluations per sample (the mean, if batches differ), seconds.

    first: the result of the first batch, with its trajectory if one was requested.
    """

    x: Tensor
    nfe: float
    seconds: float
    first: Result


def draw(model: ScoreModel | Callable[[range], ScoreModel], sampler: Sampler, shape: tuple[int, ...], n: int, seed: int,
         batch_size: int = 64, device: torch.device | str = "cpu", trajectory: bool = False,
         progress: bool = True) -> Samples:
    """n samples; sample i depends on (seed, i), not on batch_size (under adaptive solvers: up to their tolerance).

    model  the score model; or a function from the numbers i of a batch's samples to their score model, where each sample is
           given a condition of its own: `draw(lambda batch: model.given(label=labels[batch.start:batch.stop]), ...)`
    """
    start, parts, evaluations = time.perf_counter(), [], 0
    first = None

    def of_batch(begin: int) -> ScoreModel:
        return model if isinstance(model, ScoreModel) else model(range(begin, min(begin + batch_size, n)))

    steps = len(sampler.times(of_batch(0))) - 1
    batches = range(0, n, batch_size)
    with tqdm(total=len(batches) * steps, unit="step", disable=None if progress else True) as bar:
        def advance(step: int, t: float, x: Tensor) -> None:
            bar.update()

        for begin in batches:
            numbers = range(begin, min(begin + batch_size, n))
            result = draw_batch(of_batch(begin), sampler, shape, numbers, seed, device, trajectory and begin == 0, advance)
            first = first or result
            parts.append(result.x.cpu())
            evaluations += result.nfe * len(numbers)
    assert first is not None
    return Samples(torch.cat(parts), evaluations / n, time.perf_counter() - start, first)


def draw_batch(model: ScoreModel, sampler: Sampler, shape: tuple[int, ...], numbers: range, seed: int,
               device: torch.device | str = "cpu", trajectory: bool = False, callback: Callback | None = None) -> Result:
    """The samples with these numbers, x (len(numbers), *shape) on the device; sample i has the seeds (seed, i)."""
    seeds = sample_seeds(seed, numbers.start, numbers.stop)
    result = sampler(model, prior_sample(model.sde, shape, seeds, device), seeds, trajectory, callback)
    return replace(result, nfe=result.nfe + model.spent) if model.spent else result
