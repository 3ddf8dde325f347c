"""Mixtures with full covariances, and the exact posterior of a mixture given a linear measurement."""

import math

import pytest
import torch

from scorefield.models import FullMixture, GaussianMixture, measured
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE, FlowSDE


def isotropic(sde=None):
    means = torch.tensor([[1.0, 0.0, 0.3], [-1.0, 0.5, 0.0]], dtype=torch.float64)
    return GaussianMixture(sde or VPSDE(), means, torch.tensor([0.1, 0.3], dtype=torch.float64), [1.0, 2.0])


def full(sde=None):
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator) / 2
    means = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    return FullMixture(sde or VPSDE(), means, roots @ roots.mT, [1.0, 3.0])


@pytest.mark.parametrize("kind", ["score", "eps", "x0", "v", "flow"])
def test_a_full_mixture_with_round_components_is_the_isotropic_one(kind):
    mixture = isotropic(FlowSDE())
    same = FullMixture(mixture.sde, mixture.means, mixture.variances[:, None, None] * torch.eye(3), mixture.weights)
    x, t = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.linspace(0.1, 0.9, 5)
    torch.testing.assert_close(same.predict(x, t, kind), mixture.predict(x, t, kind))
    torch.testing.assert_close(same.log_prob(x, t), mixture.log_prob(x, t))
    torch.testing.assert_close(same.posterior(x, t).variance, mixture.posterior(x, t).variance)


def test_the_score_of_a_full_mixture_is_the_gradient_of_its_log_density():
    x = torch.randn(4, 3, dtype=torch.float64).requires_grad_()
    slope, = torch.autograd.grad(full().log_prob(x, 0.3).sum(), x)
    torch.testing.assert_close(full().score(x, 0.3), slope)


def test_the_posterior_of_a_mixture_is_bayes_rule():
    """log p(x given y) = log p(x) + log p(y given x) - log p(y), for any x."""
    matrix, y, std = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64), torch.tensor([0.4, -0.2]), 0.3
    x = torch.randn(6, 3, dtype=torch.float64)
    for mixture in (isotropic(), full()):
        exact, log_evidence = measured(mixture, matrix, y, std)
        likelihood = -0.5 * ((y - x @ matrix.T) / std).square().sum(1) - 2 * math.log(std * math.sqrt(2 * math.pi))
        torch.testing.assert_close(exact.log_prob(x), mixture.log_prob(x) + likelihood - log_evidence)


def test_a_measurement_without_noise_leaves_no_variance_along_it():
    matrix = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64)
    exact, _ = measured(full(), matrix, torch.tensor([0.7]), 0.0)
    drawn = exact.sample(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn @ matrix[0], torch.full((100,), 0.7, dtype=torch.float64), rtol=0, atol=1e-6)


def test_draws_of_a_full_mixture_have_its_moments():
    mixture = full()
    drawn = mixture.sample(200_000, generator=torch.Generator().manual_seed(0))
    mean = mixture.weights @ mixture.means
    spread = mixture.covariances + (mixture.means - mean)[:, :, None] * (mixture.means - mean)[:, None]
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.T.cov(), torch.einsum("k,kde->de", mixture.weights, spread), rtol=0, atol=0.03)


def test_what_is_no_mixture_is_refused():
    with pytest.raises(ArgumentError, match="negative eigenvalues"):
        FullMixture(VPSDE(), torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]))
    with pytest.raises(ArgumentError, match="symmetric"):
        FullMixture(VPSDE(), torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]))
    with pytest.raises(ArgumentError, match=r"covariances \(K, D, D\)"):
        FullMixture(VPSDE(), torch.zeros(1, 2), torch.eye(2))
    with pytest.raises(ArgumentError, match=r"a matrix \(m, 3\)"):
        measured(full(), torch.zeros(1, 2), torch.zeros(1), 1.0)
    with pytest.raises(ArgumentError, match="no density"):
        measured(full(), torch.ones(2, 3), torch.zeros(2), 0.0)
