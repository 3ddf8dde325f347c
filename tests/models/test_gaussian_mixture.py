"""The exact score model against an independent oracle, autodiff, brute force and torch.distributions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from scorefield.models import GaussianMixture
from scorefield.sde_lib import SDE, VESDE, VPSDE

ORACLE = Path(__file__).parents[1] / "oracles" / "gmm2_vp_linear.npz"
MEANS = torch.tensor([[-2.0, 0.5, 1.0], [1.5, -1.0, 0.0], [0.0, 2.0, -0.5]], dtype=torch.float64)
VARIANCES = torch.tensor([0.3, 0.0, 1.2], dtype=torch.float64)      # the second a point mass
WEIGHTS = torch.tensor([2.0, 1.0, 5.0], dtype=torch.float64)
TIMES = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.999], dtype=torch.float64)      # all within the range of every SDE


@pytest.fixture
def mixture(sde):
    return GaussianMixture(sde, MEANS, VARIANCES, WEIGHTS)


@pytest.fixture
def x(mixture):
    generator = torch.Generator().manual_seed(0)
    return torch.cat([mixture.sample(1, float(t), generator) for t in TIMES])


@pytest.mark.parametrize("t", ["0.001", "0.5", "1"])
def test_log_prob_and_score_are_those_of_the_oracle(t):
    oracle = {name: torch.from_numpy(array) for name, array in np.load(ORACLE).items()}
    mixture = GaussianMixture(VPSDE(0.1, 20.0), oracle["mu"], oracle["var"], oracle["weights"])
    x = oracle["x_0"]
    torch.testing.assert_close(mixture.log_prob(x, float(t)), oracle[f"log_prob|x_0|t={t}"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mixture.score(x, float(t)), oracle[f"score|x_0|t={t}"], rtol=1e-10, atol=1e-10)


def test_log_prob_is_the_density_that_torch_distributions_give(sde, mixture, x):
    for t in TIMES:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        std = (alpha.square() * VARIANCES + sigma.square()).sqrt()[:, None].expand(3, 3)
        marginal = MixtureSameFamily(Categorical(WEIGHTS), Independent(Normal(alpha * MEANS, std), 1))
        torch.testing.assert_close(mixture.log_prob(x, t), marginal.log_prob(x), rtol=1e-12, atol=1e-12)


def test_log_prob_without_a_time_is_the_density_of_the_data():
    mixture = GaussianMixture(VPSDE(), MEANS, VARIANCES + 0.1, WEIGHTS)
    data = Independent(Normal(MEANS, (VARIANCES + 0.1).sqrt()[:, None].expand(3, 3)), 1)
    x = torch.ones(1, 3, dtype=torch.float64)
    expected = MixtureSameFamily(Categorical(WEIGHTS), data).log_prob(x)
    torch.testing.assert_close(mixture.log_prob(x), expected, rtol=1e-12, atol=0)


def test_the_score_is_the_gradient_of_log_prob(mixture, x):
    x = x.requires_grad_()
    gradient = torch.autograd.grad(mixture.log_prob(x, TIMES).sum(), x)[0]
    torch.testing.assert_close(mixture.score(x, TIMES), gradient, rtol=1e-10, atol=1e-10)


def test_eps_x0_v_and_flow_are_consistent_with_the_score(sde, mixture, x):
    alpha, sigma, score = sde.alpha(TIMES)[:, None], sde.sigma(TIMES)[:, None], mixture.score(x, TIMES)
    eps, x0 = -sigma * score, (x + sigma.square() * score) / alpha      # Tweedie's formula
    tolerance = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(mixture.eps(x, TIMES), eps, **tolerance)
    torch.testing.assert_close(mixture.x0(x, TIMES), x0, rtol=1e-9, atol=1e-8)
    v = alpha * mixture.eps(x, TIMES) - sigma * mixture.x0(x, TIMES)
    torch.testing.assert_close(mixture.v(x, TIMES), v, **tolerance)
    flow = mixture.eps(x, TIMES) - mixture.x0(x, TIMES)
    torch.testing.assert_close(mixture.flow(x, TIMES), flow, **tolerance)


def test_x0_is_the_posterior_mean_of_the_data_by_brute_force(sde):
    means, variances, weights = [-1.0, 0.5, 2.0], [0.04, 0.3, 0.1], [0.3, 0.5, 0.2]
    mixture = GaussianMixture(sde, torch.tensor(means)[:, None], torch.tensor(variances), torch.tensor(weights))
    data = torch.linspace(-6, 8, 70_001, dtype=torch.float64)
    density = sum(w * torch.exp(-((data - m) ** 2) / (2 * v)) / v**0.5
                  for m, v, w in zip(means, variances, weights, strict=True))
    for t in (0.02, 0.3, 0.6, sde.t_max):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        for x in (-1.2 * alpha, 0.1, 1.5 * alpha + sigma):
            log_likelihood = -((x - alpha * data) ** 2) / (2 * sigma**2)
            posterior = density * torch.exp(log_likelihood - log_likelihood.max())
            brute = float((posterior * data).sum() / posterior.sum())
            exact = mixture.x0(torch.tensor([[x]], dtype=torch.float64), t)
            assert float(exact) == pytest.approx(brute, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.999])
def test_samples_have_the_moments_of_the_marginal(sde, mixture, t):
    n = 100_000
    x = mixture.sample(n, t, torch.Generator().manual_seed(0))
    assert x.shape == (n, 3) and x.dtype == torch.float64
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    weights = WEIGHTS / WEIGHTS.sum()
    mean = alpha * (weights @ MEANS)
    spread = alpha**2 * torch.einsum("k,ki,kj->ij", weights, MEANS, MEANS) - torch.outer(mean, mean)
    covariance = spread + torch.eye(3) * (alpha**2 * float(weights @ VARIANCES) + sigma**2)
    std = covariance.diagonal().sqrt()
    assert bool(((x.mean(0) - mean).abs() < 5 * std / math.sqrt(n)).all())
    assert bool(((x.T.cov() - covariance).abs() < 5 * math.sqrt(3 / n) * torch.outer(std, std)).all())


def test_samples_are_those_of_the_generator(sde, mixture):
    draws = [mixture.sample(5, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("event", [(6,), (6, 1, 1), (1, 2, 3), (2, 3)], ids=str)
def test_any_event_shape_of_as_many_elements_will_do(event):
    means = torch.linspace(-2, 2, 12).reshape(2, 6)
    mixture = GaussianMixture(VPSDE(), means, torch.tensor([0.5, 1.0]))
    flat = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, t = flat.reshape(4, *event), torch.tensor([0.1, 0.4, 0.7, 1.0])
    torch.testing.assert_close(mixture.log_prob(x, t), mixture.log_prob(flat, t), rtol=1e-14, atol=0)
    for kind in ("score", "eps", "x0", "v", "flow"):
        prediction = mixture.predict(x, t, kind)
        assert prediction.shape == x.shape
        torch.testing.assert_close(prediction.reshape(4, 6), mixture.predict(flat, t, kind), rtol=1e-14, atol=0)


def test_scalars_are_events_of_one_dimension():
    mixture = GaussianMixture(VESDE(), torch.zeros(1, 1), torch.ones(1))
    x = torch.tensor([0.5, -2.0], dtype=torch.float64)
    variance = 1 + VESDE().sigma(0.4).square()
    torch.testing.assert_close(mixture.score(x, 0.4), -x / variance, rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", ["score", "eps", "x0", "v", "flow"])
def test_a_scalar_time_and_a_vector_of_it_agree_in_the_dtype_of_x(mixture, x, kind):
    exact = mixture.predict(x, torch.full((5,), 0.4, dtype=torch.float64), kind)
    assert torch.equal(mixture.predict(x, 0.4, kind), exact)
    rough = mixture.predict(x.float(), 0.4, kind)
    assert rough.dtype == torch.float32 and mixture.log_prob(x.float(), 0.4).dtype == torch.float32
    torch.testing.assert_close(rough.double(), exact, rtol=1e-3, atol=1e-3)


def test_far_from_the_data_the_score_points_back_and_log_prob_is_finite():
    mixture = GaussianMixture(VPSDE(), MEANS, VARIANCES, WEIGHTS)
    x = torch.full((1, 3), 1e4)
    assert bool(mixture.log_prob(x, 1e-3).isfinite().all()) and bool((mixture.score(x, 1e-3) < 0).all())


def test_weights_are_equal_unless_given_and_are_normalised():
    x = torch.zeros(1, 3, dtype=torch.float64)
    plain, fives = GaussianMixture(VPSDE(), MEANS, VARIANCES), GaussianMixture(VPSDE(), MEANS, VARIANCES, [5.0] * 3)
    assert torch.equal(plain.log_prob(x, 0.5), fives.log_prob(x, 0.5))
    torch.testing.assert_close(plain.weights, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize(("means", "variances", "weights", "match"), [
    (torch.zeros(3), torch.ones(3), None, r"means \(K, D\)"),
    (torch.zeros(3, 2), torch.ones(2), None, r"got \(3, 2\), \(2,\)"),
    (torch.zeros(3, 2), torch.ones(3, 2), None, "variances"),
    (torch.zeros(3, 2), torch.ones(3), torch.ones(2), r"and \(2,\)"),
    (torch.zeros(2, 2), torch.tensor([1.0, -0.1]), None, "not negative"),
    (torch.zeros(2, 2), torch.tensor([1.0, math.nan]), None, "not negative"),
    (torch.zeros(2, 2), torch.ones(2), torch.tensor([1.0, 0.0]), "positive weights"),
    (torch.zeros(2, 2), torch.ones(2), torch.tensor([1.0, -1.0]), "positive weights"),
])
def test_parameters_that_do_not_fit_are_value_errors(means, variances, weights, match):
    with pytest.raises(ValueError, match=match):
        GaussianMixture(VPSDE(), means, variances, weights)


def test_an_x_of_another_dimension_is_refused():
    mixture = GaussianMixture(VPSDE(), MEANS, VARIANCES)
    for call in (mixture.log_prob, mixture.score, mixture.x0):
        with pytest.raises(ValueError, match=r"has 3 dimensions, x has 8 \(shape \(5, 2, 4\)\)"):
            call(torch.zeros(5, 2, 4), 0.5)


def test_an_unknown_kind_of_prediction_lists_those_that_exist():
    mixture = GaussianMixture(VPSDE(), MEANS, VARIANCES)
    with pytest.raises(ValueError, match="'noise'; choose from x0, eps, v, score, flow$"):
        mixture.predict(torch.zeros(1, 3), 0.5, "noise")


def test_the_marginals_obey_the_fokker_planck_equation_of_the_sde(sde):
    """d log p / dt = -f (D + x . score) + g^2/2 (div score + |score|^2), by autodiff."""
    mixture = GaussianMixture(sde, MEANS[:, :1], VARIANCES + 0.05, WEIGHTS)
    x = torch.linspace(-3, 3, 9, dtype=torch.float64)[:, None].requires_grad_()
    for time in (0.05, 0.4, 0.9):
        t = torch.full((9,), time, dtype=torch.float64, requires_grad=True)
        change = torch.autograd.grad(mixture.log_prob(x, t).sum(), t)[0]
        score = mixture.score(x, t)
        divergence = torch.autograd.grad(score.sum(), x)[0]
        with torch.no_grad():
            f, g2 = SDE.drift(sde, t)[:, None], SDE.g2(sde, t)[:, None]
            flow = -f * (1 + x * score) + 0.5 * g2 * (divergence + score.square())
        torch.testing.assert_close(change, flow[:, 0], rtol=1e-8, atol=1e-8 * float(flow.abs().max()))
