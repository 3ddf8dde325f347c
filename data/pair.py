"""Two data sets as the ends of a bridge: a source, and a target whose examples have the same shape and levels.

Nothing belongs together: training draws the examples of both ends independently. Labels are left out, since no example of
one end has that of another. Pictures of other levels become bytes, and `side` brings both to squares of one size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefield.data.dataset import Condition, Dataset, Examples, Split
from scorefield.numerics.errors import ArgumentError

BYTES = 256      # levels of pictures that are resized, or whose data sets have different ones
_ROWS = 4096     # pictures that are resized at a time


class Resized:
    """A split of pictures of `levels` as bytes, squares of `side` pixels (None: their own size), without conditions."""

    condition: Condition = {}

    def __init__(self, split: Split, levels: int, side: int | None):
        self.split, self.levels, self.side = split, levels, side

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Condition]:
        return resized(self.split[index][0], self.levels, self.side), {}


class Bare:
    """A split without its conditions."""

    condition: Condition = {}

    def __init__(self, split: Split):
        self.split, self.in_memory = split, getattr(split, "in_memory", False)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Condition]:
        return self.split[index][0], {}


def resized(k: Tensor, levels: int, side: int | None) -> Tensor:
    """Pictures k (B, channels, height, width) of integer levels as bytes, (B, channels, side, side): bilinear, and where
    they shrink with an antialiasing filter; None keeps their size.
    """
    unit = k.float() / (levels - 1)
    if side is not None and k.shape[2:] != (side, side):
        unit = F.interpolate(unit, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return (unit * (BYTES - 1)).round().clamp(0, BYTES - 1).to(torch.uint8)


def paired(source: Dataset, target: Dataset, side: int | None = None) -> Dataset:
    """The source, with the target as its attribute.

        dataset = paired(load_dataset({"dataset": "digits"}), load_dataset({"dataset": "fashion_mnist"}), side=8)

    side  height and width that the pictures of both get; None: those that they have

    Raises ArgumentError for examples of different shapes, for pictures beside points, and for data that are standardised.
    """
    for dataset, name in ((source, "source"), (target, "target")):
        if dataset.low_res is not None or dataset.target is not None:
            raise ArgumentError(f"the {name} {dataset.name!r} of a pair must be a plain data set, without a degradation and "
                                "no pair itself", name)
        if dataset.standard is not None and dataset.standard.offset != 0:
            raise ArgumentError(f"the {name} {dataset.name!r} is standardised by its own mean and standard deviation, and "
                                "the ends of a bridge share their units; give array:standardise=false", name)
        if side is not None and (dataset.levels is None or len(dataset.shape) != 3):
            raise ArgumentError(f"side is for pictures, and the {name} {dataset.name!r} has examples of shape "
                                f"{dataset.shape}", "side", name)
    if side is not None and not 1 <= side <= 4096:
        raise ArgumentError(f"side must lie in 1 .. 4096, got {side}", "side")
    if (source.levels is None) != (target.levels is None):
        raise ArgumentError(f"the source {source.name!r} has {source.levels or 'no'} levels and the target {target.name!r} "
                            f"{target.levels or 'none'}; a bridge joins pictures with pictures, or points with points",
                            "source", "target")
    if source.levels != target.levels or side is not None:
        source, target = (_as_bytes(dataset, side) for dataset in (source, target))
    if source.shape != target.shape:
        hint = "; give both pictures a side" if source.levels is not None and source.shape[0] == target.shape[0] else ""
        raise ArgumentError(f"the source {source.name!r} has examples of shape {source.shape} and the target "
                            f"{target.name!r} of {target.shape}; the ends of a bridge must have one shape{hint}", "source",
                            "target", *(("side",) if hint else ()))
    return dataclasses.replace(_bare(source), target=_bare(target), flip=False)


def _as_bytes(dataset: Dataset, side: int | None) -> Dataset:
    sides: Any = dataset.shape[1:] if side is None else (side, side)
    name = dataset.name if sides == dataset.shape[1:] else f"{dataset.name} {side}x{side}"
    assert dataset.levels is not None
    train, test = (_eager(split, dataset.levels, side) for split in (dataset.train, dataset.test))
    return dataclasses.replace(dataset, name=name, train=train, test=test, shape=(dataset.shape[0], *sides), levels=BYTES,
                               class_names=(), unlabelled="")


def _eager(split: Split, levels: int, side: int | None) -> Split:
    """What lies in memory is resized once."""
    if not getattr(split, "in_memory", False):
        return Resized(split, levels, side)
    parts = [resized(split[rows][0], levels, side) for rows in torch.arange(len(split)).split(_ROWS)]
    return Examples(torch.cat(parts))


def _bare(dataset: Dataset) -> Dataset:
    train, test = (split if isinstance(split, Resized) or not getattr(split, "condition", True) else Bare(split)
                   for split in (dataset.train, dataset.test))
    return dataclasses.replace(dataset, train=train, test=test, class_names=(),
                               unlabelled="a pair of data sets leaves labels out")
