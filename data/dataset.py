"""One contract for every data set: examples by index, with their conditions, in a training and a held-out split.

An item of a split is a batch: (data, condition). The codec encodes `data`. `condition` holds what a model may be given
about the examples: a mapping from names such as "label" to tensors (batch, ...). It may be empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError

Condition = dict[str, Tensor]


class Split(Protocol):
    """Examples by index: [int64 indices (B,)] -> data (B, *shape), uint8 or float32, and their condition."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Condition]: ...


class Indexed(Protocol):
    """The data alone, by index: a tensor, or pictures that are decoded when they are indexed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Examples:
    """A split from its data and condition tensors (N, ...). ArgumentError unless they have as many examples as the data."""

    data: Indexed
    condition: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensor in self.condition.items():
            if len(tensor) != len(self.data):
                raise ArgumentError(f"there are {len(self.data)} examples and {len(tensor)} of condition {name!r}", name)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Condition]:
        return self.data[index], {name: tensor[index] for name, tensor in self.condition.items()}

    @property
    def in_memory(self) -> bool:
        """Whether a batch is in memory and needs no reading from disk."""
        return isinstance(self.data, Tensor)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and held-out examples of one shape. A tensor given as a split becomes a split without conditions.

    shape        (channels, height, width) or (D,)
    levels       L if the examples are uint8 with elements 0 .. L-1; None for float32 points
    flip         whether training mirrors examples left to right at random
    class_names  names of the classes "label" = 0, 1, ..., if the examples have labels
    """

    name: str
    train: Split
    test: Split
    shape: tuple[int, ...]
    levels: int | None
    flip: bool = False
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            if isinstance(examples := getattr(self, split), Tensor):
                object.__setattr__(self, split, Examples(examples))


def from_arrays(x_train: Any, x_test: Any = None, y_train: Any = None, y_test: Any = None, levels: int | None = None,
                flip: bool = False, class_names: Sequence[str] = (), name: str = "arrays") -> Dataset:
    """A data set from tensors or arrays.

        dataset = from_arrays(pictures, y_train=labels)      # uint8 (N, channels, height, width), int (N,)

    x_train, x_test  (N, *shape): integers 0 .. levels-1 (256 levels by default), or floats, which are points. Without
                     x_test, the first of every ten examples is held out
    y_train, y_test  labels (N,), or a mapping from names of conditions to arrays (N, ...)

    Raises ArgumentError for arrays that are empty, not numbers, not finite, out of range, or of another shape or length.
    """
    x, y = _data(x_train, "x_train", levels), _conditions(y_train, "y_train")
    if x_test is None:
        if y_test is not None:
            raise ArgumentError("y_test is given without x_test; give both or neither", "y_test")
        if len(x) < 2:
            raise ArgumentError(f"x_train needs at least 2 examples, since one is held out; got {len(x)}", "x_train")
        train, test = _held_out_each_tenth(Examples(x, y))
    else:
        train = Examples(x, y)
        test = Examples(_data(x_test, "x_test", levels), _conditions(y_test, "y_test"))
    shape = tuple(x.shape[1:])
    if (other := tuple(test.data[torch.arange(1)].shape[1:])) != shape:
        raise ArgumentError(f"x_train has examples of shape {shape}, but x_test of shape {other}", "x_train", "x_test")
    integers = x.dtype == torch.uint8
    if flip and not integers:
        raise ArgumentError("points cannot be mirrored; leave out flip", "flip")
    return Dataset(name, train, test, shape, (levels or 256) if integers else None, flip, tuple(class_names))


def as_dataset(data: Any) -> Dataset:
    """A Dataset unchanged; a tensor or an array as `from_arrays` reads it."""
    return data if isinstance(data, Dataset) else from_arrays(data)


def _held_out_each_tenth(examples: Examples) -> tuple[Examples, Examples]:
    held_out = torch.arange(len(examples)) % 10 == 0
    (train, train_condition), (test, test_condition) = (examples[chosen.nonzero()[:, 0]] for chosen in (~held_out, held_out))
    return Examples(train, train_condition), Examples(test, test_condition)


def _tensor(values: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(values if isinstance(values, Tensor) else np.asarray(values)).detach().cpu()
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name} must be a tensor or an array of numbers ({error})", name) from None


def _data(values: Any, name: str, levels: int | None) -> Tensor:
    x = _tensor(values, name)
    if x.ndim < 2 or not len(x) or not x[0].numel():
        raise ArgumentError(f"{name} must be (N, *shape) with at least one example, got shape {tuple(x.shape)}", name)
    if x.is_floating_point():
        if levels is not None:
            raise ArgumentError(f"{name} holds floats, which are points and have no levels; give integers, or leave out "
                                "levels", name, "levels")
        if not bool(x.isfinite().all()):
            raise ArgumentError(f"{name} holds numbers that are not finite", name)
        return x.float()
    if x.dtype == torch.bool or x.is_complex():
        raise ArgumentError(f"{name} must hold integers or floats, got {x.dtype}", name)
    top = (levels or 256) - 1
    if levels is not None and not 2 <= levels <= 256:
        raise ArgumentError(f"levels must lie between 2 and 256, got {levels}", "levels")
    if int(x.min()) < 0 or int(x.max()) > top:
        raise ArgumentError(f"{name} must hold integers 0 .. {top}, got {int(x.min())} to {int(x.max())}", name)
    return x.to(torch.uint8)


def _conditions(values: Any, name: str) -> Condition:
    if values is None:
        return {}
    named = values if isinstance(values, Mapping) else {"label": values}
    tensors = {str(key): _tensor(value, name) for key, value in named.items()}
    if "label" in tensors:
        if tensors["label"].ndim != 1 or tensors["label"].is_floating_point():
            raise ArgumentError(f"{name} must hold a whole number for each example, got {tensors['label'].dtype} of shape "
                                f"{tuple(tensors['label'].shape)}", name)
        tensors["label"] = tensors["label"].long()
    return tensors
