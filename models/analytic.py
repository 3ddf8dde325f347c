"""Exact score models, for testing every algorithm without training.

For data from a mixture sum_k w_k N(mu_k, v_k I) the marginal at time t is the mixture of N(alpha mu_k, s_k^2 I) with
s_k^2 = alpha^2 v_k + sigma^2, and everything about it is known in closed form.
"""

import math

import torch
from torch import Tensor

from scorefield.models.denoiser import ScoreModel
from scorefield.models.parametrization import check_kind
from scorefield.sde_lib.sde import SDE, as_time


class GaussianMixture(ScoreModel):
    """The exact score model of a mixture of isotropic Gaussians, for any event shape of D elements.

    means (K, D), variances (K,) and positive weights (K,), normalised here; a variance may be zero (a point mass).
    Works in the dtype of x. Raises ValueError where the shapes do not fit.
    """

    def __init__(self, sde: SDE, means: Tensor, variances: Tensor, weights: Tensor | None = None):
        super().__init__()
        means, variances = (torch.as_tensor(a, dtype=torch.float64) for a in (means, variances))
        weights = torch.ones(len(means)) if weights is None else weights
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if means.ndim != 2 or variances.shape != means.shape[:1] or weights.shape != means.shape[:1]:
            raise ValueError("a mixture needs means (K, D), variances (K,) and weights (K,), got "
                             f"{tuple(means.shape)}, {tuple(variances.shape)} and {tuple(weights.shape)}")
        if not (variances.min() >= 0 and weights.min() > 0):
            raise ValueError("a mixture needs variances that are not negative and positive weights")
        self.sde = sde
        self.means: Tensor
        self.variances: Tensor
        self.weights: Tensor
        self.register_buffer("means", means)
        self.register_buffer("variances", variances)
        self.register_buffer("weights", weights / weights.sum())

    def _components(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, ...]:
        """Residuals x - alpha mu_k (B, K, D), s_k^2 (B, K), log of weighted densities (B, K), alpha, sigma (B, 1)."""
        if x[0].numel() != self.means.shape[1]:
            raise ValueError(f"the mixture has {self.means.shape[1]} dimensions, x has {x[0].numel()} "
                             f"(shape {tuple(x.shape)})")
        t = as_time(t).expand(len(x))
        alpha, sigma = self.sde.alpha(t).to(x)[:, None], self.sde.sigma(t).to(x)[:, None]
        means, variances = self.means.to(x.dtype), self.variances.to(x.dtype)
        residual = x.reshape(len(x), 1, -1) - alpha[:, :, None] * means
        s2 = alpha.square() * variances + sigma.square()
        d = means.shape[1]
        log_density = -0.5 * (residual.square().sum(2) / s2 + d * torch.log(2 * math.pi * s2))
        return residual, s2, log_density + self.weights.to(x.dtype).log(), alpha, sigma

    def log_prob(self, x: Tensor, t: float | Tensor = 0.0) -> Tensor:
        """log p_t(x) in nats, (batch,); t = 0 is the density of the data where alpha(0) = 1 and sigma(0) = 0."""
        return self._components(x, t)[2].logsumexp(1)

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        check_kind(kind)
        residual, s2, log_joint, alpha, sigma = self._components(x, t)
        responsibility = log_joint.softmax(1)
        score = -(responsibility / s2)[:, None] @ residual               # (B, 1, D)
        if kind == "score":
            prediction = score
        elif kind == "eps":
            prediction = -sigma[:, :, None] * score
        else:
            means, variances = self.means.to(x.dtype), self.variances.to(x.dtype)
            gain = responsibility * alpha * variances / s2
            prediction = (responsibility @ means)[:, None] + gain[:, None] @ residual     # E[x_0]
            if kind == "v":
                prediction = -alpha[:, :, None] * sigma[:, :, None] * score - sigma[:, :, None] * prediction
            elif kind == "flow":
                prediction = -sigma[:, :, None] * score - prediction
        return prediction.reshape(x.shape)

    def sample(self, n: int, t: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """n exact draws (n, D) of the marginal at t, in float64 and on the generator's device (the CPU without one)."""
        device = generator.device if generator is not None else torch.device("cpu")
        component = torch.multinomial(self.weights.to(device), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator, device=device)
        alpha, sigma = self.sde.alpha(t).to(device), self.sde.sigma(t).to(device)
        std = (alpha.square() * self.variances.to(device) + sigma.square()).sqrt()
        return alpha * self.means.to(device)[component] + std[component, None] * noise
