import numpy as np
import pytest
import torch

from models import GaussianMixture
from samplers import make_sampler, prior_sample
from sde_lib import VESDE, VPSDE

STD = 0.5      # of one-dimensional Gaussian data, for which the scheme is linear and its variance a recursion


def gaussian(sde):
    return GaussianMixture(sde, torch.zeros(1, 1), torch.tensor([STD**2]))


def variance_of_scheme(sde, times, eta):
    """Variance after Euler-Maruyama with the exact linear score -x / V(t), by its own recursion."""
    variance = sde.prior_std**2
    for t, s in zip(times[:-1], times[1:], strict=True):
        h = t - s
        f, g2 = float(sde.drift(t)), float(sde.g2(t))
        marginal = float(sde.alpha(t)) ** 2 * STD**2 + float(sde.sigma(t)) ** 2
        variance = (1 - h * f - h * (1 + eta**2) / 2 * g2 / marginal) ** 2 * variance + eta**2 * g2 * h
    return variance


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=5.0)], ids=["vp", "ve"])
def test_samples_have_the_variance_that_the_scheme_has_on_a_gaussian(sde, eta):
    n = 20_000
    sampler = make_sampler("euler_maruyama", steps=50, eta=eta, t_end=1e-3)
    x_T = prior_sample(sde.prior_std, (1,), range(n), dtype=torch.float64)
    x = sampler(gaussian(sde), x_T, seeds=range(n)).x
    expected = variance_of_scheme(sde, sampler.times(gaussian(sde)).tolist(), eta)
    assert abs(float(x.var()) / expected - 1) < 4 * np.sqrt(2 / n)
    assert abs(float(x.mean())) < 4 * np.sqrt(expected / n)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_weak_order_is_one(eta):
    """The bias of the second moment against a grid sixteen times finer falls in proportion to the step."""
    sde = VPSDE()
    steps = np.array([100, 200, 400, 800])
    errors = [abs(variance_of_scheme(sde, np.linspace(1, 1e-3, n + 1), eta)
                  - variance_of_scheme(sde, np.linspace(1, 1e-3, 16 * 800 + 1), eta)) for n in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert -1.3 < slope < -0.85


def test_with_many_steps_it_draws_the_data():
    """Two well separated modes: their weights, means and spreads come back."""
    model = GaussianMixture(VPSDE(), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.01, 0.04]),
                            torch.tensor([0.3, 0.7]))
    n = 4000
    x = make_sampler("euler_maruyama", steps=500)(
        model, prior_sample(1.0, (1,), range(n), dtype=torch.float64), seeds=range(n)).x
    right = x[x > 0]
    assert abs(len(right) / n - 0.7) < 4 * np.sqrt(0.21 / n)
    assert abs(float(right.mean()) - 1.0) < 0.02 and abs(float(right.std()) - 0.2) < 0.01
    assert abs(float(x[x < 0].std()) - 0.1) < 0.01


def test_eta_zero_is_euler_on_the_probability_flow_and_needs_no_seeds():
    model = gaussian(VPSDE())
    sampler = make_sampler("euler_maruyama", steps=7, eta=0.0)
    x = x_T = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    times = sampler.times(model)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = x + (s - t) * model.sde.reverse_drift(x, t, model.score(x, t), eta=0.0)
    torch.testing.assert_close(sampler(model, x_T).x, x, rtol=1e-12, atol=1e-12)
    assert not sampler.stochastic


def test_negative_eta_is_refused():
    with pytest.raises(ValueError, match="--eta"):
        make_sampler("euler_maruyama", eta=-0.1)
