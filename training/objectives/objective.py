"""The contract of an objective: a loss on one batch, which a step of the trainer minimises.

    class Mine(Objective):
        def draw(self, batch, draws):
            return draws.normal(batch.x.shape[1:])

        def loss(self, model, batch, draw):
            return (model(batch.x + draw, 0.5) - draw).square().flatten(1).mean(1)

An objective draws random numbers only in `draw`, so that a resumed run equals one that never stopped. One that remembers
something from step to step is a Memory, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from scorefield.numerics.processes import World
from scorefield.training.draws import Draws

TARGET = "target"      # the condition that holds examples of the other end of a bridge


@dataclass(frozen=True)
class Batch:
    """x (batch, *event) as the codec encodes the data, and the condition of each example, (batch, ...) by name. For bridges
    "target" holds as many examples of the other end, which have nothing to do with x.
    """

    x: Tensor
    condition: dict[str, Tensor] = field(default_factory=dict)


class Memory:
    """What an objective remembers from step to step: here nothing."""

    def stepped(self, world: World) -> None:
        """Called after each update of the weights, in all processes of `world` together."""

    def state(self) -> Mapping[str, Any] | None:
        """What further steps depend on, of tensors that all processes have alike; None for nothing."""
        return None

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a state of a checkpoint; None if it has none."""


def memory_of(objective: Any) -> Memory:
    """The objective itself if it remembers something, as one that is a Memory, too."""
    return objective if isinstance(objective, Memory) else Memory()


class Objective(Protocol):
    """What every objective offers. Its draw may be of any type."""

    def draw(self, batch: Batch, draws: Draws) -> Any:
        """The random numbers of a step. The batch's x has a shape and no values then (it lies on device "meta")."""

    def loss(self, model: Any, batch: Batch, draw: Any) -> Tensor:
        """(batch,): its mean is minimised."""

    def metrics(self, model: Any, batch: Batch, draw: Any) -> dict[str, Tensor]:
        """Other figures of held-out examples, (batch,) each by name, of which the mean is logged as held_out_<name>."""
        return {}
