"""The variance of a step back: with that of x_s given x_t, Gaussian data are exact in any number of steps."""

import math

import pytest
import torch

from scorefield.likelihood import chain_elbo
from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VPSDE, SubVPSDE

STD = 0.5
GAUSSIAN = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.tensor([STD**2]))
N = 20_000


def std_of(name, steps, **settings):
    sampler = make_sampler(name, steps=steps, **settings)
    x = sampler(GAUSSIAN, prior_sample(GAUSSIAN.sde, (2,), range(N)).double(), range(N)).x
    return float(x.square().mean().sqrt())


@pytest.mark.costly
@pytest.mark.parametrize("name, settings", [("ancestral", {}), ("ddim", {}), ("ddim", {"eta": 0.6}), ("ddim", {"eta": 1.0})])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_the_analytic_variance_is_exact_for_gaussian_data_in_any_number_of_steps(name, settings, steps):
    sde = GAUSSIAN.sde
    wanted = math.sqrt(float(sde.alpha(sde.t_sample) ** 2 * STD**2 + sde.sigma(sde.t_sample) ** 2))
    assert abs(std_of(name, steps, variance="analytic", **settings) - wanted) < 4 * wanted / math.sqrt(4 * N)


def test_the_other_variances_are_not():
    assert std_of("ancestral", 3, variance="beta") > 1.2 * STD and std_of("ancestral", 3, variance="beta_tilde") < 0.8 * STD


def test_ancestral_sampling_and_ddim_of_eta_1_take_the_same_steps():
    x_T = prior_sample(GAUSSIAN.sde, (2,), range(5)).double()
    for variance in ("beta", "beta_tilde", "analytic"):
        a, b = (make_sampler(name, steps=6, variance=variance, **settings)(GAUSSIAN, x_T, range(5)).x
                for name, settings in (("ancestral", {}), ("ddim", {"eta": 1.0})))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_sigma_hat_is_the_ddim_papers():
    """Noise of sqrt(1 - alpha_bar_t / alpha_bar_s) beside the mean of eta 1 (Song et al. 2021, appendix D.3)."""
    sde, sampler = VPSDE(), make_sampler("ddim", steps=4, eta=1.0, variance="beta")
    times = sampler.times(GAUSSIAN)
    bar = sde.alpha(times).square()
    torch.testing.assert_close(sampler.coefficients(sde, times)[2], (1 - bar[:-1] / bar[1:]).sqrt(), rtol=1e-10, atol=0)
    mean = make_sampler("ddim", steps=4, eta=1.0).coefficients(sde, times)[:2]
    assert all(torch.equal(a, b) for a, b in zip(sampler.coefficients(sde, times)[:2], mean, strict=True))


@pytest.mark.costly
@pytest.mark.parametrize("steps", [5, 10, 25, 100])
def test_the_bound_of_a_chain_with_the_analytic_variance_is_the_density_of_gaussian_data(steps):
    """Within .02 nats and four standard errors, of 4,000 examples of N(0, .25 I); beta and beta_tilde are looser."""
    x = GAUSSIAN.sample(4000, generator=torch.Generator().manual_seed(0))
    exact = GAUSSIAN.log_prob(x)

    def gap(variance):
        value = chain_elbo(GAUSSIAN, x, None, steps=steps, variance=variance, seeds=range(4000), dtype=torch.float64).value
        return exact - value

    analytic = gap("analytic")
    assert abs(float(analytic.mean())) < 0.02 + 4 * float(analytic.std()) / math.sqrt(4000)
    assert float(gap("beta").mean()) > float(analytic.mean()) + 0.015
    assert float(gap("beta_tilde").mean()) > 10


def test_the_bound_of_integers_takes_a_variance_for_each_element():
    mixture = GaussianMixture(VPSDE(), torch.tensor([[-0.5, 0.2], [0.6, -0.1]]), torch.tensor([0.01, 0.02]))
    x = mixture.sample(300, generator=torch.Generator().manual_seed(0))
    k = ((x.clamp(-1, 1) + 1) / 2 * 63).round().long()
    analytic, beta = (chain_elbo(mixture, k, 64, steps=30, variance=variance, seeds=range(300)).value
                      for variance in ("analytic", "beta"))
    assert analytic.shape == (300,)
    assert float((analytic - beta).mean()) > 4 * float((analytic - beta).std()) / math.sqrt(300)


def test_a_model_without_a_variance_and_what_does_not_fit_are_refused():
    model, x_T = Denoiser(MLP((2,), 8, 1), VPSDE()), torch.zeros(1, 2)
    for name in ("ancestral", "ddim"):
        with pytest.raises(ArgumentError, match="knows its mean only") as error:
            make_sampler(name, steps=2, variance="analytic")(model, x_T, [0])
        assert error.value.arguments == ("variance",)
    with pytest.raises(ArgumentError, match="knows its mean only"):
        chain_elbo(model, x_T, None, steps=3, variance="analytic", seeds=[0])
    with pytest.raises(ArgumentError, match="for eta 1"):
        make_sampler("ddim", variance="beta")
    with pytest.raises(ArgumentError, match="leave it out"):
        make_sampler("ancestral", variance="analytic", mean_shift=True)
    for last_noise, variance in ((0.01, "beta_tilde"), (0.0, "analytic"), (math.inf, "analytic")):
        with pytest.raises(ArgumentError, match="last_noise is a positive number for variance analytic"):
            make_sampler("ancestral", variance=variance, last_noise=last_noise)
    mixture = GaussianMixture(SubVPSDE(), torch.zeros(1, 2), torch.tensor([1.0]))
    with pytest.raises(ArgumentError, match="DDPM and SMLD"):
        make_sampler("ancestral", steps=2, variance="analytic")(mixture, x_T, [0])
