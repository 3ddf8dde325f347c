"""The discrete chains against brute force, the papers' formulas, and the SDEs that are their limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorefield.sde_lib import (
    VESDE,
    VPSDE,
    Chain,
    CosineVPSDE,
    DDPMChain,
    SigmoidVPSDE,
    SMLDChain,
    SubVPSDE,
    ddpm,
    scaled_linear_betas,
)

prove = settings(deadline=None, derandomize=True, max_examples=100)
BETAS = st.lists(st.floats(1e-4, 0.7), min_size=2, max_size=12)
SIGMAS = st.lists(st.floats(1.05, 3), min_size=2, max_size=12).map(lambda ratios: 0.01 * np.cumprod(ratios))


def random_walk(chain):
    """The chain as its paper writes it: x_i = scale_i x_(i-1) + std_i z_i, as lists of floats."""
    if isinstance(chain, DDPMChain):
        return [math.sqrt(1 - b) for b in chain.betas.tolist()], [math.sqrt(b) for b in chain.betas.tolist()]
    sigmas = [0.0, *chain.sigma.tolist()]
    return [1.0] * chain.steps, [math.sqrt(b**2 - a**2) for a, b in zip(sigmas, sigmas[1:], strict=False)]


def joint_gaussian(chain):
    """Mean per unit of x_0 and covariance of (x_0, x_1, ...): each x_i is a row of weights on x_0, z_1, z_2, ..."""
    rows = [np.eye(chain.steps + 1)[0]]
    for i, (scale, std) in enumerate(zip(*random_walk(chain), strict=True)):
        rows.append(scale * rows[-1] + std * np.eye(chain.steps + 1)[i + 1])
    weights = np.stack(rows)
    return weights[:, 0], weights[:, 1:] @ weights[:, 1:].T


CHAINS = st.one_of(BETAS.map(DDPMChain), SIGMAS.map(SMLDChain))


# Brute force


@prove
@given(CHAINS)
def test_marginals_are_the_composition_of_the_single_steps(chain):
    mean, covariance = joint_gaussian(chain)
    x0 = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    for i in range(-1, chain.steps):
        scaled, variance = chain.marginal(x0, i)
        torch.testing.assert_close(scaled, mean[i + 1] * x0, rtol=1e-12, atol=0)
        assert float(variance) == pytest.approx(covariance[i + 1, i + 1], rel=1e-11, abs=0)


@prove
@given(CHAINS)
def test_transitions_are_the_regression_of_a_later_state_on_an_earlier_one(chain):
    mean, covariance = joint_gaussian(chain)
    x = torch.tensor([1.5], dtype=torch.float64)
    for j in range(-1, chain.steps - 1):
        for i in range(j + 1, chain.steps):
            result, variance = chain.transition(x, i, j)
            if j == -1:
                slope, left = mean[i + 1], covariance[i + 1, i + 1]
            else:
                slope = covariance[i + 1, j + 1] / covariance[j + 1, j + 1]
                left = covariance[i + 1, i + 1] - slope * covariance[i + 1, j + 1]
            assert float(result[0]) == pytest.approx(1.5 * slope, rel=1e-9)
            assert float(variance) == pytest.approx(left, rel=1e-9, abs=1e-12 * covariance[i + 1, i + 1])


@prove
@given(CHAINS, st.floats(-3, 3), st.floats(-3, 3))
def test_posteriors_are_those_of_the_joint_gaussian_by_bayes(chain, x0, noise):
    mean, covariance = joint_gaussian(chain)
    for i in range(chain.steps):
        x = mean[i + 1] * x0 + noise * math.sqrt(covariance[i + 1, i + 1])
        for j in range(-1, i):
            gain = covariance[j + 1, i + 1] / covariance[i + 1, i + 1]
            expected = mean[j + 1] * x0 + gain * (x - mean[i + 1] * x0)
            left = covariance[j + 1, j + 1] - gain * covariance[j + 1, i + 1]
            tensors = torch.tensor([[x0], [x]], dtype=torch.float64)
            result, variance = chain.posterior(*tensors, i, j)
            scale = abs(mean[j + 1] * x0) + abs(gain * x)
            assert float(result) == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)
            assert float(variance) == pytest.approx(left, rel=1e-9, abs=1e-12 * covariance[j + 1, j + 1])


@prove
@given(CHAINS, st.data())
def test_posterior_times_marginal_is_transition_times_marginal_for_densities(chain, data):
    """q(x_j given x_i, x_0) q(x_i given x_0) = q(x_i given x_j) q(x_j given x_0), wherever the states are."""
    i = data.draw(st.integers(1, chain.steps - 1))
    j = data.draw(st.integers(0, i - 1))
    x0 = torch.tensor([0.8], dtype=torch.float64)
    x_j = float(chain.sigma[j]) * torch.tensor([data.draw(st.floats(-2, 2))], dtype=torch.float64)
    x_i = float(chain.sigma[i]) * torch.tensor([data.draw(st.floats(-2, 2))], dtype=torch.float64)

    def log_density(x, moments):
        mean, variance = moments
        return torch.distributions.Normal(mean, variance.sqrt()).log_prob(x)

    left = log_density(x_j, chain.posterior(x0, x_i, i, j)) + log_density(x_i, chain.marginal(x0, i))
    right = log_density(x_i, chain.transition(x_j, i, j)) + log_density(x_j, chain.marginal(x0, j))
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-8)


@prove
@given(CHAINS)
def test_the_posterior_of_the_data_is_the_data_without_variance(chain):
    x0, x = torch.tensor([[0.7], [-3.0]], dtype=torch.float64)
    for i in range(chain.steps):
        mean, variance = chain.posterior(x0, x, i, -1)
        torch.testing.assert_close(mean, x0, rtol=1e-15, atol=0)
        assert float(variance) == 0
    assert torch.equal(chain.posterior(x0, x, 0)[0], chain.posterior(x0, x, 0, -1)[0])


@pytest.mark.parametrize("event", [(), (2,), (3, 4, 4)], ids=str)
def test_an_index_per_sample_gives_what_each_index_gives_alone(event):
    chain = DDPMChain.from_schedule()
    x0, x = torch.randn(2, 4, *event, generator=torch.Generator().manual_seed(0))
    index, previous = torch.tensor([0, 5, 500, 999]), torch.tensor([-1, 4, 100, 0])
    for call, inputs, indices in (
            (chain.marginal, (x0,), (index,)), (chain.transition, (x,), (index, previous)),
            (chain.posterior, (x0, x), (index,)), (chain.posterior, (x0, x), (index, previous))):
        mean, variance = call(*inputs, *indices)
        assert mean.shape == x.shape and mean.dtype == torch.float32 and variance.shape == (4,)
        for k in range(4):
            mean_k, variance_k = call(*inputs, *(int(i[k]) for i in indices))
            torch.testing.assert_close(mean[k], mean_k[k], rtol=1e-6, atol=0)
            assert float(variance[k]) == float(variance_k)


# The papers


def test_the_linear_chain_is_that_of_ho_et_al():
    """Denoising Diffusion Probabilistic Models, section 4, equations 4 and 7."""
    chain = DDPMChain.from_schedule("linear", 1000)
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    np.testing.assert_allclose(chain.betas, beta, rtol=1e-13)
    np.testing.assert_allclose(chain.alpha, np.sqrt(alpha_bar), rtol=1e-12)
    np.testing.assert_allclose(chain.sigma, np.sqrt(1 - alpha_bar), rtol=1e-11)
    assert alpha_bar[-1] == pytest.approx(4.04e-5, rel=1e-2)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for i in (1, 2, 10, 500, 999):
        of_x0, variance = chain.posterior(one, zero, i)
        of_x, _ = chain.posterior(zero, one, i)
        kept = 1 - alpha_bar[i]
        assert float(of_x0) == pytest.approx(math.sqrt(alpha_bar[i - 1]) * beta[i] / kept, rel=1e-9)
        assert float(of_x) == pytest.approx(math.sqrt(1 - beta[i]) * (1 - alpha_bar[i - 1]) / kept, rel=1e-9)
        assert float(variance) == pytest.approx((1 - alpha_bar[i - 1]) / kept * beta[i], rel=1e-9)
        assert float(chain.transition(one, i, i - 1)[1]) == pytest.approx(beta[i], rel=1e-9)


def test_the_ends_of_a_schedule_and_a_list_of_betas_make_the_registered_chain():
    betas = scaled_linear_betas(50, 0.5, 12.0)
    np.testing.assert_allclose(betas, np.linspace(0.01**0.5, 0.24**0.5, 50) ** 2, rtol=1e-13)
    times = torch.arange(1, 51, dtype=torch.float64) / 50
    expected = DDPMChain(betas).alpha
    listed = betas.tolist()
    for sde in (ddpm("scaled_linear", 50, 0.5, 12.0), ddpm(betas=listed), ddpm(betas=tuple(listed), steps=50)):
        torch.testing.assert_close(sde.alpha(times), expected, rtol=1e-12, atol=0)
        assert sde.steps == 50
    assert float(ddpm().alpha(1.0)) == pytest.approx(float(ddpm("linear", 1000, 0.1, 20.0).alpha(1.0)))


@pytest.mark.parametrize(("settings", "match"), [
    ({"betas": (0.1, 0.2), "steps": 3}, "list of 2 betas"),
    ({"betas": (0.1, 0.2), "schedule": "cosine"}, "leave out schedule"),
    ({"betas": (0.1, 0.2), "beta_min": 0.1}, "leave out schedule, steps, beta_min"),
    ({"betas": (0.1, 1.5)}, "above 0 and below 1"),
    ({"schedule": "cosine", "beta_max": 10.0}, "'cosine' takes no beta_max; it takes s, max_beta")], ids=str)
def test_settings_that_contradict_each_other_make_no_chain(settings, match):
    with pytest.raises(ValueError, match=match):
        ddpm(**settings)


def test_the_smld_chain_walks_along_the_published_sigmas():
    """Song et al. 2021, appendix F: posterior mean and variance of the variance-exploding ancestral sampler."""
    chain = SMLDChain.from_schedule(1000)
    sigma = np.geomspace(0.01, 50, 1000)
    np.testing.assert_allclose(chain.sigma, sigma, rtol=1e-12)
    assert bool((chain.alpha == 1).all())
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for i in (1, 500, 999):
        of_x, variance = chain.posterior(zero, one, i)
        assert float(of_x) == pytest.approx(sigma[i - 1] ** 2 / sigma[i] ** 2, rel=1e-9)
        gap = sigma[i] ** 2 - sigma[i - 1] ** 2
        assert float(variance) == pytest.approx(sigma[i - 1] ** 2 * gap / sigma[i] ** 2, rel=1e-9)
        assert float(chain.posterior(one, zero, i)[0]) == pytest.approx(gap / sigma[i] ** 2, rel=1e-9)


# The limit of many steps


def rate(difference, steps=(100, 200, 400, 800, 1600)):
    """Slope of log difference(steps) against log steps."""
    return np.polyfit(np.log(steps), np.log([float(difference(n)) for n in steps]), 1)[0]


@pytest.mark.parametrize(("schedule", "sde"), [("linear", VPSDE()), ("sigmoid", SigmoidVPSDE())])
@pytest.mark.parametrize("name", ["alpha", "sigma"])
def test_ddpm_chains_converge_to_their_sde_at_rate_one_over_steps(schedule, sde, name):
    def difference(steps):
        chain = DDPMChain.from_schedule(schedule, steps)
        return (getattr(chain, name) - getattr(sde, name)(chain.times)).abs().max()

    assert rate(difference) == pytest.approx(-1, abs=0.1)
    assert float(difference(1000)) < 0.02


@pytest.mark.parametrize(("schedule", "sde", "end"), [
    ("linear", VPSDE(), 1.0), ("sigmoid", SigmoidVPSDE(), 1.0), ("cosine", CosineVPSDE(), 0.9)])
def test_steps_times_beta_converges_to_the_beta_of_the_sde_at_rate_one_over_steps(schedule, sde, end):
    def difference(steps):
        chain = DDPMChain.from_schedule(schedule, steps)
        early = chain.times <= end
        return (steps * chain.betas - sde.beta(chain.times))[early].abs().max()

    assert rate(difference) == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_the_cosine_chain_has_the_marginals_of_its_sde_exactly_away_from_the_cap(steps):
    chain, sde = DDPMChain.from_schedule("cosine", steps), CosineVPSDE()
    early = chain.times < 0.997
    torch.testing.assert_close(chain.alpha[early], sde.alpha(chain.times)[early], rtol=1e-10, atol=0)
    torch.testing.assert_close(chain.sigma[early], sde.sigma(chain.times)[early], rtol=1e-10, atol=0)


def test_the_smld_chain_converges_to_ve_at_rate_one_over_steps():
    sde = VESDE()

    def difference(steps, relative):
        chain = SMLDChain.from_schedule(steps)
        exact = sde.sigma(chain.times)
        return ((chain.sigma - exact) / (exact if relative else 1)).abs().max()

    for relative in (True, False):
        assert rate(lambda steps: difference(steps, relative)) == pytest.approx(-1, abs=0.1)     # noqa: B023


# Between chains and SDEs


@prove
@given(BETAS)
def test_a_ddpm_chain_read_as_an_sde_keeps_its_marginals_and_comes_back(betas):
    chain = DDPMChain(betas)
    sde = chain.to_sde()
    torch.testing.assert_close(sde.alpha(chain.times), chain.alpha, rtol=1e-12, atol=0)
    torch.testing.assert_close(sde.sigma(chain.times), chain.sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(DDPMChain.from_sde(sde, chain.steps).betas, chain.betas, rtol=1e-10, atol=0)
    assert sde.steps == chain.steps and sde.t_min == sde.t_sample == 1 / chain.steps


@prove
@given(SIGMAS)
def test_an_smld_chain_read_as_an_sde_keeps_its_marginals_and_comes_back(sigmas):
    chain = SMLDChain(sigmas)
    sde = chain.to_sde()
    torch.testing.assert_close(sde.sigma(chain.times), chain.sigma, rtol=1e-12, atol=0)
    assert bool((sde.alpha(chain.times) == 1).all())
    torch.testing.assert_close(SMLDChain.from_sde(sde, chain.steps).sigma, chain.sigma, rtol=1e-12, atol=0)
    assert sde.prior.std == pytest.approx(float(sigmas[-1]), rel=1e-12)
    assert sde.steps == chain.steps and sde.t_min == sde.t_sample == 1 / chain.steps


@prove
@given(CHAINS, st.integers(1, 40))
def test_a_chain_read_as_an_sde_loses_signal_all_the_way_between_its_indices(chain, pieces):
    half_log_snr = chain.to_sde().half_log_snr(torch.linspace(1 / chain.steps, 1, pieces + 1, dtype=torch.float64))
    assert bool((half_log_snr.diff() < 0).all())


def test_the_noise_of_an_smld_chain_goes_on_as_a_line_in_its_logarithm_below_the_first_index():
    sde = SMLDChain.from_schedule(10, 0.01, 50.0).to_sde()
    t = torch.linspace(0, 0.1, 5, dtype=torch.float64)
    expected = 0.01 * 5000 ** ((10 * t - 1) / 9)
    torch.testing.assert_close(sde.sigma(t), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_a_chain_of_any_sde_has_its_marginals_at_the_times_of_the_indices(sde, steps):
    chain = Chain.from_sde(sde, steps)
    t = chain.times
    torch.testing.assert_close(t, torch.tensor([sde.t_max * (i + 1) / steps for i in range(steps)], dtype=torch.float64),
                               rtol=1e-15, atol=0)
    assert torch.equal(chain.alpha, sde.alpha(t)) and torch.equal(chain.sigma, sde.sigma(t))


@pytest.mark.parametrize("sde", [VPSDE(), CosineVPSDE(), SigmoidVPSDE(), DDPMChain.from_schedule("cosine").to_sde()],
                         ids=repr)
@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_a_ddpm_chain_of_an_sde_has_its_marginals_exactly(sde, steps):
    chain = DDPMChain.from_sde(sde, steps)
    rounding = 1e-15 / float((1 - chain.betas).min())     # of 1 - beta, where a step leaves little signal
    torch.testing.assert_close(chain.alpha, sde.alpha(chain.times), rtol=1e-12 + rounding, atol=0)
    torch.testing.assert_close(chain.sigma, sde.sigma(chain.times), rtol=1e-12 + rounding, atol=0)


@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_an_smld_chain_of_ve_has_its_marginals_exactly(steps):
    chain = SMLDChain.from_sde(VESDE(), steps)
    torch.testing.assert_close(chain.sigma, VESDE().sigma(chain.times), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("kind", "sde"), [
    (DDPMChain, VESDE()), (DDPMChain, SubVPSDE()), (DDPMChain, SMLDChain.from_schedule().to_sde()),
    (SMLDChain, VPSDE()), (SMLDChain, SubVPSDE()), (SMLDChain, CosineVPSDE()),
], ids=lambda value: getattr(value, "__name__", repr(value)))
def test_an_sde_of_another_family_is_refused_by_name(kind, sde):
    with pytest.raises(ValueError, match="use Chain.from_sde") as caught:
        kind.from_sde(sde, 100)
    assert repr(sde) in str(caught.value)


# Bad input


@pytest.mark.parametrize("betas", [
    [], [0.0, 0.1], [0.1, 1.0], [0.1, 1.5], [-0.1, 0.1], [0.1, math.nan], [[0.1, 0.2]], 0.1], ids=str)
def test_betas_out_of_range_are_refused(betas):
    with pytest.raises(ValueError, match="betas.* above 0 and below 1"):
        DDPMChain(torch.tensor(betas))


@pytest.mark.parametrize("sigmas", [
    [], [0.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [2.0, 1.0], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]]], ids=str)
def test_sigmas_that_do_not_increase_from_above_zero_are_refused(sigmas):
    with pytest.raises(ValueError, match="a chain needs"):
        SMLDChain(torch.tensor(sigmas))


@pytest.mark.parametrize(("alpha", "sigma"), [
    ([1.0, 0.9], [0.1]), ([1.0, 0.0], [0.1, 0.2]), ([1.0, -0.5], [0.1, 0.2]), ([0.5, 1.0], [0.5, 1.0]),
    ([0.5, 0.9], [0.5, 0.6]), ([math.inf, 1.0], [0.1, 0.2]),
], ids=str)
def test_alpha_and_sigma_without_a_falling_signal_to_noise_ratio_are_refused(alpha, sigma):
    with pytest.raises(ValueError, match="a chain needs"):
        Chain(torch.tensor(alpha), torch.tensor(sigma))


@pytest.mark.parametrize(("index", "previous"), [(10, 3), (-1, -2), (3, -2), (torch.tensor([3, 10]), 2)], ids=str)
def test_indices_beyond_the_chain_are_refused(index, previous):
    chain, x = DDPMChain([0.1] * 10), torch.zeros(2, 1)
    for call in (lambda: chain.transition(x, index, previous), lambda: chain.posterior(x, x, index, previous)):
        with pytest.raises(ValueError, match=r"index out of range -1 \.\. 9"):
            call()


@pytest.mark.parametrize(("index", "previous"), [
    (3, 3), (3, 4), (-1, -1), (torch.tensor([3, 4]), torch.tensor([2, 4]))], ids=str)
def test_a_previous_index_that_is_not_before_the_index_is_refused(index, previous):
    chain, x = DDPMChain([0.1] * 10), torch.zeros(2, 1)
    for call in (lambda: chain.transition(x, index, previous), lambda: chain.posterior(x, x, index, previous)):
        with pytest.raises(ValueError, match="previous < index"):
            call()


def test_an_unknown_schedule_lists_those_that_exist():
    with pytest.raises(ValueError, match="'quadratic'; choose from linear, scaled_linear, cosine, cosine_beta, "):
        DDPMChain.from_schedule("quadratic")


@pytest.mark.parametrize("kind", [Chain, DDPMChain, SMLDChain])
@pytest.mark.parametrize("steps", [0, -1])
def test_a_chain_of_no_steps_is_refused(kind, steps):
    with pytest.raises(ValueError, match=f"at least 1 step, got {steps}"):
        kind.from_sde(VESDE() if kind is SMLDChain else VPSDE(), steps)


def test_an_smld_chain_of_one_step_is_no_sde():
    with pytest.raises(ValueError, match="at least 2 steps"):
        SMLDChain([0.5]).to_sde()
