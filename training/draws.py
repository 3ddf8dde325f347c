"""The random numbers of one batch. Those of a training step depend only on (seed, step).

Every process draws those of the whole batch and keeps its share. So a run shared by several processes sees the times and the
noise of a single one.
"""

import numpy as np
import torch
from torch import Tensor

from scorefield.numerics.processes import World


def seed_of(seed: int, step: int) -> int:
    """A seed in [0, 2^64) for a step of a run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])


class Draws:
    """Random numbers for the batch of one step.

    batch  examples in the whole batch
    host   a generator on the CPU, the same in every process: `draws.keep(f(draws.batch, draws.host))`
    drops  whether labels may be dropped: in training, not where held-out examples are scored
    """

    drops = True

    def __init__(self, batch: int, seed: int, device: torch.device, world: World | None = None):
        world = world or World()
        self.batch, self.device = batch, device
        self.host = torch.Generator().manual_seed(seed)
        self._here = torch.Generator(device).manual_seed(seed)
        self._share = slice(world.rank, None, world.size)

    def keep(self, whole: Tensor) -> Tensor:
        """This process's share of something drawn for the whole batch, (batch, ...), on the device."""
        dtype = torch.float32 if self.device.type == "mps" and whole.dtype == torch.float64 else whole.dtype
        return whole[self._share].to(self.device, dtype)

    def normal(self, event: tuple[int, ...]) -> Tensor:
        """N(0, I) of (share, *event), on the device."""
        return torch.randn((self.batch, *event), generator=self._here, device=self.device)[self._share]

    def uniform(self, event: tuple[int, ...]) -> Tensor:
        """U[0, 1) of (share, *event), on the device."""
        return torch.rand((self.batch, *event), generator=self._here, device=self.device)[self._share]

    def codec_noise(self, shape: tuple[int, ...]) -> Tensor:
        """The u that a noisy codec wants for data of (share, *shape). It is drawn after what the objective draws."""
        return self.uniform(shape)


class HeldOutDraws(Draws):
    """Random numbers for a part of n held-out examples, which are the same in every evaluation.

    Their order has been the same since the first version, so that held-out losses can be compared: the host's numbers for
    all n examples, then for each part the codec's noise and after it the objective's.

    part    the indices of the part
    stream  the generator that all parts share
    """

    drops = False

    def __init__(self, n: int, part: Tensor, stream: torch.Generator, device: torch.device, noise: tuple[int, ...] | None):
        self.batch, self.device, self.part, self.stream = n, device, part, stream
        self.host = stream if int(part[0]) == 0 else torch.Generator().manual_seed(0)      # draws the same numbers again
        self._noise = noise
        self._u: Tensor | None = None

    def keep(self, whole: Tensor) -> Tensor:
        return whole[self.part]

    def normal(self, event: tuple[int, ...]) -> Tensor:
        if self._noise is not None:
            self.codec_noise(self._noise)
        return torch.randn((len(self.part), *event), generator=self.stream).to(self.device)

    def uniform(self, event: tuple[int, ...]) -> Tensor:
        return torch.rand((len(self.part), *event), generator=self.stream).to(self.device)

    def codec_noise(self, shape: tuple[int, ...]) -> Tensor:
        if self._u is None:
            self._u = torch.rand((len(self.part), *shape), generator=self.stream)
        return self._u
