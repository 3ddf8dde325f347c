"""The training batch of any step, encoded, on the device, with what the objective draws for it; and the held-out loss."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scorefield.data.codec import Codec
from scorefield.data.dataset import Condition, Dataset, Split
from scorefield.data.degradations import LOW_RES, LOW_RES_NOISE, Degraded, LowRes, noisy
from scorefield.data.transforms import coins, mirrored
from scorefield.models.denoiser import evaluation_mode
from scorefield.numerics.processes import World
from scorefield.training.draws import Draws, HeldOutDraws, seed_of
from scorefield.training.labels import CheckedLabels
from scorefield.training.objectives.objective import TARGET, Batch, Objective
from scorefield.training.readers import Fetch, Items, ReadAhead, Workers, chosen_workers

PIXELS = "pixels"      # a condition of encoded examples: the levels themselves, of which each step makes low_res
GOLDEN = 0x9E3779B97F4A7C15      # added to the seed: the order of the target's examples


class Batches:
    """This process's share of the batch of any step, and its draw: `batch, draw = batches(step)`.

    Both depend only on (seed, step), whoever reads the examples. A call also seeds dropout. `waited` is how long calls have
    waited for examples, in seconds.

    batch_size  of all processes together
    workers     processes that read examples which are not in memory: 0 is a thread, -1 some beside a GPU
    """

    def __init__(self, dataset: Dataset, codec: Codec, objective: Objective, batch_size: int, seed: int,
                 device: torch.device, world: World | None = None, workers: int = 0):
        self.dataset, self.codec, self.objective = dataset, codec, objective
        self.batch_size, self.seed, self.device, self.world = batch_size, seed, device, world or World()
        self.event, self.waited = codec.event(dataset.shape), 0.0
        self._fetch = Fetch(without_low_res(dataset.train), batch_size, seed, self.world)
        self._ahead = _ahead(self._fetch, workers, device)
        self._other: Fetch | ReadAhead | None = None      # reads the other end of a bridge, in an order of its own
        if dataset.target is not None:
            other = Fetch(dataset.target.train, batch_size, (seed + GOLDEN) % 2**64, self.world)
            self._other = _ahead(other, workers, device) or other
        self._at_once = device.type == "cuda"      # a copy from pinned memory, which need not be waited for

    def __call__(self, step: int) -> tuple[Batch, Any]:
        start = time.perf_counter()
        data, condition = self._read(step)
        target = None if self._other is None else self._other(step)[0]
        self.waited += time.perf_counter() - start
        levels, condition = condition.get(PIXELS), {name: self._moved(t) for name, t in condition.items() if name != PIXELS}
        seed = seed_of(self.seed, step)
        _seed_dropout((seed + self.world.rank) % 2**64, self.device)
        draws = Draws(self.batch_size, seed, self.device, self.world)
        draw = self.objective.draw(_outline(len(data), self.event, condition), draws)
        u = draws.codec_noise(self.codec.noise(self.dataset.shape)) if self.codec.noisy else None
        if target is not None:
            condition[TARGET] = self._encoded(target, draws.uniform(self.dataset.shape) if self.codec.noisy else None)[1]
        data, x = self._encoded(data, u)
        if self.dataset.flip:
            which = coins(len(x), draws.host)
            x, data = mirrored(x, which), mirrored(data, which) if self.dataset.low_res is not None else data
        if self.dataset.low_res is not None:
            condition |= low_res_of(data if levels is None else self._moved(levels), self.dataset.low_res, draws)
        return Batch(x, condition), draw

    def indices(self, step: int) -> Tensor:
        """The numbers of this process's examples of a step among the training examples, int64 (share,)."""
        return self._fetch.indices(step)

    def close(self) -> None:
        """Stop reading ahead, and end the processes that read. A later call starts them again."""
        for reader in (self._ahead, self._other):
            if isinstance(reader, ReadAhead):
                reader.close()

    def _encoded(self, data: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor]:
        """The data, on the device where that has their type, and x."""
        if data.dtype != torch.float64:      # which some devices lack; such data become float32 here
            data = self._moved(data)
        return data, self.codec.encode(data, u).to(self.device)

    def _read(self, step: int) -> Items:
        return self._fetch(step) if self._ahead is None else self._ahead(step)

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=self._at_once)


def low_res_of(data: Tensor, rule: LowRes, draws: Draws) -> Condition:
    """low_res of levels (share, *shape), with noise of a random level that the model is told, if the rule says so."""
    low_res = rule.of(data, draws.uniform(rule.numbers).to(data.device)).to(draws.device)
    if not rule.noise:
        return {LOW_RES: low_res}
    level = rule.noise * draws.uniform(())
    return {LOW_RES: noisy(low_res, level, draws.normal(rule.event)), LOW_RES_NOISE: level}


def without_low_res(split: Split) -> Split:
    """The split without that condition, which each step makes anew."""
    if isinstance(split, CheckedLabels):
        return CheckedLabels(without_low_res(split.split), split.classes, split.name)
    return split.split if isinstance(split, Degraded) else split


def _ahead(fetch: Fetch, workers: int, device: torch.device) -> ReadAhead | None:
    """What reads ahead of the steps; None if a batch is in memory and need not go to a GPU."""
    count, gpu = chosen_workers(workers, fetch.split, device), device.type == "cuda"
    if count:
        return Workers(fetch, count, pin=gpu)
    if gpu or not getattr(fetch.split, "in_memory", False):
        return ReadAhead(fetch, pin=gpu)
    return None


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
            draws = HeldOutDraws(n, part, stream, device, codec.noise(dataset.shape) if codec.noisy else None)
            draw = objective.draw(_outline(len(part), event, condition), draws)
            u = draws.codec_noise(codec.noise(dataset.shape)) if codec.noisy else None
            if dataset.target is not None:
                other = dataset.target.test[part % len(dataset.target.test)][0]
                condition[TARGET] = codec.encode(other, draws.uniform(dataset.shape) if codec.noisy else None).to(device)
            batch = Batch(codec.encode(data, u).to(device), condition)
            figures = {"loss": objective.loss(model, batch, draw), **objective.metrics(model, batch, draw)}
            for name, values in figures.items():
                totals[name] = totals.get(name, 0.0) + float(values.sum())
    return {f"held_out_{name}": total / n for name, total in totals.items()}
