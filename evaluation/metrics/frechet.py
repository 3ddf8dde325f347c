"""The Frechet distance of features (Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", section 3).

Between the Gaussians with the means m, m_r and the covariances C, C_r of the features of samples and of training examples:

    FID = |m - m_r|^2 + tr(C) + tr(C_r) - 2 tr((C C_r)^(1/2))

The product C C_r is similar to the symmetric M = R C R, R = C_r^(1/2), so the last trace is the sum of the roots of the
eigenvalues of M: no root of a matrix that is not symmetric, and no complex numbers. All of it in float64. Covariances divide
by n - 1.

Fewer samples than features are no hindrance: C is then singular, and M has as many zeros. But FID has a bias of order 1/n
(Chong and Forsyth 2020), which n samples of the training distribution show: that is what the floor is for.

The influence of a sample follows from the derivative of the squared Bures distance with respect to C, which is I - T for T
= R M^(-1/2) R, the linear map that carries N(m, C) to N(m_r, C_r) (Rippl, Munk and Sturm 2016, "Limit laws of the empirical
Wasserstein distance: Gaussian distributions", which has the limit law). With z = x - m:

    2 <m - m_r, z> + z' (I - T) z - tr((I - T) C)
"""

from __future__ import annotations

import torch
from torch import Tensor

from scorefield.evaluation.metrics.metric import BOOTSTRAP, Figure, Metric
from scorefield.evaluation.metrics.reference import Arrays, Reference

ROWS = 4096


class Moments:
    """The mean and the covariance of vectors that come in batches, float64; the sums are taken about the first batch's mean.

        moments = Moments()
        moments.add(x)
        mean, covariance = moments.result()
    """

    def __init__(self) -> None:
        self.n = 0

    def add(self, x: Tensor) -> None:
        for rows in x.split(ROWS):
            z = rows.double()
            if not self.n:
                self.origin = z.mean(0)
                self.sum, self.products = torch.zeros_like(self.origin), z.new_zeros(z.shape[1], z.shape[1])
            z = z - self.origin
            self.sum += z.sum(0)
            self.products.addmm_(z.T, z)
            self.n += len(z)

    def result(self) -> tuple[Tensor, Tensor]:
        shift = self.sum / self.n
        return self.origin + shift, (self.products - self.n * torch.outer(shift, shift)) / (self.n - 1)


def root_of(covariance: Tensor) -> Tensor:
    """The symmetric root of a covariance matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet(mean: Tensor, covariance: Tensor, to_mean: Tensor, to_covariance: Tensor, root: Tensor
            ) -> tuple[float, Tensor]:
    """The Frechet distance between two Gaussians, and the matrix T that carries the first to the second.

    root  of to_covariance
    """
    values, vectors = torch.linalg.eigh(root @ covariance @ root)
    zero = torch.finfo(values.dtype).eps * len(values) * values[-1]      # what rounding leaves of eigenvalues that are zero
    roots = values.where(values > zero, 0).sqrt()
    inverse = roots.where(roots > 0, torch.inf).reciprocal()
    distance = (mean - to_mean).square().sum() + covariance.trace() + to_covariance.trace() - 2 * roots.sum()
    half = root @ vectors
    return max(float(distance), 0.0), (half * inverse) @ half.T


class FID(Metric):
    """The Frechet distance of the features, in their units squared. Without an interval it keeps sums alone."""

    name, space, minimum, whole = "fid", "features", 50, False

    def __init__(self, reference: Reference, seed: int = 0, bootstrap: int = BOOTSTRAP):
        super().__init__(reference, seed, bootstrap)
        self._moments = Moments()

    def take(self, x: Tensor) -> None:
        if self.bootstrap:
            super().take(x)
        else:
            self._moments.add(x.to(self.reference.arithmetic))

    def result(self) -> Figure:
        if self.bootstrap:
            return super().result()
        return self.figure(lambda: (self._compare(self._moments)[0], None))

    def measure(self, x: Tensor) -> tuple[float, Tensor]:
        moments = Moments()
        x = x.to(self.reference.arithmetic)
        moments.add(x)
        distance, carry = self._compare(moments)
        mean = moments.result()[0]
        shift = mean - self._train()[0]
        gain = torch.eye(len(mean), dtype=mean.dtype, device=mean.device) - carry
        influence = torch.cat([2 * z @ shift + ((z @ gain) * z).sum(1)
                               for z in ((rows.double() - mean) for rows in x.split(ROWS))])
        return distance, influence - influence.mean()

    def finish(self, value: float) -> float:
        return max(value, 0.0)

    def note(self) -> str:
        features = len(self._train()[0])
        return f"fewer samples than the {features} features: strongly biased" if self.samples <= features else ""

    def _compare(self, moments: Moments) -> tuple[float, Tensor]:
        return frechet(*moments.result(), *self._train())

    def _train(self) -> tuple[Tensor, Tensor, Tensor]:
        def compute() -> Arrays:
            moments = Moments()
            for x in self.reference.batches("train", self.space):
                moments.add(x.to(self.reference.arithmetic))
            mean, covariance = moments.result()
            return {"mean": mean.cpu().numpy(), "covariance": covariance.cpu().numpy(),
                    "root": root_of(covariance).cpu().numpy()}

        arrays = self.reference.arrays("moments", compute)
        mean, covariance, root = (torch.from_numpy(arrays[name]).to(self.reference.arithmetic)
                                  for name in ("mean", "covariance", "root"))
        return mean, covariance, root
