"""Carry states of any time to the data with any sampler: what several pictures of the papers share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scorefield.data import Codec
from scorefield.evaluation.progress import Progress
from scorefield.models import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import DEQUANTIZATION, NoiseStream, Seed
from scorefield.samplers import ProbabilityFlow, ReferenceSDE, Sampler
from scorefield.samplers.base import Callback, CountedModel
from scorefield.sde_lib import SDE

Models = ScoreModel | Callable[[range], ScoreModel]      # or a function from the numbers of samples to their model


class _Until(ScoreModel):
    """A process without predictions, for the times of a sampler."""

    def __init__(self, sde: SDE):
        super().__init__()
        self.sde = sde

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class StartedAt(Sampler):
    """`sampler` from the time `start` on, with all its steps below.

        StartedAt(sampler=make_sampler("auto", steps=20), start=0.5)(model, x_t)      # x_t at t = 0.5

    A list of times as its grid stays as it is below the start, and a chain that has fewer indices there than steps takes
    them all.
    """

    sampler: Sampler
    start: float

    def __post_init__(self) -> None:
        if isinstance(self.sampler, ReferenceSDE):
            raise ArgumentError("sampler 'torchsde' starts at t_max only; choose another one, such as euler_maruyama",
                                "sampler")

    @property
    def order(self) -> float:
        return self.sampler.order

    @property
    def stochastic(self) -> bool:
        return self.sampler.stochastic

    def denoises(self, model: ScoreModel) -> bool:
        return self.sampler.denoises(model)

    def times(self, model: ScoreModel) -> Tensor:
        sde, own = model.sde, self.sampler.times(model)
        if not float(own[-1]) < self.start <= sde.t_max:
            raise ArgumentError(f"t must lie above {float(own[-1]):g}, where the sampler ends, and be at most "
                                f"{sde.t_max:g}, got {self.start:g}", "times")
        until = copy.copy(sde)
        until.t_max = self.start
        until.steps = None if sde.steps is None else round(self.start / sde.t_max * sde.steps)
        try:
            times = self.sampler.times(_Until(until)).clone()      # which asks for nothing but the process
            times[0] = self.start
        except ArgumentError:      # a list of times, or more steps than a chain has indices below the start
            times = torch.cat([torch.tensor([self.start], dtype=torch.float64), own[own < self.start * (1 - 1e-9)]])
        return times

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        yield from self.sampler.solve(model, x, times, noise)


def started_at(sampler: Sampler, start: float, sde: SDE) -> Sampler:
    """The sampler from that time on; itself for t_max."""
    return sampler if start == sde.t_max else StartedAt(sampler=sampler, start=start)


def on_chain(sde: SDE, times: Sequence[float]) -> list[float]:
    """The times, each moved to the nearest index of the chain where the SDE was made from one; 0 stays."""
    if sde.steps is None:
        return list(map(float, times))
    n = sde.steps
    return [sde.t_max * max(round(t / sde.t_max * n), 1) / n if t else 0.0 for t in times]


def recording(sampler: Sampler, frames: int) -> Sampler:
    """The sampler with at least so many times at which its states come out: adaptive solvers have two by default."""
    if isinstance(sampler, ProbabilityFlow):
        return replace(sampler, points=max(sampler.points, frames))
    return sampler


def spread_steps(sampler: Sampler, model: ScoreModel, frames: int) -> list[int]:
    """At most `frames` steps of the sampler, equally spaced, from 0 to the last; ArgumentError for fewer than 2."""
    if frames < 2:
        raise ArgumentError(f"frames must be at least 2, got {frames}", "frames")
    last = len(sampler.times(model)) - 1
    return torch.linspace(0, last, frames, dtype=torch.float64).round().long().unique().tolist()


def late_steps(times: Tensor, frames: int) -> list[int]:
    """At most `frames` steps of a grid from 0 to the last, the others nearest to times in geometric progression: structure
    appears late. ArgumentError for fewer than 2.
    """
    if frames < 2:
        raise ArgumentError(f"frames must be at least 2, got {frames}", "frames")
    first, last = float(times[0]), float(times[-1])
    wanted = torch.logspace(math.log10(first), math.log10(max(last, 0.05 * first)), frames - 1, dtype=torch.float64)
    return sorted({*(int((times - t).abs().argmin()) for t in wanted), len(times) - 1})


def of_batch(model: Models, numbers: range) -> ScoreModel:
    """The score model of the samples with these numbers."""
    return model if isinstance(model, ScoreModel) else model(numbers)


def batches(n: int, batch_size: int) -> list[range]:
    return [range(begin, min(begin + batch_size, n)) for begin in range(0, n, batch_size)]


def carry(model: Models, sampler: Sampler, x: Tensor, seeds: Sequence[Seed] | None = None, start: float | None = None,
          batch_size: int = 128, progress: bool = False, what: str = "samples",
          on_step: Callable[[range, int, float, Tensor], None] | None = None) -> tuple[Tensor, int]:
    """x (n, *event) of the time `start` (None: t_max) at the sampler's last time, and its evaluations a sample.

    seeds    one for each sample, for stochastic samplers; two samples with one seed get the same noise
    on_step  called as on_step(numbers of the batch, step, t, state) after every step
    what     are carried, for the lines of progress
    """
    sde = of_batch(model, range(min(batch_size, len(x)))).sde
    own = sampler if start is None else started_at(sampler, start, sde)
    parts, nfe = [], 0
    todo = batches(len(x), batch_size)
    steps = len(own.times(of_batch(model, todo[0]))) - 1
    with Progress(len(todo) * steps, "step", progress, what, len(x)) as bar:
        for numbers in todo:
            def after(step: int, t: float, state: Tensor, numbers: range = numbers) -> None:
                bar.step()
                if on_step is not None:
                    on_step(numbers, step, t, state)

            callback: Callback = after
            result = own(of_batch(model, numbers), x[numbers.start:numbers.stop],
                         None if seeds is None else seeds[numbers.start:numbers.stop], callback=callback)
            parts.append(result.x)
            nfe = max(nfe, result.nfe)
            bar.show(lambda: sum(map(len, parts)))
    return torch.cat(parts), nfe


def shown_width(sde: SDE, t: float | Tensor) -> float:
    """sqrt(alpha^2 + sigma^2), the width of x_t for data of width 1, where it is above 1 (VE), else 1.

    Pictures show x_t divided by it.
    """
    at = torch.as_tensor(t, dtype=torch.float64)
    return max(1.0, float((sde.alpha(at).square() + sde.sigma(at).square()).sqrt()))


def encoded(codec: Codec, data: Tensor, seeds: Sequence[Seed], device: Any = "cpu") -> Tensor:
    """Data (n, *shape) as the model sees them, (n, *event); the noise of dequantisation depends on each one's seed."""
    u = NoiseStream(seeds, DEQUANTIZATION).uniform(codec.noise_like(data)) if codec.noisy else None
    return codec.encode(data, u).to(device)
