"""The training batch of any step, encoded, on the device, with what the objective draws for it; and the held-out loss."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from scorefield.data.codec import Codec
from scorefield.data.dataset import Condition, Dataset
from scorefield.data.transforms import batch_indices, random_flip
from scorefield.models.denoiser import evaluation_mode
from scorefield.numerics.processes import World
from scorefield.training.draws import Draws, HeldOutDraws, seed_of
from scorefield.training.objectives.objective import Batch, Objective

Items = tuple[Tensor, Condition]


class Batches:
    """This process's share of the batch of any step, and its draw: `batch, draw = batches(step)`.

    Both depend only on (seed, step). A call also seeds dropout.

    batch_size  of all processes together
    """

    def __init__(self, dataset: Dataset, codec: Codec, objective: Objective, batch_size: int, seed: int,
                 device: torch.device, world: World | None = None):
        self.dataset, self.codec, self.objective = dataset, codec, objective
        self.batch_size, self.seed, self.device, self.world = batch_size, seed, device, world or World()
        self.event = codec.event(dataset.shape)
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Any] = (-1, None)

    def __call__(self, step: int) -> tuple[Batch, Any]:
        data, condition = self._fetch(step) if getattr(self.dataset.train, "in_memory", False) else self._prefetched(step)
        condition = {name: tensor.to(self.device) for name, tensor in condition.items()}
        seed = seed_of(self.seed, step)
        _seed_dropout((seed + self.world.rank) % 2**64, self.device)
        draws = Draws(self.batch_size, seed, self.device, self.world)
        draw = self.objective.draw(_outline(len(data), self.event, condition), draws)
        u = draws.codec_noise(self.dataset.shape) if self.codec.noisy else None
        if data.dtype != torch.float64:      # which some devices lack; such data become float32 here
            data = data.to(self.device)
        x = self.codec.encode(data, u).to(self.device)
        return Batch(random_flip(x, draws.host) if self.dataset.flip else x, condition), draw

    def indices(self, step: int) -> Tensor:
        """The numbers of the training examples in the batch of that step, (batch_size,): those of all processes."""
        return batch_indices(len(self.dataset.train), self.batch_size, step, self.seed)

    def _fetch(self, step: int) -> Items:
        return self.dataset.train[self.indices(step)[self.world.rank::self.world.size]]

    def _prefetched(self, step: int) -> Items:
        """As _fetch, with the next batch read from disk while the network works on this one."""
        at, fetched = self._next
        self._next = (step + 1, self._pool.submit(self._fetch, step + 1))
        return fetched.result() if at == step else self._fetch(step)


def _outline(n: int, event: tuple[int, ...], condition: Mapping[str, Tensor]) -> Batch:
    """A batch whose x has a shape and no values."""
    return Batch(torch.empty((n, *event), device="meta"), dict(condition))


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Dropout knows only the global generator of its device; torch.manual_seed sets those of all, in half a ms."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@torch.no_grad()
def held_out(model: Any, objective: Objective, dataset: Dataset, codec: Codec, batch_size: int, device: torch.device,
             limit: int = 1024) -> dict[str, float]:
    """Means of the loss and of the objective's metrics over (at most `limit`) held-out examples, as "held_out_<name>".

    Their random numbers are the same in every call and for every seed of the run.
    """
    n, totals = min(limit, len(dataset.test)), dict[str, float]()
    stream, event = torch.Generator().manual_seed(0), codec.event(dataset.shape)
    with evaluation_mode(model):
        for part in torch.arange(n).split(batch_size):
            data, condition = dataset.test[part]
            if data.is_floating_point():
                codec.check(data, f"data set {dataset.name!r}, held-out examples", int(part[0]))
            condition = {name: tensor.to(device) for name, tensor in condition.items()}
            draws = HeldOutDraws(n, part, stream, device, dataset.shape if codec.noisy else None)
            draw = objective.draw(_outline(len(part), event, condition), draws)
            u = draws.codec_noise(dataset.shape) if codec.noisy else None
            batch = Batch(codec.encode(data, u).to(device), condition)
            figures = {"loss": objective.loss(model, batch, draw), **objective.metrics(model, batch, draw)}
            for name, values in figures.items():
                totals[name] = totals.get(name, 0.0) + float(values.sum())
    return {f"held_out_{name}": total / n for name, total in totals.items()}
