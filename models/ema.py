"""Averages of a network's weights over the updates of a training run.

    average <- average + w (weights - average),  after update n

    EMA       w = 1 - min(decay, (1 + n) / (10 + n)), the usual warm-up, so that the average forgets the random start
    PowerEMA  w = 1 - (1 - 1/n)^(gamma + 1): Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
              Models" (EDM2), section 3.1. The weights of update k then count (k/n)^(gamma + 1) - ((k - 1)/n)^(gamma + 1), a
              power function of k whose width grows with the run: its standard deviation is sigma_rel times n
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.numerics.errors import ArgumentError

WIDEST = 0.28      # sigma_rel at gamma = 0 is 0.2887, and a wider profile prefers the random start


class EMA:
    """average <- decay average + (1 - decay) weights, one fused lerp a step: `EMA(network, 0.9999).update(network)`.

    decay   in [0, 1)
    module  (attribute) the averaged network: same class, evaluation mode, no gradients
    since   (attribute) how many updates the run had had when the average started

    Buffers are copied, not averaged.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ArgumentError(f"EMA decay must lie in [0, 1), got {decay}", "ema_decay")
        self.decay, self.since = decay, 0
        self._calls, self._skipped = 0, torch.zeros((), dtype=torch.int64)
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self._parameters, self._buffers = tuple(self.module.parameters()), list(self.module.buffers())

    @property
    def updates(self) -> int:
        """Updates of the average. Reading it waits for the device if some may have been skipped."""
        return self._calls - int(self._skipped)

    @updates.setter
    def updates(self, number: int) -> None:
        self._calls, self._skipped = number, torch.zeros_like(self._skipped)

    def kept(self, n: Any) -> Any:
        """The share of the average that update n keeps; n is a number, or a tensor in float64."""
        share = (1 + n) / (10 + n)
        return share.clamp(max=self.decay) if isinstance(share, Tensor) else min(self.decay, share)

    @torch.no_grad()
    def update(self, network: nn.Module, skip: Tensor | None = None) -> None:
        """Average the weights in.

        skip  on the device of the weights, 1 where the average must stay as it is and 0 where not; nothing waits for it
        """
        self._calls += 1
        weights = tuple(network.parameters())
        if skip is None:
            torch._foreach_lerp_(self._parameters, weights, 1 - self.kept(self._calls))
        else:
            self._skipped = self._skipped.to(skip.device) + skip.to(torch.int64)
            n = (self._calls - self._skipped).double().clamp(min=1)
            share = ((1 - self.kept(n)) * (1 - skip)).to(weights[0].dtype)
            change = torch._foreach_sub(weights, self._parameters)
            torch._foreach_mul_(change, share)
            torch._foreach_add_(self._parameters, change)
        if self._buffers:
            for mine, theirs in zip(self._buffers, network.buffers(), strict=True):
                mine.copy_(theirs)

    def state(self) -> dict[str, Any]:
        """The averaged weights, of how many updates, and after how many updates of the run the average started."""
        return {"weights": self.module.state_dict(), "updates": self.updates, "since": self.since}

    def restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["weights"])
        self.updates, self.since = state["updates"], state["since"]

    def start(self, network: nn.Module, since: int) -> None:
        """Start from the network's weights of now, after `since` updates of the run."""
        self.module.load_state_dict(network.state_dict())
        self.updates, self.since = 0, since


class PowerEMA(EMA):
    """The average whose profile is a power function of relative standard deviation sigma_rel: `PowerEMA(network, 0.1)`."""

    def __init__(self, network: nn.Module, sigma_rel: float = 0.1):
        self.gamma = gamma_of(sigma_rel)
        super().__init__(network)

    def kept(self, n: Any) -> Any:
        return (1 - 1 / n) ** (self.gamma + 1)


def gamma_of(sigma_rel: float) -> float:
    """The exponent gamma > 0 of the profile k^gamma with sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), the
    standard deviation of k / n (EDM2, equation 123). ArgumentError unless 0.001 <= sigma_rel <= 0.28.

        gamma_of(0.1)      # 6.94
    """
    if not 1e-3 <= sigma_rel <= WIDEST:
        raise ArgumentError(f"sigma_rel of a power-function average must lie in 0.001 .. {WIDEST}, got {sigma_rel}",
                            "averages")
    low, high = 0.0, sigma_rel**-1      # sigma_rel falls from 0.2887 at 0, and is below 1 / gamma
    for _ in range(200):
        middle = (low + high) / 2
        wide = math.sqrt(middle + 1) / ((middle + 2) * math.sqrt(middle + 3)) > sigma_rel
        low, high = (middle, high) if wide else (low, middle)
    return (low + high) / 2


def parse_average(name: str) -> tuple[type[EMA], float]:
    """The class and the number that a name such as "0.999" or "power0.1" means; ArgumentError for another one."""
    try:
        kind, number = (PowerEMA, float(name[5:])) if name.startswith("power") else (EMA, float(name))
    except ValueError:
        raise ArgumentError(f"an average must be a decay such as 0.999, or power and its relative standard deviation such "
                            f"as power0.1; got {name!r}", "averages") from None
    if kind is PowerEMA:
        gamma_of(number)
    elif not 0 <= number < 1:
        raise ArgumentError(f"the decay of an average must lie in [0, 1), got {name}", "averages")
    return kind, number


def averages_of(text: str) -> list[str]:
    """The names in a text such as "0.999, power0.1", each once; ArgumentError for one that means no average."""
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    for name in names:
        parse_average(name)
        if names.count(name) > 1:
            raise ArgumentError(f"the average {name} is named twice", "averages")
    return names


def make_average(network: nn.Module, name: str) -> EMA:
    """The average of that name, which starts from the network's weights: `make_average(network, "power0.1")`."""
    kind, number = parse_average(name)
    return kind(network, number)
