"""Figures of a model while it trains: of its samples, and bits/dim of held-out examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scorefield.data import Codec, Dataset
from scorefield.evaluation.evaluate import (
    ALL,
    LIKELIHOOD,
    against,
    evaluate,
    label_of,
    require_enough,
    require_features,
    statistics_folder,
)
from scorefield.evaluation.likelihood import score
from scorefield.evaluation.metrics import Features, default_metrics, features_of, make_metrics
from scorefield.models import ScoreModel
from scorefield.models.score_model import check_density
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.samplers import Sampler, make_sampler, own_sampler

BITS = "bits_per_dim"


@dataclass
class Measures:
    """What `training.metrics_every` asks for, from the same noise every time.

        train("configs/vp_digits.py", measures=Measures(), overrides={"training.metrics_every": 1000})

    sampler   that draws the samples; those of a student its own draws
    features  a feature network, or its name; by default the project's own for its data sets
    cache     a folder for statistics of the data

    Of a model with labels, every class has the same share of the samples. bits_per_dim is that of the first held-out
    examples, as many as there are samples, by the exponential method.
    """

    sampler: Sampler = field(default_factory=lambda: make_sampler("auto", steps=20))
    features: Features | str | None = None
    cache: Path | None = field(default_factory=statistics_folder)

    def require(self, names: Sequence[str], n: int, model: ScoreModel, dataset: Dataset, codec: Codec) -> None:
        """ArgumentError unless these figures can be made; it names fields of the section `training`."""
        if not isinstance(model, ScoreModel):
            raise ArgumentError("a classifier draws no samples, so it has no such figures; set training.metrics_every=0",
                                "training.metrics_every")
        if what := getattr(getattr(model, "network", None), "no_score", ""):
            raise ArgumentError(f"{what} draws no samples, so it has no such figures; set training.metrics_every=0",
                                "training.metrics_every")
        with renamed("training", {"num_samples": "training.metrics_samples", "metrics": "training.metrics",
                                  "features": "training.metrics", "model": "training.metrics"}):
            of_samples = self._of_samples(names, dataset)
            device = next(model.parameters()).device
            _, _, reference, _ = against(model, dataset, codec, self.features, _label(model), self.cache, device)
            require_features(reference.features, dataset, device)
            require_enough(make_metrics(of_samples, reference, bootstrap=0), n)
            if BITS in names:
                check_density(model)
                label_of(model, dataset)

    def __call__(self, names: Sequence[str], n: int, model: ScoreModel, dataset: Dataset, codec: Codec) -> dict[str, float]:
        device, of_samples, figures = next(model.parameters()).device, self._of_samples(names, dataset), dict[str, float]()
        if of_samples:
            sampler = own_sampler(model, self.sampler)
            found = evaluate(model, dataset, codec, n=n, sampler=sampler, metrics=of_samples, features=self.features,
                             label=_label(model), device=device, bootstrap=0, cache=self.cache, progress=False)
            figures = {name: float(figure.value) for name, figure in found.figures.items()}
        if BITS in names:
            bits = score(model, dataset, codec, n=min(n, len(dataset.test)), device=device, progress=False,
                         label=label_of(model, dataset), **LIKELIHOOD)
            figures[BITS] = float(bits.mean)
        return figures

    def _of_samples(self, names: Sequence[str], dataset: Dataset) -> list[str]:
        if names:
            return [name for name in names if name != BITS]
        network: Any = self.features if isinstance(self.features, Features) else features_of(self.features, dataset)
        return list(default_metrics(dataset, network))


def _label(model: ScoreModel) -> str | None:
    return ALL if model.takes.classes is not None else None
