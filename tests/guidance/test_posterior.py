"""Posterior score models against exact posteriors: where each method is exact, and what its twist is."""

import pytest
import torch

from scorefield.guidance import posterior, threshold
from scorefield.guidance.operators import Function, Matrix, make_operator
from scorefield.guidance.posterior import METHODS
from scorefield.models import FullMixture, GaussianMixture, measured
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample, sample_seeds
from scorefield.sde_lib import VESDE, VPSDE, FlowSDE

A = torch.tensor([[1.0, 0.5, 0.0, -1.0], [0.0, 2.0, 1.0, 0.3]], dtype=torch.float64)
Y = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
TIMES = torch.linspace(0.05, 0.95, 5, dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(sde=None):
    """Data N(mean, covariance) in four dimensions."""
    root = draw(4, 4, seed=1) / 2
    return FullMixture(sde or VPSDE(), draw(1, 4, seed=2), (root @ root.T + 0.1 * torch.eye(4))[None])


def round_gaussian(sde=None, std=0.6):
    return GaussianMixture(sde or VPSDE(), draw(1, 4, seed=2), torch.tensor([std**2], dtype=torch.float64))


def exactness(model, operator, y, noise_std, method):
    """How far score and twist of the method are from those of the exact posterior."""
    x = draw(5, 4)
    exact, log_evidence = measured(model, operator.dense(), y[0], noise_std)
    guided = posterior(model, operator, y, noise_std, method)
    twist = exact.log_prob(x, TIMES) + log_evidence - model.log_prob(x, TIMES)
    return (float((guided.score(x, TIMES) - exact.score(x, TIMES)).abs().max()),
            float((guided.twist(x, TIMES).log_twist - twist).abs().max()))


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.01, 5.0), FlowSDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("noise_std", [0.3, 0.0])
def test_tmpd_is_exact_for_gaussian_data_of_any_covariance(sde, noise_std):
    score, twist = exactness(gaussian(sde), Matrix(A, (4,)), Y, noise_std, "tmpd")
    assert score < 1e-8 and twist < 1e-8


def test_tmpd_by_conjugate_gradients_is_exact_for_gaussian_data_too():
    score, _ = exactness(gaussian(), Matrix(A, (4,)), Y, 0.3, "tmpd:dense=0:iterations=2")
    assert score < 1e-8
    x, model, operator = draw(5, 4), gaussian(), Matrix(A[:1], (4,))      # one element: the determinant is exact, too
    by_matrix, by_gradients = (posterior(model, operator, Y[:, :1], 0.3, f"tmpd:dense={n}").twist(x, TIMES) for n in (9, 0))
    torch.testing.assert_close(by_gradients.log_twist, by_matrix.log_twist)


def test_the_twist_of_conjugate_gradients_has_a_determinant_of_equal_eigenvalues():
    """What docs/posteriors.md says of it: that of c I, with c = r^T r / r^T S^-1 r, S the covariance of y given x_t."""
    x, model, operator = draw(5, 4), gaussian(), Matrix(A, (4,))
    exact, cheap = (posterior(model, operator, Y, 0.3, f"tmpd:dense={n}").twist(x, 0.4) for n in (2, 0))
    root = draw(4, 4, seed=1) / 2
    prior, alpha, sigma = root @ root.T + 0.1 * torch.eye(4), model.sde.alpha(0.4), model.sde.sigma(0.4)
    given_x = torch.linalg.inv(torch.linalg.inv(prior) + alpha**2 / sigma**2 * torch.eye(4))
    s = A @ given_x @ A.T + 0.09 * torch.eye(2)
    r = Y - exact.x0 @ A.T
    c = r.square().sum(1) / (r * torch.linalg.solve(s, r.T).T).sum(1)
    torch.testing.assert_close(cheap.log_twist - exact.log_twist, (torch.logdet(s) - 2 * c.log()) / 2)
    torch.testing.assert_close(cheap.shift, exact.shift)


def test_pigdm_is_exact_for_gaussian_data_of_its_variance_alone():
    operator = Matrix(A, (4,))
    assert max(exactness(round_gaussian(), operator, Y, 0.3, "pigdm:data_std=0.6")) < 1e-9
    assert exactness(round_gaussian(), operator, Y, 0.3, "pigdm")[0] > 0.1
    assert exactness(gaussian(), operator, Y, 0.3, "pigdm:data_std=0.6")[0] > 0.1


@pytest.mark.parametrize("method", ["replacement", "ddnm", "ddrm", "diffpir"])
def test_projections_are_exact_for_independent_elements_without_noise_alone(method):
    operator, y = make_operator("mask:half=right", (4,)), Y
    assert exactness(round_gaussian(), operator, y, 0.0, method)[0] < 1e-9
    assert exactness(gaussian(), operator, y, 0.0, method)[0] > 0.1
    assert exactness(round_gaussian(), operator, y, 0.3, method)[0] > 0.1


@pytest.mark.parametrize("method, noise_std", [("tmpd", 0.3), ("tmpd", 0.0), ("pigdm:data_std=0.6", 0.3),
                                               *((name, 0.0) for name in ("replacement", "ddnm", "ddrm", "diffpir"))])
def test_mean_and_covariance_of_samples_are_right_where_the_method_is_exact(method, noise_std):
    """By the flow, of 4096 samples, within 4 standard errors; the flow ends a little before the data and starts at t_max."""
    model = gaussian() if method == "tmpd" else round_gaussian()
    operator = Matrix(A, (4,)) if noise_std or method == "tmpd" else make_operator("mask:half=right", (4,))
    exact, _ = measured(model, operator.dense(), Y[0], noise_std)
    n, seeds = 4096, sample_seeds(0, 0, 4096)
    guided = posterior(model, operator, Y, noise_std, method)
    x = make_sampler("dpm_solver++", steps=80)(guided, prior_sample(model.sde, (4,), seeds, dtype=torch.float64), seeds).x
    mean, covariance = exact.means[0], exact.covariances[0]
    assert bool(((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt() + 4e-3).all())
    spread = ((covariance.diagonal()[:, None] * covariance.diagonal() + covariance.square()) / n).sqrt()
    assert bool(((torch.cov(x.T) - covariance).abs() < 4 * spread + 4e-3).all())


@pytest.mark.parametrize("noise_std", [0.3, 0.0])
def test_dps_is_exact_for_no_gaussian_data(noise_std):
    assert exactness(round_gaussian(), make_operator("mask:half=right", (4,)), Y, noise_std, "dps")[0] > 0.1


@pytest.mark.parametrize("method", ["pigdm", "dps", "dps:weight=score:zeta=2", "dps:weight=likelihood", "tmpd"])
def test_the_score_adds_the_gradient_of_the_twist(method):
    """For TMPD where its covariance does not depend on x, for the others always."""
    means, x = draw(3, 4), draw(5, 4, seed=3).requires_grad_()
    model = gaussian() if method == "tmpd" else GaussianMixture(VPSDE(), means, torch.full((3,), 0.1, dtype=torch.float64))
    guided = posterior(model, Matrix(A, (4,)), Y, 0.3, method)
    slope, = torch.autograd.grad(guided.twist(x, TIMES).log_twist.sum(), x)
    torch.testing.assert_close(guided.score(x, TIMES) - model.score(x, TIMES), slope)


@pytest.mark.parametrize("method", ["ddnm", "diffpir", "ddrm", "replacement"])
def test_the_score_of_a_projection_is_the_gradient_of_its_twist_if_the_jacobian_is_its_guess(method):
    model, x = round_gaussian(std=1.0), draw(5, 4, seed=3).requires_grad_()
    guided = posterior(model, Matrix(A, (4,)), Y, 0.01, method)
    slope, = torch.autograd.grad(guided.twist(x, TIMES).log_twist.sum(), x)
    torch.testing.assert_close(guided.score(x, TIMES) - model.score(x, TIMES), slope)


def test_diffpir_takes_the_nearest_point_to_the_measurement_and_the_prediction():
    model, operator, x, t, std = gaussian(), Matrix(A, (4,)), draw(3, 4), 0.4, 0.2
    twist = posterior(model, operator, Y, std, "diffpir:weight=3").twist(x, t)
    at = (twist.x0 + twist.shift).requires_grad_()
    rho = float(model.sde.sigma(t) / model.sde.alpha(t))
    cost = (Y - operator(at)).square().sum() + 3 * std**2 / rho**2 * (at - twist.x0).square().sum()
    slope, = torch.autograd.grad(cost, at)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-9)


def test_ddnm_gives_data_with_the_measurement_itself_without_noise():
    guided = posterior(gaussian(), Matrix(A, (4,)), Y, 0.0, "ddnm")
    torch.testing.assert_close(guided.x0(draw(5, 4), 0.5) @ A.T, Y.expand(5, -1))


@pytest.mark.parametrize("method", list(METHODS))
def test_every_prediction_is_of_one_score(method):
    model, x = gaussian(FlowSDE()), draw(5, 4)
    guided = posterior(model, Matrix(A, (4,)), Y, 0.1, method)
    score, alpha, sigma = guided.score(x, TIMES), model.sde.alpha(TIMES)[:, None], model.sde.sigma(TIMES)[:, None]
    eps, x0 = -sigma * score, (x + sigma**2 * score) / alpha
    for kind, expected in (("eps", eps), ("x0", x0), ("v", alpha * eps - sigma * x0), ("flow", eps - x0)):
        torch.testing.assert_close(guided.predict(x, TIMES, kind), expected)


@pytest.mark.parametrize("method", ["dps", "tmpd", "tmpd:dense=0"])
def test_a_nonlinear_measurement_is_linearised(method):
    """A linear function said not to be linear is treated as the matrix; a curved one moves |x_0| towards y."""
    model, x = gaussian(), draw(5, 4)
    by_function = posterior(model, Function(lambda x: x @ A.to(x).T, (4,)), Y, 0.3, method)
    torch.testing.assert_close(by_function.score(x, 0.4), posterior(model, Matrix(A, (4,)), Y, 0.3, method).score(x, 0.4))
    norm = Function(lambda x: x.square().sum(1, keepdim=True), (4,))
    twist = posterior(model, norm, torch.tensor([[9.0]], dtype=torch.float64), 0.3, method).twist(x, 0.1)
    assert bool((norm(twist.x0 + 0.1 * twist.shift) > norm(twist.x0)).all())


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver++", "ancestral", "repaint"])
def test_known_pixels_are_kept_to_the_bit_without_noise(method, sampler):
    model = GaussianMixture(VPSDE(), torch.rand(3, 16, generator=torch.Generator().manual_seed(0)), torch.full((3,), 0.01))
    operator, seeds = make_operator("mask:half=right", (1, 4, 4)), sample_seeds(0, 0, 3)
    y = torch.rand(3, *operator.measured, generator=torch.Generator().manual_seed(1))
    options = {"jump": 4, "resample": 2} if sampler == "repaint" else {}
    guided = posterior(model, operator, y, 0.0, method)
    x = make_sampler(sampler, steps=8, **options)(guided, prior_sample(model.sde, (1, 4, 4), seeds), seeds).x
    assert torch.equal(operator(x), y) and bool(x.isfinite().all())


def test_a_measurement_goes_with_its_sample():
    model, x = gaussian(), draw(3, 4)
    y = draw(3, 2, seed=5)
    guided, operator = posterior(model, Matrix(A, (4,)), y, 0.3), Matrix(A, (4,))
    alone = torch.cat([posterior(model, operator, y[i:i + 1], 0.3).score(x[i:i + 1], 0.3) for i in range(3)])
    torch.testing.assert_close(guided.score(x, 0.3), alone)
    torch.testing.assert_close(guided.rows(torch.tensor([2, 2])).score(x[:2], 0.3),
                               posterior(model, operator, y[2:], 0.3).score(x[:2], 0.3))
    with pytest.raises(ArgumentError, match="3 measurements, x is a batch of 2"):
        guided.score(x[:2], 0.3)


def test_labels_go_with_the_rows_of_their_measurements():
    means = draw(2, 4)
    mixture = GaussianMixture(VPSDE(), means, torch.full((2,), 0.1, dtype=torch.float64), labels=[0, 1])
    x, operator = draw(2, 4, seed=4), Matrix(A, (4,))
    guided = posterior(mixture.given(label=torch.tensor([0, 1])), operator, Y.repeat(2, 1), 0.3)
    one = posterior(mixture.given(label=1), operator, Y, 0.3)
    torch.testing.assert_close(guided.rows(torch.tensor([1, 1])).score(x, 0.3), one.score(x, 0.3))
    bounded = posterior(threshold(mixture.given(label=torch.tensor([0, 1])), low=-9, high=9), operator, Y.repeat(2, 1), 0.3)
    torch.testing.assert_close(bounded.rows(torch.tensor([1, 1])).score(x, 0.3), one.score(x, 0.3))
    torch.testing.assert_close(posterior(mixture, operator, Y, 0.3).given(label=1).score(x, 0.3), one.score(x, 0.3))


def test_the_guided_score_can_be_differentiated():
    guided = posterior(gaussian(), Matrix(A, (4,)), Y, 0.3)
    x = draw(2, 4).requires_grad_()
    row, = torch.autograd.grad(guided.score(x, 0.3)[:, 0].sum(), x)
    step = torch.zeros(2, 4, dtype=torch.float64)
    step[:, 1] = 1e-5
    with torch.no_grad():
        difference = (guided.score(x + step, 0.3) - guided.score(x - step, 0.3))[:, 0] / 2e-5
    torch.testing.assert_close(row[:, 1], difference, rtol=1e-6, atol=1e-6)
    with torch.inference_mode():
        assert bool(guided.score(draw(2, 4), 0.3).isfinite().all())


SINGULAR = Matrix(torch.ones(2, 4), (4,))
BAD = [({"y": torch.zeros(1, 3)}, "y must have shape"), ({"y": torch.full((1, 2), torch.nan)}, "finite"),
       ({"y": torch.zeros(1, 2, dtype=torch.long)}, "floating-point"), ({"noise_std": -1.0}, "not negative"),
       ({"operator": SINGULAR, "noise_std": 0.0}, "singular"), ({"method": "dsp"}, "did you mean 'dps'"),
       ({"method": "pigdm:data_std=0"}, "must be positive"), ({"method": "ddrm:eta=2"}, "eta must lie"),
       ({"operator": Function(lambda x: x[:, :2].square(), (4,)), "method": "ddnm"}, "choose tmpd, dps"),
       ({"method": "tmpd:iterations=0"}, "at least 1"), ({"method": "diffpir:weight=-1"}, "must be positive"),
       ({"method": "dps:zeta=0"}, "must be positive"), ({"method": "dps:weight=much"}, "unknown weight 'much'")]


@pytest.mark.parametrize("change, message", BAD, ids=[message for _, message in BAD])
def test_what_cannot_be_is_refused_in_one_line(change, message):
    settings = {"operator": Matrix(A, (4,)), "y": Y, "noise_std": 0.3, "method": "tmpd"} | change
    with pytest.raises(ArgumentError, match=message) as caught:
        posterior(gaussian(), **settings)
    assert caught.value.arguments and "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match="no density"):
        posterior(gaussian(), Matrix(A, (4,)), Y, 0.0).log_likelihood(draw(1, 4))
