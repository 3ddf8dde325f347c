"""Figures of how good samples are: distances to the training examples, each with an interval and a floor.

    from scorefield.evaluation.metrics import Reference, default_metrics, make_metrics

    reference = Reference(dataset, make_codec(dataset.levels))
    metrics = make_metrics(default_metrics(dataset, None), reference)
    for x in batches:
        for metric in metrics.values():
            metric.update(x)
    print({name: metric.result() for name, metric in metrics.items()})
"""

from collections.abc import Sequence

from scorefield.data import Dataset
from scorefield.evaluation.metrics.features import Features, features_of
from scorefield.evaluation.metrics.frechet import FID
from scorefield.evaluation.metrics.inception import InceptionScore
from scorefield.evaluation.metrics.kernels import KID, MMD, Energy
from scorefield.evaluation.metrics.manifold import Precision, Recall
from scorefield.evaluation.metrics.metric import BOOTSTRAP, Figure, Metric
from scorefield.evaluation.metrics.neighbours import Neighbours
from scorefield.evaluation.metrics.reference import Reference
from scorefield.evaluation.metrics.sliced import SlicedWasserstein
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.text import choose

METRICS: dict[str, type[Metric]] = {metric.name: metric for metric in (
    FID, KID, InceptionScore, Precision, Recall, SlicedWasserstein, Energy, MMD, Neighbours)}


def make_metrics(names: Sequence[str], reference: Reference, seed: int = 0, bootstrap: int = BOOTSTRAP
                 ) -> dict[str, Metric]:
    """A new metric for each name, in this order.

        metrics = make_metrics(["sliced_wasserstein", "energy"], reference)

    seed       of the random directions and of the bootstrap
    bootstrap  replicates of the interval; 0: no interval

    ArgumentError for an unknown name, or a metric that the reference does not allow.
    """
    if bootstrap < 0:
        raise ArgumentError(f"bootstrap must be 0 or more, got {bootstrap}", "bootstrap")
    return {name: choose("metric", METRICS, name, "metrics")(reference, seed, bootstrap) for name in names}


def default_metrics(dataset: Dataset, features: Features | None) -> tuple[str, ...]:
    """The metrics of a data set if none are named: for pictures those of features, where there is a network."""
    if features is not None:
        return ("fid", "kid", "precision", "recall", "neighbours")
    return ("sliced_wasserstein", "energy", "mmd", "neighbours")


__all__ = ["METRICS", "Features", "Figure", "Metric", "Reference", "default_metrics", "features_of", "make_metrics"]
