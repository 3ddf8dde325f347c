"""Optimisers by name: what a step does with the gradient g of the weights w.

    adam   m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2,  w <- w - rate m^ / (sqrt(v^) + eps)
           Kingma and Ba 2015, algorithm 1; m^ and v^ are m and v without the bias of their start at 0
    adamw  the same, and w <- (1 - rate weight_decay) w: Loshchilov and Hutter 2019, algorithm 2
    radam  Adam with the variance of the first steps rectified: Liu et al. 2020, algorithm 2
    nadam  Adam with Nesterov's momentum: Dozat 2016
    sgd    m <- momentum m + g,  w <- w - rate m  (with nesterov: w <- w - rate (g + momentum m))

Weight decay is not for biases and the weights of norms, which set the scale and the place of what they follow. To add an
optimiser, write a class with `build` and add a line to OPTIMIZERS: its fields become fields of the section `training`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option

Groups = list[dict[str, Any]]
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


class OptimizerKind(Protocol):
    """What a class of OPTIMIZERS offers.

    moments  what it keeps for each weight, beside "step"
    """

    moments: ClassVar[tuple[str, ...]]

    def build(self, groups: Groups, device: torch.device) -> torch.optim.Optimizer:
        """The optimiser of these groups of parameters; the rate is set before each step."""


def _require(kind: Any, *fractions: str) -> None:
    """ArgumentError for a number out of range: fractions in [0, 1), eps above 0, weight decay not negative."""
    for name in fractions:
        if not 0 <= getattr(kind, name) < 1:
            raise ArgumentError(f"{name} must lie in [0, 1), got {getattr(kind, name)}", name)
    if not 0 < getattr(kind, "adam_eps", 1.0) < float("inf"):
        raise ArgumentError(f"adam_eps must be above 0, got {kind.adam_eps}", "adam_eps")
    if not 0 <= getattr(kind, "weight_decay", 0.0) < float("inf"):
        raise ArgumentError(f"weight_decay must not be negative, got {kind.weight_decay}", "weight_decay")


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam, one fused kernel a step: `Adam(beta2=0.99).build(groups_of(network, 0.0), device)`."""

    beta1: float = option(0.9, "Adam's decay of the mean of gradients")
    beta2: float = option(0.999, "Adam's decay of the mean of squared gradients")
    adam_eps: float = option(1e-8, "Adam's epsilon")
    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def __post_init__(self) -> None:
        _require(self, "beta1", "beta2")

    def build(self, groups: Groups, device: torch.device) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, lr=0.0, betas=(self.beta1, self.beta2), eps=self.adam_eps,
                                fused=device.type != "mps")


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, one fused kernel a step."""

    weight_decay: float = option(0.01, "share of the weights that a step at learning rate 1 takes away")

    def build(self, groups: Groups, device: torch.device) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=0.0, betas=(self.beta1, self.beta2), eps=self.adam_eps,
                                 weight_decay=0.0, fused=device.type != "mps")


class RAdam(Adam):
    """Rectified Adam, which needs no warm-up. torch has no fused kernel for it."""

    def build(self, groups: Groups, device: torch.device) -> torch.optim.Optimizer:
        return torch.optim.RAdam(groups, lr=0.0, betas=(self.beta1, self.beta2), eps=self.adam_eps)


class NAdam(Adam):
    """Adam with Nesterov's momentum. torch has no fused kernel for it."""

    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq", "mu_product")

    def build(self, groups: Groups, device: torch.device) -> torch.optim.Optimizer:
        return torch.optim.NAdam(groups, lr=0.0, betas=(self.beta1, self.beta2), eps=self.adam_eps)


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum, one fused kernel a step."""

    momentum: float = option(0.9, "decay of the sum of gradients")
    nesterov: bool = option(False, "look ahead along the momentum")
    weight_decay: float = option(0.0, "its product with the weights is added to their gradient")

    @property
    def moments(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def __post_init__(self) -> None:
        _require(self, "momentum")
        if self.nesterov and not self.momentum:
            raise ArgumentError("nesterov needs momentum above 0, got momentum=0", "nesterov", "momentum")

    def build(self, groups: Groups, device: torch.device) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=self.momentum, nesterov=self.nesterov,
                                    fused=device.type != "mps")
        if self.momentum:      # torch leaves it without values where a mask skips the first step
            for parameter in _parameters(optimizer):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer


OPTIMIZERS: dict[str, Any] = {"adam": Adam, "adamw": AdamW, "radam": RAdam, "nadam": NAdam, "sgd": SGD}


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def groups_of(network: nn.Module, weight_decay: float) -> Groups:
    """The parameters of a network: all in one group without weight decay, else those that decay and those that do not.

    Vectors, biases and the weights of norms do not decay.
    """
    parameters = list(network.parameters())
    if not weight_decay:
        return [{"params": parameters}]
    spared = {id(parameter) for module in network.modules() for name, parameter in module.named_parameters(recurse=False)
              if parameter.ndim < 2 or name == "bias" or isinstance(module, NORMS)}
    groups = [{"params": [p for p in parameters if id(p) not in spared], "weight_decay": weight_decay},
              {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def state_of(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The optimiser's state by the number of a parameter among `parameters`, whatever its groups are: so a run may go on
    with other groups.
    """
    number, state = {id(parameter): i for i, parameter in enumerate(parameters)}, optimizer.state_dict()
    order = [number[id(parameter)] for parameter in _parameters(optimizer)]
    return {"state": {order[i]: entry for i, entry in sorted(state["state"].items(), key=lambda item: order[item[0]])},
            "param_groups": [group | {"params": [order[i] for i in group["params"]]} for group in state["param_groups"]]}


def restore_state(optimizer: torch.optim.Optimizer, kind: OptimizerKind, parameters: Sequence[Tensor],
                  state: dict[str, Any]) -> bool:
    """Load what `state_of` gave; settings such as beta1 stay those of the optimiser.

    Returns False, and leaves the optimiser at its start, if the state is that of one which keeps other moments.
    """
    entries = state["state"]
    if any(not set(kind.moments) <= set(entry) for entry in entries.values()):
        return False
    own = optimizer.state_dict()
    number = {id(parameter): i for i, parameter in enumerate(parameters)}
    order = [number[id(parameter)] for parameter in _parameters(optimizer)]
    optimizer.load_state_dict({"state": {i: entries[n] for i, n in enumerate(order) if n in entries},
                               "param_groups": own["param_groups"]})
    for parameter, entry in optimizer.state.items():      # fused kernels go by memory, whatever the strides
        for moment in kind.moments:
            if entry[moment].shape == parameter.shape:
                entry[moment] = torch.empty_like(parameter).copy_(entry[moment])
    return True
