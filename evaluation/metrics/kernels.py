"""Distances between distributions that are sums over pairs.

With a kernel k, x and x' from the samples and y and y' from the training examples,

    d(P, Q) = E k(x, x') + E k(y, y') - 2 E k(x, y)

is the squared maximum mean discrepancy (Gretton et al. 2012, "A Kernel Two-Sample Test", lemma 6). The estimate is their
unbiased one (equation 3): no pair of an element with itself. So it may be below zero where the distributions are equal.

    energy    k(x, y) = -|x - y|, which makes d the energy distance 2 E|x - y| - E|x - x'| - E|y - y'| (Szekely and Rizzo
              2013, "Energy statistics", section 2; Sejdinovic et al. 2013 for the kernel). Zero only for equal distributions
    mmd       k(x, y) = exp(-|x - y|^2 / (2 h^2)), h the median distance of two training examples (Gretton et al. 2012,
              section 8), of at most 2000 of them
    kid       k(x, y) = (<x, y> / D + 1)^3 of the D features of a network (Binkowski et al. 2018, "Demystifying MMD GANs",
              section 3)

More than 10,000 of either are cut into as many equal groups as leave no larger ones, sample i in group i modulo their
number, and the estimate is the mean over the groups' (Zaremba et al. 2013, "B-test"): still without bias, and in time
linear in n. The literature's estimate of KID is the mean over 100 random subsets of 1,000: it has the same mean and more
noise.

The influence of a sample is 2 (mean_j k(x_i, x_j) - mean_j k(x_i, y_j)), less its mean over the group.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from scorefield.evaluation.metrics.distances import mean_of, squared_distances
from scorefield.evaluation.metrics.metric import Metric
from scorefield.numerics.errors import ArgumentError

BLOCK = 512       # rows and columns of the pairs that are in memory at a time: they fit a processor's cache
GROUP = 10_000
MEDIAN_OF = 2000


class PairMetric(Metric):
    """A metric d(P, Q) of a kernel."""

    biased = False

    @abstractmethod
    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """k of each pair of a (n, D) and b (m, D): (n, m)."""

    def measure(self, x: Tensor) -> tuple[float, Tensor]:
        device, y = self.reference.arithmetic, self.reference.vectors("train", self.space)
        self._origin = self.origin(y)
        parts = min(math.ceil(max(len(x), len(y)) / GROUP), min(len(x), len(y)) // 2)      # a group has pairs

        own = self.reference.number(f"{self.key}_train_{parts}", lambda: sum(
            float(self._within(y[i::parts].to(device)).mean()) for i in range(parts)) / parts)
        value, influence = own, torch.empty(len(x), dtype=torch.float64)
        for i in range(parts):
            samples = x[i::parts].to(device)
            within, between = self._within(samples), self._between(samples, y[i::parts].to(device))
            value += float(within.mean() - 2 * between.mean()) / parts
            influence[i::parts] = 2 * ((within - between) - (within - between).mean()).cpu()
        return value, influence

    def origin(self, y: Tensor) -> Tensor:
        """What is subtracted from all vectors, if the kernel does not change by that: the mean of y, so that distances,
        from products, lose no digits.
        """
        return mean_of(y, self.reference.reals)

    def _block(self, rows: Tensor) -> Tensor:
        """What the kernel takes of some vectors."""
        return self.reference.reals(rows).double() - self._origin.to(rows.device)

    def _between(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean of k(x_i, y_j) over j, (n,)."""
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for i, rows in enumerate(x.split(BLOCK)):
            a = self._block(rows)
            for others in y.split(BLOCK):
                total[i * BLOCK:][:BLOCK] += self.kernel(a, self._block(others)).sum(1)
        return total / len(y)

    def _within(self, x: Tensor) -> Tensor:
        """The mean of k(x_i, x_j) over j other than i, (n,). Each pair is computed once."""
        total, blocks = torch.zeros(len(x), dtype=torch.float64, device=x.device), x.split(BLOCK)
        for i, rows in enumerate(blocks):
            a = self._block(rows)
            for j in range(i, len(blocks)):
                k = self.kernel(a, self._block(blocks[j]))
                if i == j:
                    k.fill_diagonal_(0)
                else:
                    total[j * BLOCK:][:BLOCK] += k.sum(0)
                total[i * BLOCK:][:BLOCK] += k.sum(1)
        return total / (len(x) - 1)


class Energy(PairMetric):
    """The energy distance, in the units of what is compared (see `SlicedWasserstein`)."""

    name = "energy"

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        return squared_distances(a, b).sqrt_().neg_()


class MMD(PairMetric):
    """The squared maximum mean discrepancy of a Gaussian kernel."""

    name = "mmd"

    @cached_property
    def bandwidth(self) -> float:
        """h: the median distance of two training examples."""
        def median() -> float:
            some = min(MEDIAN_OF, self.reference.size)
            y = self.reference.vectors("train", self.space)[torch.arange(some) * self.reference.size // some]
            return float(torch.pdist(self.reference.reals(y).double()).median())

        h = self.reference.number(f"median_{self.space}", median)
        if not h:
            raise ArgumentError(f"more than half of the pairs of training examples of {self.reference.dataset.name!r} are "
                                "equal, so the kernel of mmd has no width; leave mmd out", "metrics")
        return h

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        return squared_distances(a, b).div_(-2 * self.bandwidth**2).exp_()


class KID(PairMetric):
    """The squared maximum mean discrepancy of features with a cubic kernel."""

    name, space, minimum = "kid", "features", 50

    def origin(self, y: Tensor) -> Tensor:
        return torch.zeros((), dtype=torch.float64)

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.addmm(a.new_ones(()), a, b.T, alpha=1 / a.shape[1]).pow_(3)
