"""One contract for every data set: examples by index, with their conditions, in a training and a held-out split.

An item of a split is a batch: (data, condition). The codec encodes `data`. `condition` holds what a model may be given
about the examples: a mapping from names such as "label" to tensors (batch, ...). It may be empty.

A "label" is the number of a class, 0 .. classes-1, int64. The classes have names; unless they are given, these are "0", "1",
... up to the largest label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scorefield.data.codec import Points
from scorefield.numerics.errors import ArgumentError, renamed

if TYPE_CHECKING:
    from scorefield.data.degradations import LowRes

Condition = dict[str, Tensor]

LABEL = "label"
MOST_UNNAMED = 100_000      # classes without names: labels above are hardly meant as 0 .. classes-1


class Split(Protocol):
    """Examples by index: [int64 indices (B,)] -> data (B, *shape), uint8 or float32, and their condition.

    A split may have an attribute `condition`, the conditions of all its examples. Its labels can then be checked, and
    counted, without reading an example. A split with labels and without that attribute needs a data set with class_names.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Condition]: ...


class Indexed(Protocol):
    """The data alone, by index: a tensor, or pictures that are decoded when they are indexed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Examples:
    """A split from its data and condition tensors (N, ...). ArgumentError unless they have as many examples as the data.

    Labels of any type of integers become int64.
    """

    data: Indexed
    condition: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensor in self.condition.items():
            if len(tensor) != len(self.data):
                raise ArgumentError(f"there are {len(self.data)} examples and {len(tensor)} of condition {name!r}", name)
        if LABEL in self.condition:
            object.__setattr__(self, "condition", {**self.condition, LABEL: _whole(self.condition[LABEL], LABEL)})

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Condition]:
        data = self.data.index_select(0, index) if isinstance(self.data, Tensor) else self.data[index]      # 10 times faster
        return data, {name: tensor[index] for name, tensor in self.condition.items()}

    @property
    def in_memory(self) -> bool:
        """Whether a batch is in memory and needs no reading from disk."""
        return isinstance(self.data, Tensor)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and held-out examples of one shape. A tensor given as a split becomes a split without conditions.

    shape        (channels, height, width), (channels, length) or (D,)
    levels       L if the examples are uint8 with elements 0 .. L-1; None for floats: points, tables, series, pictures
    flip         whether training mirrors examples left to right at random
    class_names  names of the classes "label" = 0, 1, ..., if the examples have labels; "0", "1", ... unless given
    unlabelled   why the examples have no labels, where a user may expect some; for messages
    notes        lines for the user: what was read and how it was understood, what was left out and why
    standard     the codec of data without levels, if they are standardised or have names of columns; a run keeps it
    low_res      how the examples' condition low_res is made (data/degradations.py), if they have one
    target       the data set at the other end of a bridge (data/pair.py), whose examples have the same shape and levels

    Raises ArgumentError for a label that is no class, naming the example and the label; for names that are not distinct;
    and for names of examples without labels.
    """

    name: str
    train: Split
    test: Split
    shape: tuple[int, ...]
    levels: int | None
    flip: bool = False
    class_names: tuple[str, ...] = ()
    unlabelled: str = ""
    notes: tuple[str, ...] = ()
    standard: Points | None = None
    low_res: LowRes | None = None
    target: Dataset | None = None

    def __post_init__(self) -> None:
        if self.standard is not None:
            self.standard.require_shape(self.shape, self.levels)
        for split in ("train", "test"):
            if isinstance(examples := getattr(self, split), Tensor):
                object.__setattr__(self, split, Examples(examples))
        known = {name: condition for name in ("train", "test")
                 if (condition := getattr(getattr(self, name), "condition", None)) is not None}
        labels = {name: condition[LABEL] for name, condition in known.items() if LABEL in condition}
        if self.class_names and not labels and len(known) == 2:
            raise ArgumentError(f"class_names are given, but the examples of {self.name!r} have no labels", "class_names")
        names = _names(self.class_names, {f"{self.name}, {split}": label for split, label in labels.items()}, "class_names")
        object.__setattr__(self, "class_names", names)

    @property
    def classes(self) -> int | None:
        """The number of classes, or None where the examples have no labels. It reads no example."""
        return len(self.class_names) or None


def from_arrays(x_train: Any, x_test: Any = None, y_train: Any = None, y_test: Any = None, levels: int | None = None,
                flip: bool = False, class_names: Sequence[str] = (), name: str = "arrays", standardise: bool = False,
                columns: Sequence[str] = ()) -> Dataset:
    """A data set from tensors or arrays.

        dataset = from_arrays(pictures, y_train=labels)      # uint8 (N, channels, height, width), int (N,)

    x_train, x_test  (N, *shape): integers 0 .. levels-1 (256 levels by default), or floats, which are points. Without
                     x_test, the first of every ten examples is held out
    y_train, y_test  labels (N,), or a mapping from names of conditions to arrays (N, ...)
    class_names      one for each class, so labels are 0 .. len(class_names)-1. By default the classes are "0", "1", ... up
                     to the largest label in y_train
    standardise      whether floats get mean 0 and standard deviation 1 for the model, each entry of the first axis of an
                     example: a column of a table, a channel of series and pictures. Samples come back in the data's units
    columns          names of the columns of a table

    Raises ArgumentError for arrays that are empty, not numbers, not finite, out of range, or of another shape or length,
    and for a label that is no class; it names the example.
    """
    x, y = _data(x_train, "x_train", levels, standardise), _conditions(y_train, "y_train")
    names = _names(class_names, {"y_train": y[LABEL]} if LABEL in y else {}, "y_train")
    if class_names and LABEL not in y:
        raise ArgumentError("class_names are the names of labels; give labels as y_train, or leave out class_names",
                            "class_names", "y_train")
    if x_test is None:
        if y_test is not None:
            raise ArgumentError("y_test is given without x_test; give both or neither", "y_test")
        if len(x) < 2:
            raise ArgumentError(f"x_train needs at least 2 examples, since one is held out; got {len(x)}", "x_train")
        train, test = _held_out_each_tenth(Examples(x, y))
    else:
        train = Examples(x, y)
        test = Examples(_data(x_test, "x_test", levels, standardise), _conditions(y_test, "y_test"))
        if LABEL in test.condition and LABEL in y:
            require_classes(test.condition[LABEL], len(names), "y_test", "y_test",
                             "" if class_names else ", as in y_train; class_names may name more")
    shape = tuple(x.shape[1:])
    if (other := tuple(test.data[torch.arange(1)].shape[1:])) != shape:
        raise ArgumentError(f"x_train has examples of shape {shape}, but x_test of shape {other}", "x_train", "x_test")
    integers = x.dtype == torch.uint8
    if flip and len(shape) != 3:
        raise ArgumentError(f"only pictures can be mirrored, not examples of shape {shape}; leave out flip", "flip")
    if integers and (standardise or columns):
        raise ArgumentError("x_train holds integers, which are levels of pictures; to standardise numbers, give floats",
                            "standardise")
    standard = Points(columns=tuple(columns)) if columns else None
    if standardise:
        with renamed(names={"data": "x_train"}):
            standard = Points.standardising(train.data[torch.arange(len(train))], columns)
        train, test = (Examples(split.data[torch.arange(len(split))].to(standard.dtype), split.condition)
                       for split in (train, test))
    return Dataset(name, train, test, shape, (levels or 256) if integers else None, flip, names, standard=standard)


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


def _data(values: Any, name: str, levels: int | None, precise: bool = False) -> Tensor:
    x = _tensor(values, name)
    if x.ndim < 2 or not len(x) or not x[0].numel():
        raise ArgumentError(f"{name} must be (N, *shape) with at least one example, got shape {tuple(x.shape)}", name)
    if x.is_floating_point():
        if levels is not None:
            raise ArgumentError(f"{name} holds floats, which are points and have no levels; give integers, or leave out "
                                "levels", name, "levels")
        if not bool(x.isfinite().all()):
            raise ArgumentError(f"{name} holds numbers that are not finite", name)
        if not precise and bool(x.float().isinf().any()):
            raise ArgumentError(f"{name} holds {float(x.abs().max()):g}, which float32 does not hold; standardise the data",
                                name)
        return x if precise else x.float()
    if x.dtype == torch.bool or x.is_complex():
        raise ArgumentError(f"{name} must hold integers or floats, got {x.dtype}", name)
    top = (levels or 256) - 1
    if levels is not None and not 2 <= levels <= 256:
        raise ArgumentError(f"levels must lie between 2 and 256, got {levels}", "levels")
    if int(x.min()) < 0 or int(x.max()) > top:
        raise ArgumentError(f"{name} holds integers {int(x.min())} to {int(x.max())}, and levels are 0 .. {top}; scale them "
                            "to these, as uint8, or give floats, which are numbers without levels", name)
    return x.to(torch.uint8)


def _conditions(values: Any, name: str) -> Condition:
    if values is None:
        return {}
    named = values if isinstance(values, Mapping) else {"label": values}
    tensors = {str(key): _tensor(value, name) for key, value in named.items()}
    if LABEL in tensors:
        tensors[LABEL] = _whole(tensors[LABEL], name)
    return tensors


def _whole(label: Tensor, argument: str) -> Tensor:
    """Labels as int64 (N,); ArgumentError unless they are a whole number for each example."""
    if label.ndim != 1 or label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise ArgumentError(f"{argument} must hold a whole number for each example, got {label.dtype} of shape "
                            f"{tuple(label.shape)}", argument)
    return label.long()


def _names(given: Sequence[str], labels: Mapping[str, Tensor], argument: str) -> tuple[str, ...]:
    """The names of the classes: those that are given, else "0", "1", ... up to the largest of the labels.

    labels  of splits, by the split's name for messages
    """
    if isinstance(given, str) or not all(isinstance(name, str) and name for name in given):
        raise ArgumentError(f"class_names must be a list of names, one for each class, got {given!r}", "class_names")
    if len(set(given)) < len(given):
        twice = next(name for i, name in enumerate(given) if name in given[:i])
        raise ArgumentError(f"class_names must differ, but {twice!r} is there twice", "class_names")
    top = max((int(label.max()) for label in labels.values() if len(label)), default=-1)
    if not given and top >= MOST_UNNAMED:
        raise ArgumentError(f"{', '.join(labels)}: the largest label is {top}, which makes {top + 1} classes; number the "
                            "classes from 0 without gaps, or give class_names", argument)
    for name, label in labels.items():
        require_classes(label, len(given) or top + 1, name, argument,
                         f", the {len(given)} classes that class_names names" if given else "")
    return tuple(given) or tuple(map(str, range(top + 1)))


def require_classes(label: Tensor, classes: int, name: str, argument: str, why: str = "", numbers: Tensor | None = None
                    ) -> None:
    """Raise ArgumentError unless labels (N,) are 0 .. classes-1.

    name      of the examples, for the message
    argument  that gave the labels
    why       whence the number of classes, for the message
    numbers   of the examples, (N,), for the message; their places unless given
    """
    outside = (label < 0) | (label >= classes)
    if bool(outside.any()):
        i = int(outside.nonzero()[0])
        allowed = f"0 .. {classes - 1}" if classes > 0 else "0 or more"
        example = i if numbers is None else int(numbers[i])
        raise ArgumentError(f"{name}: example {example} has label {int(label[i])}; labels are {allowed}{why}", argument)
