"""The conditions of examples, such as low_res, bound to a model that takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scorefield.data import Dataset
from scorefield.models import ScoreModel
from scorefield.models.conditions import LABEL, LOW_RES
from scorefield.models.score_model import Given
from scorefield.numerics.errors import ArgumentError


def bound_names(model: ScoreModel) -> set[str]:
    """The conditions that are bound to a model already."""
    return {name for part in model.modules() if isinstance(part, Given) for name in part.names}


def unbound(model: ScoreModel, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the conditions of examples those that the model takes and has not, but for labels, of which a user decides."""
    names = set(model.takes.names) - bound_names(model) - {LABEL}
    return {name: condition[name] for name in sorted(names) if name in condition}


def given_of(model: ScoreModel, condition: Mapping[str, Tensor], device: Any) -> ScoreModel:
    """The model with these conditions bound; itself if there are none."""
    return model.given(**{name: value.to(device) for name, value in condition.items()}) if condition else model


def require_conditions(model: ScoreModel, examples: Any, name: str) -> None:
    """ArgumentError if the model needs low_res and the examples of data set `name` have none."""
    if LOW_RES in model.takes.names and LOW_RES not in bound_names(model) and not hasattr(examples, "made"):
        if LOW_RES not in examples[torch.arange(1)][1]:
            raise ArgumentError(f"the model needs low_res, and the examples of data set {name!r} have none; set "
                                "data.degradation, or bind it with model.given(low_res=...)", "data.degradation")


def of_held_out(model: ScoreModel | Callable[[range], ScoreModel], dataset: Dataset, device: Any
                ) -> ScoreModel | Callable[[range], ScoreModel]:
    """The model of the samples with some numbers, of which sample i is given the low_res of held-out example i mod their
    number; the model itself if it needs none.
    """
    first = model if isinstance(model, ScoreModel) else model(range(1))
    if LOW_RES not in first.takes.names or LOW_RES in bound_names(first):
        return model
    require_conditions(first, dataset.test, dataset.name)

    def of_batch(batch: range) -> ScoreModel:
        own = model if isinstance(model, ScoreModel) else model(batch)
        return given_of(own, unbound(own, dataset.test[torch.tensor(batch) % len(dataset.test)][1]), device)

    return of_batch
