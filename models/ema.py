"""Exponential moving average of a network's weights."""

import copy

import torch
from torch import Tensor, nn

from scorefield.numerics.errors import ArgumentError


class EMA:
    """shadow <- decay shadow + (1 - decay) weights, one fused lerp a step.

    decay   in [0, 1); after n updates the decay in force is min(decay, (1 + n) / (10 + n)), the usual warm-up, so
            that the average forgets the random start
    module  (attribute) the averaged network: same class, evaluation mode, no gradients

    Buffers are copied, not averaged.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ArgumentError(f"EMA decay must lie in [0, 1), got {decay}", "ema_decay")
        self.decay, self.updates = decay, 0
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self._parameters, self._buffers = tuple(self.module.parameters()), list(self.module.buffers())

    @torch.no_grad()
    def update(self, network: nn.Module, share: Tensor | None = None) -> None:
        """Average the weights of the network as they are. share: 0 on the device leaves the average as it is, 1 does not."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        if share is None:
            torch._foreach_lerp_(self._parameters, tuple(network.parameters()), 1 - decay)
        else:
            change = torch._foreach_sub(tuple(network.parameters()), self._parameters)
            torch._foreach_mul_(change, (1 - decay) * share)
            torch._foreach_add_(self._parameters, change)
        if self._buffers:
            for mine, theirs in zip(self._buffers, network.buffers(), strict=True):
                mine.copy_(theirs)
