"""Mixtures of Gaussians with full covariances, and the exact posterior of a mixture given a linear measurement.

For data from sum_k w_k N(mu_k, S_k) the marginal at time t is the mixture of N(alpha mu_k, alpha^2 S_k + sigma^2 I). With
the eigenvectors of S_k = Q diag(l) Q^T all of it is diagonal. Given y = A x_0 + s n, n ~ N(0, I), the data are again such a
mixture:

    G_k = S_k A^T C_k^-1      C_k = A S_k A^T + s^2 I
    N(mu_k + G_k (y - A mu_k), S_k - G_k A S_k)      with weights proportional to w_k N(y; A mu_k, C_k), whose sum is p(y)

So the score of that mixture under the forward process is the score of p_t(x given y) itself, without any approximation.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scorefield.models.analytic import GaussianMixture
from scorefield.models.parametrization import check_kind
from scorefield.models.score_model import Posterior, ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, check_time, expand_as


class FullMixture(ScoreModel):
    """The exact score model of a mixture of Gaussians with full covariances, for any event shape of D elements.

    means        (K, D)
    covariances  (K, D, D), symmetric, without negative eigenvalues; 0 is allowed (a plane, a line or a point)
    weights      (K,), positive, normalised here; equal unless given

    Works in the dtype of x, and is exact in float64. Raises ArgumentError if the shapes do not fit or a covariance is none.
    One use:

    >>> from scorefield.models import FullMixture
    >>> from scorefield.sde_lib import VPSDE
    >>> model = FullMixture(VPSDE(), torch.zeros(1, 2), torch.tensor([[[1.0, 0.9], [0.9, 1.0]]]))
    >>> model.x0(torch.zeros(4, 2), 0.5).shape
    torch.Size([4, 2])
    """

    means: Tensor
    covariances: Tensor
    weights: Tensor
    variances: Tensor
    axes: Tensor

    def __init__(self, sde: SDE, means: Tensor, covariances: Tensor, weights: Tensor | Sequence[float] | None = None):
        super().__init__()
        weights = torch.ones(len(means)) if weights is None else torch.as_tensor(weights)
        k, d = means.shape if means.ndim == 2 else (0, 0)
        if not k or covariances.shape != (k, d, d) or weights.shape != (k,):
            raise ArgumentError(f"a mixture needs means (K, D), covariances (K, D, D) and weights (K,), got "
                                f"{tuple(means.shape)}, {tuple(covariances.shape)} and {tuple(weights.shape)}",
                                "means", "covariances", "weights")
        means, covariances, weights = means.double(), covariances.double(), weights.double()
        largest = covariances.abs().amax((1, 2)).clamp(min=1e-300)
        if not bool(((covariances - covariances.mT).abs().amax((1, 2)) <= 1e-6 * largest).all()) or not weights.min() > 0:
            raise ArgumentError("a mixture needs symmetric covariances and positive weights", "covariances", "weights")
        variances, axes = torch.linalg.eigh((covariances + covariances.mT) / 2)
        if not bool((variances.amin(1) >= -1e-6 * largest).all()):
            raise ArgumentError("a covariance has no negative eigenvalues, and one of these has", "covariances")
        self.sde = sde
        for name, tensor in (("means", means), ("covariances", covariances), ("weights", weights / weights.sum()),
                             ("variances", variances.clamp(min=0)), ("axes", axes)):
            self.register_buffer(name, tensor)

    def _components(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, ...]:
        """Residuals along the axes (B, K, D), their variances (B, K, D), log of weighted densities (B, K), and alpha and
        sigma of the shape (B, 1, 1).
        """
        if x[0].numel() != self.means.shape[1]:
            raise ArgumentError(f"the mixture has {self.means.shape[1]} dimensions, x has {x[0].numel()} "
                                f"(shape {tuple(x.shape)})", "x")
        t = check_time(self.sde, t).expand(len(x))
        alpha, sigma = (c.to(x)[:, None, None] for c in (self.sde.alpha(t), self.sde.sigma(t)))
        along = torch.einsum("bkd,kde->bke", x.reshape(len(x), 1, -1) - alpha * self.means.to(x), self.axes.to(x))
        variance = alpha.square() * self.variances.to(x) + sigma.square()
        log_density = -0.5 * (along.square() / variance + torch.log(2 * math.pi * variance)).sum(2)
        return along, variance, log_density + self.weights.to(x).log(), alpha, sigma

    def _across(self, along: Tensor) -> Tensor:
        """Vectors along the axes (B, K, D) as events (B, K, D)."""
        return torch.einsum("bke,kde->bkd", along, self.axes.to(along))

    def log_prob(self, x: Tensor, t: float | Tensor = 0.0) -> Tensor:
        """log p_t(x) in nats, (batch,)."""
        return self._components(x, t)[2].logsumexp(1)

    def responsibilities(self, x: Tensor, t: float | Tensor = 0.0) -> Tensor:
        """The probability of each component given x_t = x, (batch, K)."""
        return self._components(x, t)[2].softmax(1)

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        check_kind(kind)
        along, variance, log_joint, alpha, sigma = self._components(x, t)
        share = log_joint.softmax(1)[:, :, None]
        score = -(share * self._across(along / variance)).sum(1).reshape(x.shape)
        if kind == "score":
            return score
        alpha, sigma = alpha[:, 0, 0], sigma[:, 0, 0]
        eps = -expand_as(sigma, x) * score
        if kind == "eps":
            return eps
        x0 = (share * self._means(along, variance, alpha)).sum(1).reshape(x.shape)
        if kind == "x0":
            return x0
        return eps - x0 if kind == "flow" else expand_as(alpha, x) * eps - expand_as(sigma, x) * x0

    def _means(self, along: Tensor, variance: Tensor, alpha: Tensor) -> Tensor:
        """E[x_0 given x_t] of each component, (B, K, D)."""
        gain = alpha.reshape(-1, 1, 1) * self.variances.to(along) / variance
        return self.means.to(along) + self._across(gain * along)

    def posterior(self, x: Tensor, t: float | Tensor) -> Posterior:
        """The exact mean and variance of each element of x_0 given x_t = x."""
        along, variance, log_joint, alpha, sigma = self._components(x, t)
        share, own = log_joint.softmax(1)[:, :, None], self._means(along, variance, alpha)
        mean = (share * own).sum(1)
        left = self.variances.to(x) * sigma.square() / variance
        spread = torch.einsum("bke,kde->bkd", left, self.axes.to(x).square()) + (own - mean[:, None]).square()
        return Posterior(mean.reshape(x.shape), (share * spread).sum(1).reshape(x.shape))

    def sample(self, n: int, t: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """n exact draws (n, D) of the marginal at t, in float64 and on the generator's device (the CPU without one)."""
        check_time(self.sde, t)
        device = generator.device if generator is not None else torch.device("cpu")
        component = torch.multinomial(self.weights.to(device), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator, device=device)
        alpha, sigma = self.sde.alpha(t).to(device), self.sde.sigma(t).to(device)
        std = (alpha.square() * self.variances.to(device) + sigma.square()).sqrt()[component]
        along = torch.einsum("nde,ne->nd", self.axes.to(device)[component], std * noise)
        return alpha * self.means.to(device)[component] + along


def measured(mixture: GaussianMixture | FullMixture, matrix: Tensor, y: Tensor, noise_std: float
             ) -> tuple[FullMixture, Tensor]:
    """The data given y = matrix x_0 + noise_std n, n ~ N(0, I): the exact posterior, a mixture; and log p(y) in nats, a
    scalar.

    matrix  (m, D); y (m,)

    Raises ArgumentError if the sizes do not fit, and for a measurement without noise that some data cannot have. One use:

    >>> from scorefield.models import GaussianMixture, measured
    >>> from scorefield.sde_lib import VPSDE
    >>> mixture = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
    >>> posterior, log_evidence = measured(mixture, torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]), 1.0)
    >>> posterior.means
    tensor([[0.5000, 0.0000]], dtype=torch.float64)
    """
    means, weights, d = mixture.means.double(), mixture.weights.double(), mixture.means.shape[1]
    matrix, y = matrix.double(), y.double()
    if matrix.ndim != 2 or matrix.shape[1] != d or y.shape != matrix.shape[:1]:
        raise ArgumentError(f"a measurement of {d} dimensions has a matrix (m, {d}) and a y (m,), got "
                            f"{tuple(matrix.shape)} and {tuple(y.shape)}", "matrix", "y")
    covariances = (mixture.covariances if isinstance(mixture, FullMixture)
                   else mixture.variances.double()[:, None, None] * torch.eye(d, dtype=torch.float64))
    of_y = matrix @ covariances @ matrix.T + noise_std**2 * torch.eye(len(y), dtype=torch.float64)
    root, failed = torch.linalg.cholesky_ex(of_y)
    if bool(failed.any()):
        raise ArgumentError("the measurement has no density: without noise, no data of some component gives most y; give "
                            "noise_std above 0", "noise_std")
    residual = y - means @ matrix.T
    gain = torch.cholesky_solve(matrix @ covariances, root).mT
    white = torch.linalg.solve_triangular(root, residual[:, :, None], upper=False)[:, :, 0]
    log_density = (-0.5 * white.square().sum(1) - root.diagonal(dim1=1, dim2=2).log().sum(1)
                   - 0.5 * len(y) * math.log(2 * math.pi))
    log_joint = weights.log() + log_density
    left = covariances - gain @ matrix @ covariances
    kept = log_joint.softmax(0) > 0      # weights that underflow count for nothing
    means = means + (gain @ residual[:, :, None])[:, :, 0]
    exact = FullMixture(mixture.sde, means[kept], ((left + left.mT) / 2)[kept], log_joint.softmax(0)[kept])
    return exact, log_joint.logsumexp(0)
