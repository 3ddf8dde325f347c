"""Distances between distributions that are sums over pairs.

With a kernel k, x and x' from the samples and y and y' from the training examples,

    d(P, Q) = E k(x, x') + E k(y, y') - 2 E k(x, y)

is the squared maximum mean discrepancy (Gretton et al. 2012, "A Kernel Two-Sample Test", lemma 6). The estimate is their
unbiased one (equation 3): no pair of an element with itself. So it may be below zero where the distributions are equal.

    energy    k(x, y) = -|x - y|, which makes d the energy distance 2 E|x - y| - E|x - x'| - E|y - y'| (Szekely and Rizzo
              2013, "Energy statistics", section 2; Sejdinovic et al. 2013 for the kernel). Zero only for equal distributions
    mmd       k(x, y) = exp(-|x - y|^2 / (2 h^2)), h the median distance of two training examples (Gretton et al. 2012,
              section 8), of at most 2000 of them

The influence of a sample is 2 (mean_j k(x_i, x_j) - mean_j k(x_i, y_j)), less its mean.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from scorefield.evaluation.metrics.metric import Metric

BLOCK = 2048      # rows and columns of the pairs that are in memory at a time
MEDIAN_OF = 2000


class PairMetric(Metric):
    """A metric d(P, Q) of a kernel."""

    @abstractmethod
    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """k of each pair of a (n, D) and b (m, D): (n, m)."""

    def measure(self, x: Tensor) -> tuple[float, Tensor]:
        device = self.reference.arithmetic
        x, y = x.to(device, torch.float64), self.reference.vectors("train", self.space).to(device, torch.float64)
        within, between = self._within(x), self._between(x, y)
        influence = 2 * (within - between)
        own = self.reference.number(f"{self.key}_train", lambda: float(self._within(y).mean()))
        return float(within.mean()) + own - 2 * float(between.mean()), influence - influence.mean()

    def _between(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean of k(x_i, y_j) over j, (n,)."""
        return torch.cat([sum((self.kernel(a, b).sum(1) for b in y.split(BLOCK)), x.new_zeros(len(a)))
                          for a in x.split(BLOCK)]) / len(y)

    def _within(self, x: Tensor) -> Tensor:
        """The mean of k(x_i, x_j) over j other than i, (n,). Each pair is computed once."""
        total, blocks = x.new_zeros(len(x)), x.split(BLOCK)
        for i, a in enumerate(blocks):
            rows = total[i * BLOCK:][:BLOCK]
            for j in range(i, len(blocks)):
                k = self.kernel(a, blocks[j])
                if i == j:
                    k.fill_diagonal_(0)
                else:
                    total[j * BLOCK:][:BLOCK] += k.sum(0)
                rows += k.sum(1)
        return total / (len(x) - 1)


class Energy(PairMetric):
    """The energy distance, in units of the data."""

    name = "energy"

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        return -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


class MMD(PairMetric):
    """The squared maximum mean discrepancy of a Gaussian kernel."""

    name = "mmd"

    @cached_property
    def bandwidth(self) -> float:
        """h: the median distance of two training examples."""
        n = min(MEDIAN_OF, self.reference.size)

        def median() -> float:
            some = self.reference.vectors("train", self.space)[torch.arange(n) * self.reference.size // n].double()
            return float(torch.pdist(some).median())

        return self.reference.number(f"median_{self.space}", median)

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        squares = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()
        return squares.div_(-2 * self.bandwidth**2).exp_()
