"""A mixture whose components have labels: classes and posteriors against mixtures of one class, quadrature, draws."""

import math
import pickle

import pytest
import torch

from scorefield.models import GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE

MEANS = torch.tensor([[-2.0, 0.5], [1.5, -1.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
VARIANCES = torch.tensor([0.3, 0.05, 1.2, 0.4], dtype=torch.float64)
WEIGHTS = torch.tensor([2.0, 1.0, 5.0, 0.5], dtype=torch.float64)
LABELS = [1, 0, 1, 2]
KINDS = ["score", "eps", "x0", "v", "flow"]
TIMES = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.999], dtype=torch.float64)      # all within the range of every SDE
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def mixture(sde):
    return GaussianMixture(sde, MEANS, VARIANCES, WEIGHTS, LABELS)


@pytest.fixture
def x(mixture):
    generator = torch.Generator().manual_seed(0)
    return torch.cat([mixture.sample(1, float(t), generator) for t in TIMES])


def of_class(sde, label):
    own = [k for k, other in enumerate(LABELS) if other == label]
    return GaussianMixture(sde, MEANS[own], VARIANCES[own], WEIGHTS[own])


# Classes


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_given_mixture_is_the_mixture_of_the_components_of_its_class(sde, mixture, x, label):
    model, own = mixture.given(label=label), of_class(sde, label)
    for kind in KINDS:
        torch.testing.assert_close(model.predict(x, TIMES, kind), own.predict(x, TIMES, kind), **EXACT)
    torch.testing.assert_close(model.log_prob(x, TIMES), own.log_prob(x, TIMES), **EXACT)
    for mine, exact in zip(vars(model.posterior(x, TIMES)).values(), vars(own.posterior(x, TIMES)).values(), strict=True):
        torch.testing.assert_close(mine, exact, **EXACT)


def test_a_label_for_each_sample_gives_the_model_of_each_class(sde, mixture, x):
    labels = torch.tensor([2, 0, 1, 1, 0])
    model = mixture.given(label=labels)
    for i, label in enumerate(labels.tolist()):
        own, t = of_class(sde, label), TIMES[i:i + 1]
        torch.testing.assert_close(model.score(x, TIMES)[i:i + 1], own.score(x[i:i + 1], t), **EXACT)
        torch.testing.assert_close(model.log_prob(x, TIMES)[i:i + 1], own.log_prob(x[i:i + 1], t), **EXACT)


def test_without_a_label_the_mixture_is_that_of_all_components_to_the_bit(sde, mixture, x):
    plain = GaussianMixture(sde, MEANS, VARIANCES, WEIGHTS)
    for kind in KINDS:
        expected = plain.predict(x, TIMES, kind)
        assert torch.equal(mixture.predict(x, TIMES, kind), expected)
        assert torch.equal(mixture.given(label=None).predict(x, TIMES, kind), expected)
    torch.testing.assert_close(mixture.given(label=None).log_prob(x, TIMES), plain.log_prob(x, TIMES), **EXACT)
    draws = [m.sample(9, 0.3, torch.Generator().manual_seed(1)) for m in (plain, mixture)]
    assert torch.equal(*draws)


def test_the_probabilities_of_classes_are_bayes_rule(sde, mixture, x):
    log_prob = mixture.class_log_prob(x, TIMES)
    assert log_prob.shape == (5, 3)
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(5).double(), **EXACT)
    total = WEIGHTS.sum()
    for label in range(3):
        prior = math.log(sum(float(w) for w, other in zip(WEIGHTS, LABELS, strict=True) if other == label) / float(total))
        joint = of_class(sde, label).log_prob(x, TIMES) + prior
        torch.testing.assert_close(log_prob[:, label], joint - mixture.log_prob(x, TIMES), rtol=1e-11, atol=1e-11)


def test_the_gradient_of_the_class_is_the_difference_of_the_scores(mixture, x):
    """grad log p(y | x) = grad log p(x | y) - grad log p(x), which classifier guidance is made of."""
    x = x.requires_grad_()
    gradient, = torch.autograd.grad(mixture.class_log_prob(x, TIMES)[:, 1].sum(), x)
    difference = mixture.given(label=1).score(x, TIMES) - mixture.score(x, TIMES)
    torch.testing.assert_close(gradient, difference, rtol=1e-9, atol=1e-9)


def test_draws_of_a_class_have_its_moments():
    mixture, n = GaussianMixture(VPSDE(), MEANS, VARIANCES, WEIGHTS, LABELS), 50_000
    for label in (0, 1):
        own = of_class(VPSDE(), label)
        x = mixture.given(label=label).sample(n, 0.2, torch.Generator().manual_seed(0))
        y = own.sample(n, 0.2, torch.Generator().manual_seed(1))
        assert bool(((x.mean(0) - y.mean(0)).abs() < 6 * y.std(0) * math.sqrt(2 / n)).all())
        torch.testing.assert_close(x.T.cov(), y.T.cov(), rtol=0.05, atol=0.02)
    narrow = GaussianMixture(VPSDE(), MEANS, torch.zeros(4), WEIGHTS, labels=[0, 1, 2, 3])
    labels = torch.tensor([3, 0, 0, 2])
    assert torch.equal(narrow.given(label=labels).sample(4), MEANS[labels])


@pytest.mark.parametrize(("labels", "match"), [
    ([0, 1, 1], r"4 components needs labels \(4,\)"), ([0.0, 1.0, 1.0, 0.0], "integers, got torch.float32"),
    ([0, 1, 3, 1], r"labels must cover 0, 1, .*got \[0, 1, 3\]"), ([-1, 0, 1, 0], "must cover"),
])
def test_labels_that_do_not_fit_are_refused(labels, match):
    with pytest.raises(ArgumentError, match=match) as caught:
        GaussianMixture(VPSDE(), MEANS, VARIANCES, WEIGHTS, labels)
    assert caught.value.arguments == ("labels",)


def test_a_mixture_without_labels_has_no_classes_to_tell_apart():
    with pytest.raises(ArgumentError, match=r"no labels; make it with labels=\(K,\)"):
        GaussianMixture(VPSDE(), MEANS, VARIANCES).class_log_prob(torch.zeros(1, 2), 0.5)


def test_a_mixture_and_its_classes_pickle(mixture, x):
    for model in (mixture, mixture.given(label=[0, 1, 2, 0, 1])):
        other = pickle.loads(pickle.dumps(model))
        assert torch.equal(other.score(x, TIMES), model.score(x, TIMES))
        assert torch.equal(other.log_prob(x, TIMES), model.log_prob(x, TIMES))


# Posteriors


@pytest.mark.parametrize("t", [0.05, 0.3, 0.7])
def test_the_posterior_is_that_of_quadrature(sde, t):
    """In one dimension, p(x_0 | x_t) by a sum over a fine grid of x_0."""
    mixture = GaussianMixture(sde, MEANS[:, :1], VARIANCES, WEIGHTS)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    x_t = torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64) * (alpha**2 + sigma**2) ** 0.5
    grid = torch.linspace(-14, 14, 200_001, dtype=torch.float64)
    prior = GaussianMixture(VPSDE(), MEANS[:, :1], VARIANCES, WEIGHTS).log_prob(grid[:, None])
    log_joint = prior - 0.5 * ((x_t - alpha * grid) / sigma).square()
    weight = log_joint.softmax(1)
    mean = weight @ grid
    variance = (weight * (grid - mean[:, None]).square()).sum(1)
    posterior = mixture.posterior(x_t, t)
    torch.testing.assert_close(posterior.mean[:, 0], mean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(posterior.variance[:, 0], variance, rtol=1e-7, atol=1e-7)


def test_the_posterior_variance_is_the_slope_of_its_mean(sde, mixture, x):
    """Cov[x_0 given x_t] = sigma^2 / alpha d E[x_0 given x_t] / d x_t, of which the diagonal."""
    scale = (sde.sigma(TIMES).square() / sde.alpha(TIMES))[:, None]
    jacobian = torch.stack([torch.autograd.functional.jacobian(
        lambda one, t=t: mixture.x0(one[None], t)[0], row) for row, t in zip(x, TIMES, strict=True)])
    posterior = mixture.posterior(x, TIMES)
    expected = scale * jacobian.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(posterior.variance, expected, rtol=1e-8, atol=1e-10)
    assert torch.equal(posterior.mean, mixture.x0(x, TIMES))


def test_the_posterior_variance_averages_to_the_error_of_the_mean():
    """E |x_0 - E[x_0 given x_t]|^2 = E Var[x_0 given x_t], by draws."""
    sde, n = VPSDE(), 40_000
    mixture = GaussianMixture(sde, MEANS, VARIANCES, WEIGHTS)
    generator = torch.Generator().manual_seed(3)
    x0 = mixture.sample(n, 0.0, generator)
    eps = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    posterior = mixture.posterior(sde.perturb(x0, 0.3, eps), 0.3)
    gap = (x0 - posterior.mean).square() - posterior.variance
    assert bool((gap.mean(0).abs() < 5 * gap.std(0) / math.sqrt(n)).all())


def test_a_posterior_has_the_shape_and_dtype_of_x():
    mixture = GaussianMixture(VPSDE(), torch.arange(12.0).reshape(2, 6), torch.ones(2), labels=[0, 1])
    posterior = mixture.given(label=1).posterior(torch.randn(3, 1, 2, 3), 0.5)
    for part in (posterior.mean, posterior.variance):
        assert part.shape == (3, 1, 2, 3) and part.dtype == torch.float32
    with pytest.raises(AttributeError):
        posterior.mean = None


def test_one_gaussian_has_the_posterior_of_the_text_books(sde):
    mixture = GaussianMixture(sde, torch.tensor([[0.7]]), torch.tensor([0.25]))
    alpha, sigma2 = sde.alpha(0.6), sde.sigma(0.6).square()
    x = torch.tensor([[1.3]], dtype=torch.float64)
    precision = 1 / 0.25 + alpha.square() / sigma2
    mean = (float(torch.tensor(0.7)) / 0.25 + alpha * x / sigma2) / precision
    torch.testing.assert_close(mixture.posterior(x, 0.6).mean, mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mixture.posterior(x, 0.6).variance, (1 / precision).reshape(1, 1), rtol=1e-10, atol=1e-14)
