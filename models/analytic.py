"""Exact score models, for testing every algorithm without training.

For data from a mixture sum_k w_k N(mu_k, v_k I) the marginal at time t is the mixture of N(alpha mu_k, s_k^2 I) with
s_k^2 = alpha^2 v_k + sigma^2, and everything about it is known in closed form. With r_k, the probability of component k
given x_t, the data given x_t are the mixture, weighted by r_k, of

    N(m_k, c_k I)        m_k = mu_k + alpha v_k / s_k^2 (x_t - alpha mu_k)        c_k = v_k sigma^2 / s_k^2

Components may have labels, which are the classes of the data. The distribution of one class is the mixture of its own
components, and the probability of a class given x_t is the sum of their r_k.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scorefield.models.conditions import LABEL, Condition, Conditions
from scorefield.models.parametrization import check_kind
from scorefield.models.score_model import ConditionalModel, Given, Posterior
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, check_time


class GaussianMixture(ConditionalModel):
    """The exact score model of a mixture of isotropic Gaussians, for any event shape of D elements.

    means      (K, D)
    variances  (K,), of each element; zero is allowed (a point mass)
    weights    (K,), positive, normalised here; equal unless given
    labels     (K,), the class of each component, integers that cover 0 .. classes - 1. Then `given(label=y)` is the exact
               model of class y, and without a label the model is that of all classes, each with the sum of its weights

    Works in the dtype of x, and is exact in float64. Raises ArgumentError (a ValueError) if the shapes do not fit,
    and for a point mass at a time with sigma = 0. One use:

    >>> from scorefield.models import GaussianMixture
    >>> from scorefield.sde_lib import VPSDE
    >>> model = GaussianMixture(VPSDE(), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([0.1, 0.1]), labels=[0, 1])
    >>> model.given(label=1).x0(torch.zeros(4, 2), 0.5).shape
    torch.Size([4, 2])
    """

    def __init__(self, sde: SDE, means: Tensor, variances: Tensor, weights: Tensor | Sequence[float] | None = None,
                 labels: Tensor | Sequence[int] | None = None):
        super().__init__()
        means, variances = (torch.as_tensor(a, dtype=torch.float64) for a in (means, variances))
        weights = torch.ones(len(means)) if weights is None else weights
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if means.ndim != 2 or variances.shape != means.shape[:1] or weights.shape != means.shape[:1]:
            raise ArgumentError("a mixture needs means (K, D), variances (K,) and weights (K,), got "
                                f"{tuple(means.shape)}, {tuple(variances.shape)} and {tuple(weights.shape)}",
                                "means", "variances", "weights")
        if not (variances.min() >= 0 and weights.min() > 0):
            raise ArgumentError("a mixture needs variances that are not negative and positive weights",
                                "variances", "weights")
        self.sde = sde
        self.means: Tensor
        self.variances: Tensor
        self.weights: Tensor
        self.labels: Tensor | None
        self.register_buffer("means", means)
        self.register_buffer("variances", variances)
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("labels", None if labels is None else _checked_labels(labels, len(means)))
        self._point_mass = not bool(variances.min() > 0)
        self._takes = Conditions() if self.labels is None else Conditions((LABEL,), int(self.labels.max()) + 1, True)

    @property
    def takes(self) -> Conditions:
        return self._takes

    def given(self, **condition: Any) -> "GivenMixture":
        """The exact model of a class: label y, a scalar or (batch,), or None for all classes; ArgumentError otherwise."""
        return GivenMixture(self, condition)

    def _members(self, condition: Condition | None, x: Tensor) -> Tensor | None:
        """Which components belong to the class of each sample, (B, K); None without classes."""
        told = self.takes.of_batch(condition, x)
        if self.labels is None:
            return None
        label, labels = told[LABEL][:, None], self.labels.to(x.device)
        return (label == labels) | (label == self.takes.classes)      # the latter is "no label"

    def _components(self, x: Tensor, t: float | Tensor, condition: Condition | None = None) -> tuple[Tensor, ...]:
        """Residuals x - alpha mu_k (B, K, D), s_k^2 (B, K), log of weighted densities (B, K), alpha, sigma (B, 1).

        The densities of components outside of the class are 0; those within have the weights of the whole mixture.
        """
        if x[0].numel() != self.means.shape[1]:
            raise ArgumentError(f"the mixture has {self.means.shape[1]} dimensions, x has {x[0].numel()} "
                                f"(shape {tuple(x.shape)})", "x")
        t = check_time(self.sde, t).expand(len(x))
        self._check_density(t)
        alpha, sigma = self.sde.alpha(t).to(x)[:, None], self.sde.sigma(t).to(x)[:, None]
        means, variances = self.means.to(x.dtype), self.variances.to(x.dtype)
        residual = x.reshape(len(x), 1, -1) - alpha[:, :, None] * means
        s2 = alpha.square() * variances + sigma.square()
        d = means.shape[1]
        log_density = -0.5 * (residual.square().sum(2) / s2 + d * torch.log(2 * math.pi * s2))
        log_joint = log_density + self.weights.to(x.dtype).log()
        members = self._members(condition, x)
        if members is not None:
            log_joint = log_joint.masked_fill(~members, -math.inf)
        return residual, s2, log_joint, alpha, sigma

    def _check_density(self, t: Tensor) -> None:
        """Raise ArgumentError for a point mass if sigma(t) = 0; like check_time, it does not wait for a device."""
        if not self._point_mass or t.device.type != "cpu" or torch.compiler.is_compiling():
            return
        bare = self.sde.sigma(t) == 0
        if bool(bare.any()):
            raise ArgumentError(f"there is no density and no score at t = {float(t[bare][0]):g}: sigma = 0 there, and a "
                                "component of the mixture has variance 0; choose a later time", "t")

    def log_prob(self, x: Tensor, t: float | Tensor = 0.0, condition: Condition | None = None) -> Tensor:
        """log p_t(x) in nats, (batch,), or log p_t(x | label); t = 0 is the data where alpha(0) = 1 and sigma(0) = 0."""
        log_joint = self._components(x, t, condition)[2].logsumexp(1)
        members = self._members(condition, x)
        if members is None:
            return log_joint
        return log_joint - (members * self.weights.to(x)).sum(1).log()

    def class_log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p(label | x_t = x) in nats for every label, (batch, classes); ArgumentError without labels."""
        if self.labels is None:
            raise ArgumentError("the mixture has no labels; make it with labels=(K,)", "labels")
        log_joint = self._components(x, t)[2]
        classes = torch.arange(int(self.labels.max()) + 1, device=x.device)
        members = classes[:, None] == self.labels.to(x.device)      # (classes, K)
        return log_joint[:, None].masked_fill(~members, -math.inf).logsumexp(2).log_softmax(1)

    def predict(self, x: Tensor, t: float | Tensor, kind: str, condition: Condition | None = None) -> Tensor:
        check_kind(kind)
        residual, s2, log_joint, alpha, sigma = self._components(x, t, condition)
        responsibility = log_joint.softmax(1)
        score = -(responsibility / s2)[:, None] @ residual               # (B, 1, D)
        if kind == "score":
            prediction = score
        elif kind == "eps":
            prediction = -sigma[:, :, None] * score
        else:
            prediction = self._mean(responsibility, residual, s2, alpha)
            if kind == "v":
                prediction = -alpha[:, :, None] * sigma[:, :, None] * score - sigma[:, :, None] * prediction
            elif kind == "flow":
                prediction = -sigma[:, :, None] * score - prediction
        return prediction.reshape(x.shape)

    def _mean(self, responsibility: Tensor, residual: Tensor, s2: Tensor, alpha: Tensor) -> Tensor:
        """E[x_0 given x_t], (B, 1, D)."""
        means, variances = self.means.to(residual.dtype), self.variances.to(residual.dtype)
        gain = responsibility * alpha * variances / s2
        return (responsibility @ means)[:, None] + gain[:, None] @ residual

    def posterior(self, x: Tensor, t: float | Tensor, condition: Condition | None = None) -> Posterior:
        """The exact mean and variance of each element of x_0 given x_t = x: sum_k r_k (c_k + (m_k - mean)^2)."""
        residual, s2, log_joint, alpha, sigma = self._components(x, t, condition)
        responsibility = log_joint.softmax(1)
        mean = self._mean(responsibility, residual, s2, alpha)
        variances = self.variances.to(x.dtype)
        own = self.means.to(x.dtype) + (alpha * variances / s2)[:, :, None] * residual      # m_k (B, K, D)
        spread = (variances * sigma.square() / s2)[:, :, None] + (own - mean).square()
        return Posterior(mean.reshape(x.shape), (responsibility[:, None] @ spread).reshape(x.shape))

    def sample(self, n: int, t: float = 0.0, generator: torch.Generator | None = None,
               condition: Condition | None = None) -> Tensor:
        """n exact draws (n, D) of the marginal at t, in float64 and on the generator's device (the CPU without one)."""
        check_time(self.sde, t)
        device = generator.device if generator is not None else torch.device("cpu")
        weights = self.weights.to(device)
        if condition:
            members = self._members(condition, torch.empty(n, 0, device=device))
            assert members is not None      # a mixture without classes takes no condition
            component = torch.multinomial(weights * members, 1, generator=generator)[:, 0]
        else:
            component = torch.multinomial(weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator, device=device)
        alpha, sigma = self.sde.alpha(t).to(device), self.sde.sigma(t).to(device)
        std = (alpha.square() * self.variances.to(device) + sigma.square()).sqrt()
        return alpha * self.means.to(device)[component] + std[component, None] * noise


class GivenMixture(Given):
    """A mixture with its label bound, whose density and draws are exact too."""

    model: GaussianMixture

    def log_prob(self, x: Tensor, t: float | Tensor = 0.0) -> Tensor:
        """log p_t(x | label) in nats, (batch,)."""
        return self.model.log_prob(x, t, self.for_batch(x))

    def sample(self, n: int, t: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """n exact draws (n, D) of p_t(x | label), one for each label if n labels are given; as GaussianMixture.sample."""
        return self.model.sample(n, t, generator, self.for_batch(torch.empty(n, 0)))


def _checked_labels(labels: Tensor | Sequence[int], components: int) -> Tensor:
    labels = torch.as_tensor(labels)
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.shape != (components,):
        raise ArgumentError(f"a mixture of {components} components needs labels ({components},) that are integers, got "
                            f"{labels.dtype} of shape {tuple(labels.shape)}", "labels")
    if labels.unique().tolist() != list(range(int(labels.max()) + 1)):
        raise ArgumentError(f"labels must cover 0, 1, .. up to the last, got {labels.unique().tolist()}", "labels")
    return labels.long()
