"""Figures of samples, and bits/dim, on a schedule: what they are comes from outside, since training knows no samplers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from scorefield.configs.training import names_of
from scorefield.data.codec import Codec
from scorefield.data.dataset import Dataset
from scorefield.numerics.errors import ArgumentError


class Measures(Protocol):
    """What makes the figures, such as evaluation.Measures()."""

    def require(self, names: Sequence[str], n: int, model: Any, dataset: Dataset, codec: Codec) -> None:
        """ArgumentError unless these figures fit the data and the model, and n samples are enough; before training."""

    def __call__(self, names: Sequence[str], n: int, model: Any, dataset: Dataset, codec: Codec) -> dict[str, float]:
        """The figures by name, of n samples of the model. Names are "bits_per_dim" and those of metrics; without names, the
        figures of samples that fit the data.
        """


def measured_by(settings: Any, measures: Measures | None, model: Any, dataset: Dataset, codec: Codec
                ) -> Callable[[Any], dict[str, float]] | None:
    """The figures of a model as `settings`, a config's section `training`, says; None if there are none.

    ArgumentError if they are asked for and cannot be made.
    """
    if not settings.metrics_every:
        return None
    if measures is None:
        raise ArgumentError("training.metrics_every asks for figures of samples, and nothing is given that makes them; give "
                            "measures=evaluation.Measures()", "training.metrics_every", "measures")
    names, n = names_of(settings.metrics, "training.metrics"), settings.metrics_samples
    measures.require(names, n, model, dataset, codec)
    return lambda model: measures(names, n, model, dataset, codec)
