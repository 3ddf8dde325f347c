"""Explicit noise: the noise of sample i depends only on its seed, never on the batch, its order or the process.

Each sample has its own counter-based stream (Philox 4x64, Salmon et al. 2011), drawn on the CPU. So the same seeds give the
same noise on every device. A draw is the next set of random numbers of a stream.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError

Seed = int | tuple[int, int]
PRIOR, STEPS, DEQUANTIZATION, PROBES, BOUND, RESAMPLING, CONDITION = range(7)      # streams of one seed; they never overlap


def sample_seeds(seed: int, start: int, stop: int) -> list[Seed]:
    """The seeds (seed, i) of samples start .. stop - 1 of a run."""
    return [(seed, i) for i in range(start, stop)]


def particle_seeds(seed: int, measurements: int, particles: int, first: int = 0) -> list[Seed]:
    """The seeds of particles 0 .. particles - 1 of measurements first, first + 1, ... of a run, measurement by measurement.

    That of particle i of measurement m depends on (seed, m, i) alone.
    """
    return [(seed, (m << 32) | i) for m in range(first, first + measurements) for i in range(particles)]


class NoiseStream:
    """Standard normal noise for a batch, with one independent stream for each sample.

    seeds   one for each sample: an int, or a pair such as (seed of the run, number of the sample)
    stream  which stream of these seeds: PRIOR for the start of a trajectory, STEPS for its noise
    """

    def __init__(self, seeds: Sequence[Seed], stream: int = STEPS):
        self.seeds = list(seeds)
        self._generators = []
        for seed in self.seeds:
            first, second = seed if isinstance(seed, tuple) else (int(seed), 0)
            if not (0 <= first < 2**64 and 0 <= second < 2**64):
                raise ArgumentError(f"a seed must lie in [0, 2**64), got {seed}", "seed")
            key = np.array([first, second], dtype=np.uint64)
            counter = np.array([0, 0, 0, stream], dtype=np.uint64)
            self._generators.append(np.random.Generator(np.random.Philox(key=key, counter=counter)))

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, like: Tensor) -> Tensor:
        """The next draw of every stream: N(0, I) in the shape, dtype and device of `like` (batch, *event)."""
        return self._draw(like, lambda generator, **out: generator.standard_normal(**out))

    def uniform(self, like: Tensor) -> Tensor:
        """The next draw of every stream, uniform on [0, 1), in the shape, dtype and device of `like`."""
        return self._draw(like, lambda generator, **out: generator.random(**out))

    def rademacher(self, like: Tensor) -> Tensor:
        """The next draw of every stream, -1 or 1 with equal probability, in the shape, dtype and device of `like`.

        The signs are the same in every dtype.
        """
        return (self.uniform(like.float()) < 0.5).to(like).mul_(2).sub_(1)

    def distinct(self, number: int, below: int) -> Tensor:
        """The next draw of every stream: `number` different integers in 0 .. below - 1, in random order, int64
        (streams, number), on the CPU.
        """
        rows = [generator.choice(below, number, replace=False) for generator in self._generators]
        return torch.from_numpy(np.array(rows, dtype=np.int64).reshape(len(rows), number))

    def _draw(self, like: Tensor, fill: Callable[..., Any]) -> Tensor:
        dtype = np.float64 if like.dtype == torch.float64 else np.float32
        draws = np.empty(like.shape, dtype=dtype)
        for generator, row in zip(self._generators, draws, strict=True):
            fill(generator, dtype=dtype, out=row)
        noise = torch.from_numpy(draws)
        if like.device.type == "cuda":      # pinned memory, so that the copy is asynchronous
            return noise.pin_memory().to(like.device, like.dtype, non_blocking=True)
        return noise.to(like)
