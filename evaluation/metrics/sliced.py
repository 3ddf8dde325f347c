"""The sliced Wasserstein distance (Rabin et al. 2011; Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters").

    SW_2(P, Q)^2 = E W_2(<theta, P>, <theta, Q>)^2,      theta uniform on the sphere

where W_2 of two sets of numbers is that of their quantile functions, exactly, also for sets of unequal sizes. The
directions: one in one dimension; 200 equally spaced angles in the plane, where the integrand is periodic; up to 200
dimensions whole random orthonormal bases, at least 200 directions, so that the part of differing means has no error (the sum
of <theta, m>^2 over a basis is |m|^2); in more dimensions 200 random orthonormal directions, whose time and memory are
linear in D.

The influence of a sample is the Kantorovich potential of its projection (del Barrio et al. 2019, "A central limit theorem
for Lp transportation cost on the real line"), less its mean, over the directions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scorefield.evaluation.metrics.metric import Metric

DIRECTIONS = 200
ELEMENTS = 2**22      # of the projections that are in memory at a time


def directions(dimensions: int, seed: int) -> Tensor:
    """(L, D) unit vectors, float64."""
    if dimensions == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if dimensions == 2:
        angles = (torch.arange(DIRECTIONS, dtype=torch.float64) + 0.5) * (math.pi / DIRECTIONS)
        return torch.stack([angles.cos(), angles.sin()], 1)
    generator = torch.Generator().manual_seed(seed)
    shape = math.ceil(DIRECTIONS / dimensions), dimensions, min(dimensions, DIRECTIONS)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    return (q * r.diagonal(dim1=1, dim2=2).sign()[:, None]).mT.flatten(0, 1)      # Haar distributed (Mezzadri 2007)


def squared_w2(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """W_2^2 between sorted numbers x (L, n) and y (L, m), (L,); and the potential of each x, (L, n).

    The optimal plan pairs the quantile functions, which are constant between the multiples of 1/n and 1/m. Along it the
    potential f and that of y sum to the cost, so f(x_(i+1)) - f(x_i) = (x_(i+1) - y_j)^2 - (x_i - y_j)^2 for the y_j at the
    level (i + 1)/n; at a level where y jumps, too, for the mean of its two values.
    """
    n, m = x.shape[1], y.shape[1]
    steps = torch.cat([torch.arange(n) * m, torch.arange(1, m) * n]).unique().to(x.device)      # levels in units of 1/(n m)
    ends = torch.cat([steps[1:], steps.new_tensor([n * m])])
    distance = (x[:, steps // m] - y[:, steps // n]).square_() @ ((ends - steps).double() / (n * m))
    level = torch.arange(1, n, device=x.device) * m
    other = (y[:, (level - 1) // n] + y[:, level // n]) / 2
    rise = (x[:, 1:] - x[:, :-1]) * (x[:, 1:] + x[:, :-1] - 2 * other)
    return distance, torch.cat([torch.zeros_like(x[:, :1]), rise.cumsum(1)], 1)


class SlicedWasserstein(Metric):
    """SW_2, in the units of what is compared: of points, tables and series in those of the model, which are standard
    deviations of each column or channel where the data are standardised; of pictures in shares of their range; of features
    in the network's.
    """

    name = "sliced_wasserstein"

    def measure(self, x: Tensor) -> tuple[float, Tensor]:
        device, y = self.reference.arithmetic, self.reference.vectors("train", self.space)
        theta = directions(x.shape[1], self.seed).to(device)
        total, influence = 0.0, theta.new_zeros(len(x))
        for part in theta.split(max(1, ELEMENTS // (len(x) + len(y)))):
            projected, order = self._project(part, x).sort(1)
            distance, potential = squared_w2(projected, self._project(part, y).sort(1).values)
            total += float(distance.sum())
            influence.scatter_add_(0, order.flatten(), potential.sub_(potential.mean(1, keepdim=True)).flatten())
        return total / len(theta), influence / len(theta)

    def _project(self, theta: Tensor, x: Tensor) -> Tensor:
        return torch.cat([theta @ self.reference.reals(rows).to(theta).T
                          for rows in x.split(max(1, ELEMENTS // x.shape[1]))], 1)

    def finish(self, value: float) -> float:
        return math.sqrt(max(value, 0.0))

    @property
    def key(self) -> str:
        return f"{self.name}_seed{self.seed}"
