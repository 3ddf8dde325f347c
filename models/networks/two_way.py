"""The two networks of a bridge, one toward each end, in one module: one optimiser, one average, one checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.conditions import declared
from scorefield.numerics.errors import ArgumentError

SOURCE, TARGET = "source", "target"      # the ends of a bridge, and what its networks go toward


class TwoWay(nn.Module):
    """Two networks of one kind, `to_source` and `to_target`, which share nothing.

    network(x, time, "source") is the output of one, (batch, *event). network(x, times) is that of both, (2, batch, *event),
    for times (2, batch), or (batch,) for both alike. Raises ArgumentError for networks that take conditions.
    """

    def __init__(self, to_source: nn.Module, to_target: nn.Module):
        super().__init__()
        if names := declared(to_source).names:
            raise ArgumentError(f"the networks of a bridge take x and time alone, and these take {', '.join(names)}; leave "
                                "out model.classes, model.guidance and model.low_res", "model.network")
        self.to_source, self.to_target = to_source, to_target

    def forward(self, x: Tensor, time: Tensor, way: str | None = None) -> Tensor:
        if way is not None:
            return (self.to_source if way == SOURCE else self.to_target)(x, time)
        first, second = time if time.ndim == 2 else (time, time)
        return torch.stack([self.to_source(x, first), self.to_target(x, second)])


@dataclass(frozen=True)
class Both:
    """The constructor of a TwoWay, from that of a network: called with the shape of an example and the network's
    settings.
    """

    make: Callable[..., nn.Module]

    def __call__(self, shape: Sequence[int], **settings: Any) -> TwoWay:
        return TwoWay(self.make(shape, **settings), self.make(shape, **settings))
