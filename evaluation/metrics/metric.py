"""What every metric offers: batches go in, and a figure with its interval and its floor comes out.

The interval is a bootstrap of the linearised statistic. For many samples every metric here is, up to smaller terms, a mean:

    metric = value + 1/n sum_i influence(x_i),      sum_i influence(x_i) = 0

where the influence of a sample is the derivative of the metric with respect to its weight (the infinitesimal jackknife of
Jaeckel 1972; Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 20 to 22). Replicate b draws n samples
with replacement and takes value + 1/n sum of their influences; the interval is that of the 2.5 and the 97.5 % quantiles. A
plain bootstrap of these metrics is wrong: a drawn sample that occurs twice is at distance zero from its double, so the
replicates of a Frechet distance, of an energy distance or of a recall lie on one side of the value. The linear term has mean
zero and no such shift, and n samples need one pass.

The interval says which values other n samples of the same model would give, against the same training examples. It is not
one for n -> infinity: where a metric has a bias at n samples, `value`, `low` and `high` have it, and so has the floor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from scorefield.evaluation.classify import wilson
from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from scorefield.evaluation.metrics.reference import Reference

QUANTILES = (0.025, 0.975)
BOOTSTRAP = 1000


@dataclass(frozen=True)
class Figure:
    """A metric of samples.

    value          of these samples against the training examples
    low, high      its 95 % interval over the samples; NaN where none was asked for
    floor          the same metric of held-out against training examples, of as many as there are samples if there are so
                   many; None where it means nothing, or where too few are held out
    samples        how many there were
    reference      how many training examples they were compared with
    floor_samples  how many held-out examples the floor has; None without a floor
    better         "lower" or "higher"
    note           what a reader must know, or ""
    """

    value: float
    low: float
    high: float
    floor: float | None
    samples: int
    reference: int
    floor_samples: int | None
    better: str
    note: str = ""


class Metric(ABC):
    """A figure of samples against a data set's training examples.

        metric = make_metrics(["energy"], reference)["energy"]
        for x in batches:
            metric.update(x)
        figure = metric.result()

    name     the word that names it
    minimum  the fewest samples that it takes
    better   "lower" or "higher"
    space    in which it compares: "features" or "logits", the network's, or "data", the examples themselves
    biased   whether its mean depends on the number of samples, so that only figures of equal numbers can be compared
    """

    name: ClassVar[str]
    minimum: ClassVar[int] = 10
    better: ClassVar[str] = "lower"
    space: ClassVar[str] = "data"
    biased: ClassVar[bool] = True
    whole: ClassVar[bool] = True      # whether it needs all vectors of the training examples at once

    def __init__(self, reference: Reference, seed: int = 0, bootstrap: int = BOOTSTRAP):
        if self.space == "features" and reference.features is None and reference.dataset.levels is not None:
            raise ArgumentError(f"{self.name} compares the features of a network, and there is none for data set "
                                f"{reference.dataset.name!r}; give features", "features")
        if self.whole:
            reference.keep(self.space)
        self.reference, self.seed, self.bootstrap = reference, seed, bootstrap
        self.samples = 0
        self._rows: list[Tensor] = []

    def update(self, x: Tensor) -> None:
        """Take a batch of samples: integer levels (B, *shape), as the codec decodes them; of points, tables and series the
        reals (B, *shape) that the model draws.

        Metrics of one reference that get the same tensor share its features. ArgumentError for another shape or type, and
        for numbers that are not finite.
        """
        self.take(self.reference.vectors_of(x, self.space, self.samples))
        self.samples += len(x)

    def take(self, x: Tensor) -> None:
        """Take the vectors (B, D) of a batch."""
        self._rows.append(x)

    def result(self) -> Figure:
        """The figure of all samples so far. ArgumentError if there are fewer than `minimum`."""
        return self.figure(lambda: self.measure(torch.cat(self._rows)))

    def figure(self, measured: Callable[[], tuple[float, Tensor | None]]) -> Figure:
        """The figure of what `measured` returns, as `measure` does."""
        if self.samples < self.minimum:
            raise ArgumentError(f"{self.name} needs at least {self.minimum} samples, got {self.samples}; draw more",
                                "num_samples")
        value, influence = measured()
        low, high = self.interval(value, influence) if self.bootstrap and influence is not None else (math.nan, math.nan)
        floor, floor_samples = self._floor()
        return Figure(self.finish(value), low, high, floor, self.samples, self.reference.size, floor_samples, self.better,
                      self.note())

    @abstractmethod
    def measure(self, x: Tensor) -> tuple[float, Tensor]:
        """The statistic of vectors (n, D) against the training examples, and each one's influence on it (n,), float64."""

    def finish(self, value: float) -> float:
        """The figure that a value of the statistic stands for."""
        return value

    def note(self) -> str:
        return ""

    @property
    def key(self) -> str:
        """Names the metric and what its floor depends on, for the cache."""
        return self.name

    def interval(self, value: float, influence: Tensor) -> tuple[float, float]:
        """The ends of the 95 % interval of the figure."""
        numbers, n = influence.double().cpu().numpy(), len(influence)
        rng = np.random.Generator(np.random.Philox(self.seed))
        replicates = np.array([numbers[rng.integers(n, size=n)].mean() for _ in range(self.bootstrap)])
        low, high = (self.finish(value + float(q)) for q in np.quantile(replicates, QUANTILES))
        return low, high

    def _floor(self) -> tuple[float | None, int | None]:
        n = min(self.samples, self.reference.held_out)
        if n < self.minimum:
            return None, None
        return self.reference.number(f"{self.key}_floor{n}", lambda: self.finish(
            self.measure(self.reference.vectors("test", self.space, n))[0])), n


class ShareMetric(Metric):
    """A share of samples, each of which counts or does not whatever the others are.

    The bootstrap of such a share draws from a binomial distribution, so no replicates are needed. It fails at 0 and at 1,
    where all replicates are equal; the interval of Wilson (1927) does not.
    """

    biased = False

    def interval(self, value: float, influence: Tensor) -> tuple[float, float]:
        return wilson(value, len(influence))
