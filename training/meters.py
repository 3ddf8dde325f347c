"""Figures of a run beside its loss: the loss by time, speed, waiting for data, memory, and the share of the machine's peak.

    loss_q1 .. loss_q4   mean loss of the examples whose time lies in that quarter of the times as they are drawn; q1 is the
                         one with the least noise. Kept on the device, and summed when a line of the log is due
    examples_per_second  over all processes
    data_wait            share of the time in which the loop waited for examples
    memory_gib           peak of the GPU since the start, or of the process
    share_of_peak        operations of forward and backward pass, as the network is written, a second, over what a large
                         product of matrices reaches on this machine in the same arithmetic; by the process, once the run
                         has lasted for PATIENCE seconds
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.conditions import blank
from scorefield.numerics.processes import World
from scorefield.training.objectives.objective import Batch, Memory, Objective, memory_of

BUCKETS = 4
DRAWN = 2**13         # times whose quantiles bound the buckets
MOST_KEPT = 256       # steps whose losses wait to be summed
PATIENCE = 30.0       # seconds; counting operations takes one, and short runs need no such figure
GIB = 2**30


class Watched(Objective, Memory):
    """An objective that notes the times and losses of its examples."""

    def __init__(self, inner: Objective, note: Callable[[Tensor, Tensor], None]):
        self.inner, self.note = inner, note

    def draw(self, batch: Batch, draws: Any) -> Any:
        return self.inner.draw(batch, draws)

    def loss(self, model: Any, batch: Batch, draw: Any) -> Tensor:
        losses = self.inner.loss(model, batch, draw)
        self.note(draw.t, losses.detach())
        return losses

    def metrics(self, model: Any, batch: Batch, draw: Any) -> dict[str, Tensor]:
        return self.inner.metrics(model, batch, draw)

    def stepped(self, world: World) -> None:
        memory_of(self.inner).stepped(world)

    def state(self) -> Mapping[str, Any] | None:
        return memory_of(self.inner).state()

    def restore(self, state: Mapping[str, Any] | None) -> None:
        memory_of(self.inner).restore(state)


class LossByTime:
    """Mean losses in BUCKETS quantiles of the times that an objective draws.

    The quantiles are those of DRAWN times from a fixed seed, so they are the same for every run of the objective.
    """

    def __init__(self, objective: Objective):
        drawn = objective.times.draw(DRAWN, torch.Generator().manual_seed(0))[0]      # type: ignore[attr-defined]
        self.edges = drawn.double().quantile(torch.arange(1, BUCKETS, dtype=torch.float64) / BUCKETS)
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._sums: Tensor | None = None

    def note(self, t: Tensor, losses: Tensor) -> None:
        """Times and losses (batch,) of one loss; summed later, since a short step would feel it."""
        self._kept.append((t, losses))
        if len(self._kept) >= MOST_KEPT:
            self._add()

    def _add(self) -> None:
        t, losses = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        self._kept = []
        bucket = torch.bucketize(t, self.edges.to(t))
        sums = losses.new_zeros(2, BUCKETS)
        sums[0].index_add_(0, bucket, losses)
        sums[1].index_add_(0, bucket, torch.ones_like(losses))
        self._sums = sums if self._sums is None else self._sums + sums

    def figures(self, world: World) -> dict[str, float]:
        """The means since the last call, over all processes, of the buckets that have examples."""
        if self._kept:
            self._add()
        if self._sums is None:
            return {}
        sums, counts = world.mean(self._sums).tolist()
        self._sums = None
        return {f"loss_q{i + 1}": total / count for i, (total, count) in enumerate(zip(sums, counts, strict=True)) if count}


class Meters:
    """The figures of one process's steps, for the lines of its log.

    objective  of the run; `meters.objective` is the one to be trained, which notes its losses
    waited     how long the loop has waited for examples, in seconds, so far
    operations floating-point operations of this process's part of a step, when called; None if that is not known
    peak       operations a second that this device reaches, when called
    """

    def __init__(self, objective: Objective, batch_size: int, device: torch.device, world: World | None = None,
                 waited: Callable[[], float] = lambda: 0.0, operations: Callable[[], float] | None = None,
                 peak: Callable[[], float] | None = None):
        self.batch_size, self.device, self.world = batch_size, device, world or World()
        self.waited, self.operations, self.peak = waited, operations, peak
        self.objective, self.buckets = objective, None
        if hasattr(objective, "times"):
            self.buckets = LossByTime(objective)
            self.objective = Watched(objective, self.buckets.note)
        self._since, self._began = waited(), time.perf_counter()
        self._share: tuple[float, float] | None = None

    def figures(self, steps: int, elapsed: float) -> dict[str, float]:
        """Of the last `steps` steps, which took `elapsed` seconds. Every process must call it."""
        now = self.waited()
        waited, self._since = now - self._since, now
        by_time = {} if self.buckets is None else self.buckets.figures(self.world)
        return {"examples_per_second": self.batch_size * steps / elapsed, "data_wait": min(1.0, waited / elapsed),
                "memory_gib": peak_memory(self.device) / GIB, **self._share_of_peak(steps, elapsed), **by_time}

    def _share_of_peak(self, steps: int, elapsed: float) -> Mapping[str, float]:
        if self.operations is None or self.peak is None or not self.world.first:
            return {}
        if self._share is None and time.perf_counter() - self._began > PATIENCE:
            self._share = self.operations(), self.peak()
        if self._share is None or not all(self._share):
            return {}
        return {"share_of_peak": self._share[0] * steps / elapsed / self._share[1]}


def peak_memory(device: torch.device) -> float:
    """Bytes: the most that tensors on the GPU, or this process, have taken so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def operations_of(outline: nn.Module, shape: tuple[int, ...]) -> float:
    """Floating-point operations of a forward and a backward pass of one example; 0 if the network cannot be counted.

    outline  the network on the device "meta", where nothing is computed
    shape    of an example as the network sees it
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        inputs: list[Any] = [torch.empty(1, *shape), torch.empty(1)]
        if condition := blank(outline, 1, shape):
            inputs.append(condition)
        try:
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:      # only there attention counts
                outline(*inputs).sum().backward()
        except (RuntimeError, NotImplementedError):      # a network of the user's that asks for values
            return 0.0
    return float(counter.get_total_flops())
