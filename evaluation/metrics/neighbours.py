"""Nearest training neighbours: does the model repeat its training examples?

A sample counts as a copy if its nearest training example is less than a third as far as the second nearest (Yoon et al.
2023, "Diffusion Probabilistic Models Generalize when They Fail to Memorize", section 3; Gu et al. 2023, "On Memorization in
Diffusion Models", equation 4), or is equal to it. Distances are Euclidean ones of the examples themselves, of pictures in
shares of their range. The figure is the share of copies. Where data are dense in D dimensions, as points in the plane are,
a new point is a copy with probability 3^-D, since the ratio of the two distances has the distribution function r^D; the
floor, the share among held-out examples, shows this. Two equal training examples hide that a sample is near to both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scorefield.evaluation.metrics.distances import nearest
from scorefield.evaluation.metrics.metric import BOOTSTRAP, Figure, ShareMetric
from scorefield.evaluation.metrics.reference import Reference

RATIO = 1 / 3


class Neighbours(ShareMetric):
    """The share of copies. Lower is better.

        neighbours = make_metrics(["neighbours"], reference)["neighbours"]
        neighbours.update(x)
        distances, indices = neighbours.pairs()      # of each sample's two nearest training examples
    """

    name, minimum = "neighbours", 10

    def __init__(self, reference: Reference, seed: int = 0, bootstrap: int = BOOTSTRAP):
        super().__init__(reference, seed, bootstrap)
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def take(self, x: Tensor) -> None:
        self._pairs.append(self._nearest(x))

    def result(self) -> Figure:
        return self.figure(lambda: self._share(self.pairs()[0]))

    def measure(self, x: Tensor) -> tuple[float, Tensor]:
        return self._share(self._nearest(x)[0])

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Of all samples so far: the distances (n, 2) to the two nearest training examples, and their indices in the
        data set's training split (n, 2)."""
        distances, index = (torch.cat(parts) for parts in zip(*self._pairs, strict=True))
        return distances, self.reference.numbers("train")[index]

    def _nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return nearest(x, self.reference.vectors("train", "data"), 2, self.reference.arithmetic, reals=self.reference.reals)

    @staticmethod
    def _share(distances: Tensor) -> tuple[float, Tensor]:
        copy = ((distances[:, 0] < RATIO * distances[:, 1]) | (distances[:, 0] == 0)).double()
        return float(copy.mean()), copy - copy.mean()
