"""The exact Schroedinger bridge between two Gaussians, for testing bridges without training.

Between y_0 ~ N(a, S_0) and y_1 ~ N(b, S_1), over Brownian motion of variance s^2, the ends of the bridge are jointly
Gaussian, and (Bunne et al. 2023, "The Schroedinger Bridge between Gaussian Measures has a Closed Form", theorem 1; Janati
et al. 2020)

    Cov(y_0, y_1) = (S_0^(1/2) D S_0^(-1/2) - s^2 I) / 2          D = (4 S_0^(1/2) S_1 S_0^(1/2) + s^4 I)^(1/2)

Other references are Brownian motion in x / alpha (sde_lib/reference.py). Given its ends a path is a Brownian bridge, so the
state and the ends are jointly Gaussian, too, and the means of the ends given the state are linear in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.models.bridge import BridgeModel
from scorefield.models.networks.two_way import SOURCE, TARGET
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import PRIOR, NoiseStream, Seed
from scorefield.sde_lib.sde import SDE, expand_as


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, covariance) of D elements, as an end of a bridge: what paths begin with."""

    mean: Tensor
    covariance: Tensor

    def sample(self, event_shape: Sequence[int], seeds: Sequence[Seed], device: torch.device | str = "cpu",
               dtype: torch.dtype = torch.float32) -> Tensor:
        """One draw for each seed, (len(seeds), *event_shape)."""
        z = NoiseStream(seeds, PRIOR).normal(torch.empty((len(seeds), len(self.mean)), dtype=torch.float64))
        x = self.mean + z @ torch.linalg.cholesky(self.covariance).mT
        return x.reshape(len(seeds), *event_shape).to(device, dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """In nats, (batch,)."""
        factor, d = torch.linalg.cholesky(self.covariance).to(x), len(self.mean)
        z = torch.linalg.solve_triangular(factor, (x.flatten(1) - self.mean.to(x)).mT, upper=False)
        return -0.5 * z.square().sum(0) - factor.diagonal().log().sum() - 0.5 * d * math.log(2 * math.pi)


class GaussianBridge(BridgeModel):
    """The bridge from N(mean, covariance) of the source to that of the target, over the reference `sde`.

    source, target  each a mean (D,) and a covariance (D, D), positive definite

    Works in the dtype of x, and is exact in float64. Raises ArgumentError for shapes that do not fit. One use:

    >>> from scorefield.models.gaussian_bridge import GaussianBridge
    >>> from scorefield.sde_lib import BrownianSDE
    >>> unit = torch.zeros(1), torch.eye(1)
    >>> bridge = GaussianBridge(BrownianSDE(std=2 ** 0.5), unit, unit)
    >>> round(float(bridge.cross_covariance), 6)      # (sqrt(4 + 4) - 2) / 2
    0.414214
    """

    def __init__(self, sde: SDE, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], goal: str = SOURCE):
        pairs = [(mean.double(), covariance.double()) for mean, covariance in (source, target)]
        d = len(pairs[0][0])
        for (mean, covariance), name in zip(pairs, (SOURCE, TARGET), strict=True):
            if mean.shape != (d,) or covariance.shape != (d, d) or not bool(torch.linalg.eigvalsh(covariance).min() > 0):
                raise ArgumentError(f"both ends must be a mean (D,) and a positive definite covariance (D, D), got {name} "
                                    f"{tuple(mean.shape)} and {tuple(covariance.shape)}", name)
        self.of_end = {SOURCE: Gaussian(*pairs[0]), TARGET: Gaussian(*pairs[1])}
        super().__init__(sde, goal)
        self._cross = {end: self._coupled(end) for end in self.of_end}
        self.sde = self.sde.starting_at(self._other(goal))

    def toward(self, goal: str, start: object = None) -> "BridgeModel":
        """The same bridge toward a goal; paths begin with the Gaussian of its other end unless told otherwise."""
        other = super().toward(goal, start)
        return other if start is not None else super().toward(goal, self._other(goal))

    def _other(self, end: str) -> Gaussian:
        return self.of_end[SOURCE if end == TARGET else TARGET]

    def _coupled(self, goal: str) -> Tensor:
        """Cov(y_0, y_1) of the goal and the start in the units of the goal, (D, D)."""
        sde = self._seen[goal]
        end, s2 = sde.end, sde.total
        own, start = self.of_end[goal].covariance, self._other(goal).covariance / end**2
        root, eye = _power(own, 0.5), torch.eye(len(own), dtype=torch.float64)
        d = _power(4 * root @ start @ root + s2**2 * eye, 0.5)
        return (root @ d @ _power(own, -0.5) - s2 * eye) / 2

    @property
    def cross_covariance(self) -> Tensor:
        """Cov(x_0, x_1) of the source and the target, float64 (D, D)."""
        return self._cross[SOURCE] * self._seen[SOURCE].end

    def marginal(self, s: float | Tensor) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of x_s, s a scalar, as the reference is seen from the goal."""
        s = torch.as_tensor(s, dtype=torch.float64)
        mean, covariance, _ = self._moments(s)
        return self.sde.alpha(s) * mean, self.sde.alpha(s).square() * covariance

    def _moments(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and covariance of y_s, and Cov(y_0, y_s), for s of shape (...): (..., D), (..., D, D) twice."""
        sde, cross = self.sde, self._cross[self.goal]
        end = sde.end
        own, start = self.of_end[self.goal], self._other(self.goal)
        u, rest = (share.double()[..., None, None] for share in (sde.share(s), sde.rest(s)))
        eye = torch.eye(len(cross), dtype=torch.float64)
        covariance = (rest**2 * own.covariance + u**2 * start.covariance / end**2
                      + u * rest * (cross + cross.mT + sde.total * eye))
        return (rest[..., 0] * own.mean + u[..., 0] * start.mean / end), covariance, rest * own.covariance + u * cross

    def goal_mean(self, x: Tensor, s: Tensor) -> Tensor:
        mean, covariance, with_goal = self._moments(s.detach().cpu().double())
        gain = torch.linalg.solve(covariance, with_goal.mT).mT.to(x)
        y = (x / expand_as(self.sde.alpha(s), x)).flatten(1) - mean.to(x)
        moved = torch.einsum("...ij,...j->...i", gain, y)
        return (self.of_end[self.goal].mean.to(x) + moved).reshape(x.shape)


def _power(matrix: Tensor, power: float) -> Tensor:
    """A power of a positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ (values.pow(power)[:, None] * vectors.mT)
