"""Whether a data set has what a model is told of its examples, such as their labels: asked before anything is written."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from scorefield.checkpoints.latents import codec_of
from scorefield.data.dataset import LABEL, Condition, Dataset, Split, require_classes
from scorefield.models.build import build_denoiser
from scorefield.models.conditions import GUIDANCE, LOW_RES, LOW_RES_NOISE
from scorefield.numerics.errors import ArgumentError
from scorefield.training.objectives import Bridging, Classification, Objective, build_objective


def require_fit(config: ConfigDict, dataset: Dataset) -> None:
    """`require_conditions` for the model of a config, of which it builds an outline without weights."""
    codec = codec_of(config.data, dataset)
    with torch.device("meta"):
        model = build_denoiser(config, codec.event(dataset.shape))
    require_conditions(model, build_objective(model, config.training, codec), config, dataset)


def require_conditions(model: Any, objective: Objective, config: ConfigDict, dataset: Dataset) -> Dataset:
    """The data set, which has the conditions and the classes that training needs; ArgumentError if it has not.

    A score model may have more classes than the data, a classifier only as many. The labels of a split that does not hold
    them in memory are checked whenever it is read.
    """
    classifies = isinstance(objective, Classification)
    if isinstance(objective, Bridging) != (dataset.target is not None):
        raise ArgumentError(f"data set {dataset.name!r} is {'a pair' if dataset.target is not None else 'one data set'}; "
                            "a bridge (training.objective=dsbm or dsb) needs data.dataset=pair, and other objectives one "
                            "data set", "data.dataset", "training.objective")
    needed = {*model.takes.names, *([LABEL] if classifies else ())} - {GUIDANCE}      # which the objective draws
    classes = config.model.get("classes") if classifies else model.takes.classes
    for split in ("train", "test"):
        for name in sorted(needed - set(_condition(getattr(dataset, split)))):
            raise _missing(name, split, classifies, classes, dataset)
    _require_low_res(model, dataset)
    if LABEL not in needed or classes is None:
        return dataset
    if dataset.classes is None:
        raise ArgumentError(f"data set {dataset.name!r} has labels, but does not say how many classes; give its class_names",
                            "data.dataset")
    if dataset.classes > classes or (classifies and dataset.classes != classes):
        raise ArgumentError(f"data set {dataset.name!r} has {dataset.classes} classes, but model.classes is {classes}; set "
                            f"model.classes to {dataset.classes}", "model.classes")
    train, test = (split if hasattr(split, "condition") else CheckedLabels(split, classes, dataset.name)
                   for split in (dataset.train, dataset.test))
    return dataclasses.replace(dataset, train=train, test=test)


def _condition(split: Split) -> Condition:
    """The conditions of a split by name, of one example if it does not hold them all in memory."""
    held = hasattr(split, "condition") and not hasattr(split, "made")
    return split.condition if held else split[torch.arange(1)][1]      # type: ignore[attr-defined]


def _require_low_res(model: Any, dataset: Dataset) -> None:
    """ArgumentError unless the model takes the low_res that the data have, with its channels and its noise."""
    rule, takes = dataset.low_res, model.takes.names
    if rule is None:
        return
    channels = getattr(model.network, LOW_RES, rule.event[0] if LOW_RES in takes else 0)
    if channels != rule.event[0]:
        raise ArgumentError(f"degradation {rule.text!r} makes a low_res of {rule.event[0]} channels, and the model takes "
                            f"one of {channels or 'none'}; set model.low_res to {rule.event[0]}", "model.low_res",
                            "data.degradation")
    if bool(rule.noise) != (LOW_RES_NOISE in takes):
        raise ArgumentError(f"data.low_res_noise is {rule.noise:g}, and the model is {'not ' * bool(rule.noise)}told the "
                            f"noise of low_res; set model.low_res_noise={'true' if rule.noise else 'false'}, or "
                            f"data.low_res_noise {'to 0' if rule.noise else 'above 0'}", "model.low_res_noise",
                            "data.low_res_noise")


def _missing(name: str, split: str, classifies: bool, classes: int | None, dataset: Dataset) -> ArgumentError:
    needs = "a classifier needs" if classifies else "the model takes"
    if name in (LOW_RES, LOW_RES_NOISE):
        set_ = "data.degradation, such as downsample:factor=2" if name == LOW_RES else "data.low_res_noise above 0"
        return ArgumentError(f"{needs} {name}, and the examples of data set {dataset.name!r} have none; set {set_}, or "
                             f"leave out model.{name}", f"model.{name}", "data.degradation")
    if name != LABEL:
        return ArgumentError(f"{needs} the condition {name!r}, and the examples of data set {dataset.name!r} have no such "
                             "condition", "data.dataset")
    if split == "test" and LABEL in _condition(dataset.train):
        return ArgumentError(f"{needs} labels, and of data set {dataset.name!r} only the training examples have labels; "
                             "give the held-out ones theirs, too", "data.dataset")
    why = f": {dataset.unlabelled}" if dataset.unlabelled else ""
    if classifies:
        return ArgumentError(f"{needs} labels, and the examples of data set {dataset.name!r} have none{why}; choose data "
                             "with labels", "data.dataset")
    return ArgumentError(f"{needs} labels of {classes or 'some'} classes, and the examples of data set {dataset.name!r} "
                         f"have none{why}; choose data with labels, or a model without classes", "model.classes",
                         "data.dataset")


class CheckedLabels:
    """A split that raises ArgumentError where it gives a label outside 0 .. classes-1, which the model would mistake."""

    def __init__(self, split: Split, classes: int, name: str):
        self.split, self.classes, self.name = split, classes, name
        self.in_memory = getattr(split, "in_memory", False)
        if hasattr(split, "made"):
            self.made = split.made

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Condition]:
        data, condition = self.split[index]
        require_classes(condition[LABEL], self.classes, self.name, "data.dataset", numbers=index)
        return data, condition
