"""Conditions: the inputs of a model besides x and t, such as a label.

A condition is a mapping from names to tensors of shape (batch, ...), such as {"label": tensor}. A network says which
names it takes in an attribute `conditions`, a tuple of names, and is then called network(x, time, condition); without
that attribute it takes none and is called network(x, time). Some names have a meaning of their own:

    label          the class of each sample, integers from 0 to classes - 1, where `classes` is an attribute of the network.
                   The index `classes` stands for "no label": what the network is told where a label was dropped in training
                   (Ho and Salimans 2021, "Classifier-Free Diffusion Guidance"). Users write label=None for it.
    low_res        a picture that the sample belongs to, small or damaged, (batch, channels, height, width) of any size; one
                   with batch 1 stands for every sample
    low_res_noise  the standard deviation of the noise in low_res (data/degradations.py), in [0, 1); 0 unless given
    guidance       the scale of classifier-free guidance, for a network that was distilled from a guided one (Meng et al.
                   2023). An attribute `guidance` of the network is the range of scales that it knows
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError

Condition = Mapping[str, Tensor]

LABEL, LOW_RES, LOW_RES_NOISE, GUIDANCE = "label", "low_res", "low_res_noise", "guidance"


@dataclass(frozen=True)
class Conditions:
    """The conditions that a model takes, and how they become the input of its network.

    names          that it takes
    classes        the number of labels, if it takes "label" and that is known
    label_dropout  whether it also knows "no label"
    guidance       the lowest and the highest scale, if it takes "guidance"
    """

    names: tuple[str, ...] = ()
    classes: int | None = None
    label_dropout: bool = False
    guidance: tuple[float, float] | None = None

    def checked(self, condition: Mapping[str, Any]) -> dict[str, Tensor | None]:
        """The condition as tensors of any batch, None for "no label"; ArgumentError if the model cannot take it."""
        self._check_names(condition)
        of = {LABEL: self._label, GUIDANCE: self._scale}
        return {name: of[name](value) if name in of else _tensor(name, value) for name, value in condition.items()}

    def of_batch(self, condition: Mapping[str, Tensor | None] | None, x: Tensor) -> dict[str, Tensor]:
        """The condition of each sample of x (batch, *event), complete and on x's device.

        A scalar stands for every sample. Raises ArgumentError if a name is missing or the batch sizes differ.
        """
        given = condition or {}
        self._check_names(given)
        return {name: self._of_batch(name, given.get(name), x) for name in self.names}

    def _check_names(self, names: Mapping[str, Any]) -> None:
        for name in names:
            if name not in self.names:
                takes = f"it takes {', '.join(self.names)}" if self.names else "it takes no condition"
                raise ArgumentError(f"the model cannot be given {name!r}; {takes}", name)

    def _scale(self, value: Any) -> Tensor:
        scale, (low, high) = _tensor(GUIDANCE, value), self.guidance or (-math.inf, math.inf)
        bad = scale[~((scale >= low) & (scale <= high))]
        if bad.numel():
            raise ArgumentError(f"this model was distilled for guidance from {low:g} to {high:g}, got {float(bad[0]):g}",
                                GUIDANCE)
        return scale.float()

    def _label(self, value: Any) -> Tensor | None:
        if value is None:
            if not self.label_dropout:
                raise ArgumentError("label=None means no label, which this model never saw: it was trained without label "
                                    "dropout; give a label", LABEL)
            return None
        label = _tensor(LABEL, value)
        if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool or label.ndim > 1:
            raise ArgumentError(f"label must be an integer or integers of shape (batch,), got {label.dtype} of shape "
                                f"{tuple(label.shape)}", LABEL)
        label = label.long()
        bad = label[(label < 0) if self.classes is None else (label < 0) | (label >= self.classes)]
        if bad.numel():
            allowed = "from 0" if self.classes is None else f"from 0 to {self.classes - 1}"
            raise ArgumentError(f"labels go {allowed}, got {int(bad[0])}", LABEL)
        return label

    def _of_batch(self, name: str, value: Tensor | None, x: Tensor) -> Tensor:
        if value is None:
            if name == LABEL and self.label_dropout and self.classes is not None:
                return torch.full((len(x),), self.classes, device=x.device)
            if name == LOW_RES_NOISE:
                return torch.zeros(len(x), device=x.device)
            raise ArgumentError(f"the model needs a {name}: call model.given({name}=...) and use what that returns", name)
        if value.ndim > 1 and len(value) == 1:      # one picture for every sample
            value = value.expand(len(x), *value.shape[1:])
        if value.ndim and len(value) != len(x):
            raise ArgumentError(f"{name} is for a batch of {len(value)}, x is a batch of {len(x)}; give one {name} for each "
                                "sample, or a scalar for all", name)
        return value.to(x.device) if value.ndim else value.to(x.device).expand(len(x))


def declared(network: Any, label_dropout: bool = False) -> Conditions:
    """The conditions that a network declares; a wrapper such as DistributedDataParallel need not repeat them."""
    while not hasattr(network, "conditions") and hasattr(network, "module"):
        network = network.module
    names: Sequence[str] = getattr(network, "conditions", ())
    scales = getattr(network, "guidance", None) if GUIDANCE in names else None
    return Conditions(tuple(names), getattr(network, "classes", None) if LABEL in names else None, label_dropout, scales)


def blank(network: Any, batch: int, event: Sequence[int]) -> dict[str, Tensor]:
    """Conditions of the shapes and types that a network of examples `event` takes, without values, where the cost of a call
    is counted.
    """
    known = {LABEL: lambda: torch.zeros(batch, dtype=torch.int64), LOW_RES_NOISE: lambda: torch.zeros(batch),
             GUIDANCE: lambda: torch.zeros(batch),
             LOW_RES: lambda: torch.zeros(batch, getattr(network, LOW_RES, event[0]), *event[1:])}
    return {name: known[name]() for name in declared(network).names if name in known}


def _tensor(name: str, value: Any) -> Tensor:
    if value is None:
        raise ArgumentError(f"{name} must be a tensor, got None", name)
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"{name} must be a number or a tensor, got {type(value).__name__}", name) from None
