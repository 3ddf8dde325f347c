"""A data set of some of its classes: what samples of these classes are compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from scorefield.data import Dataset
from scorefield.data.dataset import LABEL, Condition, Split
from scorefield.numerics.errors import ArgumentError


class _Chosen:
    """The examples of a split at some places."""

    def __init__(self, split: Split, places: Tensor, labels: Tensor):
        self.split, self.places, self.condition = split, places, {LABEL: labels[places]}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Condition]:
        return self.split[self.places[index]]


def of_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """The examples of these classes, under the name of the data set; the data set itself if they are all of its classes.

    ArgumentError for a data set without labels, or without an example of these classes in a split.
    """
    if dataset.classes is None:
        raise ArgumentError(f"data set {dataset.name!r} has no labels, so its examples of a class are not known", "label")
    chosen = sorted(set(classes))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < dataset.classes:
        raise ArgumentError(f"data set {dataset.name!r} has the classes 0 .. {dataset.classes - 1}, got label {chosen}",
                            "label")
    if chosen == list(range(dataset.classes)):
        return dataset
    splits: dict[str, Split] = {}
    for name in ("train", "test"):
        split = getattr(dataset, name)
        known = getattr(split, "condition", None) or split[torch.arange(len(split))][1]
        places = torch.isin(known[LABEL], torch.tensor(chosen)).nonzero()[:, 0]
        if not len(places):
            words = ", ".join(dataset.class_names[y] for y in chosen)
            raise ArgumentError(f"data set {dataset.name!r} has no {name} examples of class {words} to compare with",
                                "label")
        splits[name] = _Chosen(split, places, known[LABEL])
    return dataclasses.replace(dataset, train=splits["train"], test=splits["test"])


def compared_with(dataset: Dataset, labels: Sequence[int] | None, classes: int | None) -> Dataset:
    """What samples with these labels of a model's classes are compared with: the examples of the same classes.

    ArgumentError if the data set does not say which those are.
    """
    if labels is None or (dataset.classes is None and len(set(labels)) == classes):
        return dataset
    return of_classes(dataset, labels)


def uneven(dataset: Dataset, labels: Sequence[int]) -> str | None:
    """A line that says so where samples with these labels in turn have the classes in other shares than the training
    examples of these classes: figures then include that difference. None where the shares agree to a twentieth in all.
    """
    condition = getattr(dataset.train, "condition", None)      # what is read from disk is not read for this
    if dataset.classes is None or not condition or LABEL not in condition:
        return None
    chosen = sorted(set(labels))
    there = torch.bincount(condition[LABEL], minlength=dataset.classes)[chosen].double()
    drawn = torch.tensor([list(labels).count(y) for y in chosen]).double()
    there, drawn = there / there.sum(), drawn / drawn.sum()
    if float((there - drawn).abs().sum()) / 2 <= 0.05:
        return None
    most = int((there - drawn).abs().argmax())
    name, share = dataset.class_names[chosen[most]], f"{100 * drawn[most]:.0f} % and {100 * there[most]:.0f} %"
    return (f"the samples have the classes in other shares than the training examples, of {name} {share}; the figures "
            "include that difference")


def classes_of(dataset: Dataset, labels: Sequence[int] | None) -> list[str] | None:
    """The names of the classes whose examples are compared; None if it is all examples."""
    chosen = [] if labels is None or dataset.classes is None else sorted(set(labels))
    return [dataset.class_names[y] for y in chosen] if 0 < len(chosen) < (dataset.classes or 0) else None
