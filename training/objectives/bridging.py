"""What the objectives of bridges share: how paths are simulated, what is remembered, and when it is made anew.

A bridge is learned in turns: paths of what has been learned so far are simulated from examples of an end, and learned from.
What is simulated, and how many updates there were, is a part of the run's state, so a run goes on to the bit. Its random
numbers come from a seed that each step draws. Held-out losses are those of paths that are simulated for them.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from scorefield.models.bridge import Bridge, BridgeModel
from scorefield.models.networks.two_way import SOURCE, TARGET
from scorefield.models.score_model import evaluation_mode
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.processes import World
from scorefield.sde_lib.reference import crowded, warped
from scorefield.training.draws import Draws
from scorefield.training.objectives.objective import TARGET as OTHER
from scorefield.training.objectives.objective import Batch, Memory, Objective
from scorefield.training.times import TIME_SAMPLERS

MOST_PATHS, MOST_STEPS = 2**22, 10_000


class Ends(Protocol):
    """Training examples of both ends, as the model sees them."""

    device: torch.device

    def examples(self, end: str, n: int, generator: torch.Generator) -> Tensor:
        """n examples of "source" or "target", (n, *event), by a generator on the CPU."""


class Lot(NamedTuple):
    """What a step draws: a time (share,), float64 in (0, 1), a row of what is remembered, int64 (share,), noise (share,
    *event), a seed, and whether it is a held-out loss.
    """

    time: Tensor
    row: Tensor
    eps: Tensor
    seed: int
    held_out: bool


class Progress:
    """The updates so far, what was simulated last, and after how many updates that was."""

    def __init__(self) -> None:
        self.updates, self.made_at = 0, -1
        self.kept: dict[str, Tensor] = {}


@dataclass(frozen=True)
class Bridging(Objective, Memory):
    """An objective of a bridge. A subclass has its loss, and what it remembers.

    refresh     updates between simulations
    paths       how many are simulated at a time
    sim_steps   of each
    crowding    how much times, in training and along paths, crowd at both ends: 1 is even, at most 8
    ends        the training examples of both ends
    updates     of the whole training, if that is known

    Raises ArgumentError for numbers out of range.
    """

    refresh: int = 250
    paths: int = 4096
    sim_steps: int = 20
    crowding: float = 2.0
    time_sampling: str = "low_discrepancy"
    ends: Ends | None = field(default=None, repr=False, compare=False)
    updates: int | None = None
    progress: Progress = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, most in (("refresh", 10**12), ("paths", MOST_PATHS), ("sim_steps", MOST_STEPS)):
            if not 1 <= getattr(self, name) <= most:
                raise ArgumentError(f"{name} must lie in 1 .. {most}, got {getattr(self, name)}", name)
        if self.time_sampling not in TIME_SAMPLERS:
            raise ArgumentError(f"unknown time_sampling {self.time_sampling!r}; choose from {', '.join(TIME_SAMPLERS)}",
                                "time_sampling")
        crowded(1, self.crowding)      # refuses what it does not take
        object.__setattr__(self, "progress", Progress())

    def draw(self, batch: Batch, draws: Draws) -> Lot:
        u = TIME_SAMPLERS[self.time_sampling](draws.batch, draws.host)
        row = torch.randint(self.paths, (draws.batch,), generator=draws.host)
        seed = int(torch.randint(2**62, (), generator=draws.host))
        return Lot(draws.keep(u), draws.keep(row), draws.normal(batch.x.shape[1:]), seed, not draws.drops)

    @abstractmethod
    def simulated(self, model: Bridge, source: Tensor, target: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """What is remembered of paths from these examples of both ends, (n, *event), a tensor (n, ...) each by name."""

    def known(self, model: Bridge, batch: Batch, draw: Lot, stale: bool) -> tuple[dict[str, Tensor], Tensor]:
        """What is remembered, and the row of it for each example of the batch, int64 (batch,). It is made anew first if it
        is `stale`, or `refresh` updates old.
        """
        progress = self.progress
        if draw.held_out:
            generator = torch.Generator(batch.x.device).manual_seed(draw.seed)
            made = self.simulated(model, batch.x, target_of(batch), generator)
            return made, torch.arange(len(batch.x), device=batch.x.device)
        if stale or not progress.kept or progress.updates - progress.made_at >= self.refresh:
            if self.ends is None:
                raise ArgumentError("the objective of a bridge simulates paths from training examples; give it ends", "ends")
            host = torch.Generator().manual_seed(draw.seed)
            generator = torch.Generator(batch.x.device).manual_seed(draw.seed)
            source, target = (self.ends.examples(end, self.paths, host) for end in (SOURCE, TARGET))
            progress.kept, progress.made_at = self.simulated(model, source, target, generator), progress.updates
        return progress.kept, draw.row

    def stepped(self, world: World) -> None:
        self.progress.updates += 1

    def state(self) -> Mapping[str, Any]:
        progress = self.progress
        return {"updates": torch.tensor(progress.updates), "made_at": torch.tensor(progress.made_at),
                **{f"kept_{name}": tensor for name, tensor in progress.kept.items()}}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        if state is None:
            return
        progress = self.progress
        progress.updates, progress.made_at = int(state["updates"]), int(state["made_at"])
        device = None if self.ends is None else self.ends.device
        progress.kept = {name.removeprefix("kept_"): tensor.to(device) for name, tensor in state.items()
                         if name.startswith("kept_")}
        if any(len(tensor) != self.paths for tensor in progress.kept.values()):
            progress.kept = {}      # of another number of paths: they are simulated anew


def target_of(batch: Batch) -> Tensor:
    """The examples of the target in a batch; ArgumentError if there are none."""
    if OTHER not in batch.condition:
        raise ArgumentError("a bridge needs two data sets: choose data.dataset=pair, with a source and a target",
                            "data.dataset")
    return batch.condition[OTHER]


@torch.no_grad()
def followed(bridge: BridgeModel, x: Tensor, steps: int, crowding: float, generator: torch.Generator) -> Tensor:
    """The goals that paths of a bridge reach from starts x (n, *event): the rule of samplers/bridge.py, of order 2."""
    times = crowded(steps, crowding)
    with evaluation_mode(bridge):
        for s, later in zip(times[:-1], times[1:], strict=True):
            rule = bridge.sde.step(float(s), float(later))
            z = torch.randn(x.shape, generator=generator, device=x.device) if float(later) > 0 else None
            goal = bridge.goal_mean(x, s)
            if float(later) > 0:
                goal = (goal + bridge.goal_mean(rule(x, goal, noise=z), later)) / 2
            x = rule(x, goal, noise=z)
    return x


def time_of(u: Tensor, crowding: float) -> Tensor:
    """Times in [1e-5, 1 - 1e-5] from uniform numbers."""
    return warped(u, crowding).clamp(1e-5, 1 - 1e-5)
