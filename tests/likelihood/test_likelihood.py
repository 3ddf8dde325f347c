import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from scorefield.likelihood import bits_per_dim, chain_elbo, elbo, log_prob
from scorefield.likelihood.exponential import quadrature
from scorefield.models import MLP, Denoiser, GaussianMixture, UNet
from scorefield.numerics.devices import set_memory_format
from scorefield.numerics.divergence import with_exact_divergence, with_hutchinson_divergence
from scorefield.samplers import make_sampler
from scorefield.sde_lib import VPSDE
from tests.helpers import randomised


@pytest.mark.costly
def test_log_density_of_a_gaussian_is_exact(any_sde):
    """The prior is not quite the marginal at t = 1; for a Gaussian that mismatch is known, and nothing else is left."""
    mean, variance, d = torch.tensor([[0.4, -0.2, 0.1]]), 0.3, 3
    model = GaussianMixture(any_sde, mean, torch.tensor([variance]))
    x = model.sample(20, any_sde.t_min, torch.Generator().manual_seed(0))
    result = log_prob(model, x, rtol=1e-9, atol=1e-9)
    a, s = any_sde.alpha(any_sde.t_max), any_sde.sigma(any_sde.t_max)
    v1 = a**2 * variance + s**2
    p1 = -0.5 * ((result.latent - a * mean).square().sum(1) / v1 + d * torch.log(2 * math.pi * v1))
    exact = model.log_prob(x, any_sde.t_min) + any_sde.prior.log_prob(result.latent) - p1
    assert float((result.value - exact).abs().max()) < 1e-6 * d


def test_log_density_of_a_mixture_agrees_with_the_exact_one(oracle):
    model = GaussianMixture(VPSDE(), oracle["mu"], oracle["var"], oracle["weights"])
    result = log_prob(model, oracle["x_0"], rtol=1e-8, atol=1e-8)
    mismatch = model.log_prob(result.latent, 1.0) - VPSDE().prior.log_prob(result.latent)
    exact = model.log_prob(oracle["x_0"], 1e-5)
    assert float((result.value + mismatch - exact).abs().max()) < 1e-5


@pytest.mark.costly
def test_the_density_integrates_to_one(any_sde):
    model = GaussianMixture(any_sde, torch.tensor([[-0.5], [0.6]]), torch.tensor([0.02, 0.05]))
    x = torch.linspace(-3, 3, 1201, dtype=torch.float64)[:, None]
    density = log_prob(model, x, rtol=1e-6, atol=1e-6).value.exp()
    assert abs(float(torch.trapezoid(density, x[:, 0])) - 1) < 1e-4


@pytest.mark.costly
def test_the_hutchinson_estimate_is_unbiased_and_its_error_bar_covers(any_sde):
    model = GaussianMixture(any_sde, torch.tensor([[1.0, 0.0, 0.3], [-1.0, 0.5, 0.0]]), torch.tensor([0.1, 0.3]))
    x = model.sample(1, any_sde.t_min, torch.Generator().manual_seed(1)).expand(200, 3)
    exact = log_prob(model, x[:1], rtol=1e-6, atol=1e-6).value
    result = log_prob(model, x, "hutchinson", probes=8, seeds=range(200), rtol=1e-6, atol=1e-6)
    z = (result.value - exact) / result.probe_error
    spread = float(result.value.std()) / math.sqrt(200)
    assert abs(float(result.value.mean() - exact)) < 3 * spread + 1e-5
    assert 0.9 <= float((z.abs() < 2.365).double().mean()) <= 0.99     # 95 % of Student's t with 7 degrees of freedom


@pytest.mark.costly
def test_what_an_example_draws_depends_on_its_seed_alone(mixture):
    x = mixture.sample(6, 1e-5, torch.Generator().manual_seed(0))
    seeds = [(3, i) for i in range(6)]
    together = log_prob(mixture, x, "hutchinson", seeds=seeds, rtol=1e-7, atol=1e-7).value
    apart = torch.cat([log_prob(mixture, x[i:i + 1], "hutchinson", seeds=seeds[i:i + 1], rtol=1e-7, atol=1e-7).value
                       for i in range(6)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


class CountingNetwork(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x, time):
        self.calls += 1
        return self.network(x, time)


def denoiser(shape=(2, 3), std=0.3):
    torch.manual_seed(0)
    network = MLP(shape, width=16, layers=2)
    for p in network.parameters():
        nn.init.normal_(p, std=std)
    return Denoiser(CountingNetwork(network), VPSDE())


@pytest.mark.parametrize("divergence, settings", [("exact", {}), ("hutchinson", {"seeds": range(4), "probes": 3})])
def test_drift_and_divergence_share_one_forward(divergence, settings):
    model = denoiser()
    result = log_prob(model, torch.randn(4, 2, 3), divergence, rtol=1e-3, atol=1e-3, **settings)
    assert result.nfe == model.network.calls > 10
    assert result.latent.shape == (4, 2, 3) and result.value.shape == (4,)


@pytest.mark.parametrize("chunk", [1, 4, 6, 100])
def test_the_exact_divergence_is_the_trace_of_the_jacobian(chunk):
    model, x = denoiser(), torch.randn(5, 2, 3)
    value, divergence = with_exact_divergence(lambda y: model.score(y, 0.3), x, chunk)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: model.score(y[None], 0.3)[0]))(x).reshape(5, 6, 6)
    torch.testing.assert_close(divergence, jacobian.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(value, model.score(x, 0.3))


@pytest.mark.machine
@pytest.mark.parametrize("gradients", [False, True])
def test_products_go_one_by_one_where_they_cannot_be_batched(gradients):
    """Networks in channels_last have convolutions whose derivatives cannot, on CPUs."""
    torch.manual_seed(0)
    network, x = randomised(UNet(8, 1, width=16, multipliers=(1, 2), num_blocks=1, dropout=0.0)), torch.randn(2, 1, 8, 8)
    for parameter in network.parameters():
        parameter.requires_grad_(gradients)
    found = []
    for memory_format in ("contiguous", "channels_last"):
        set_memory_format(network, memory_format)
        time = torch.full((2,), 0.3)
        found.append(with_exact_divergence(lambda y, time=time: network(y, time), x, gradients=gradients))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if gradients:
        found[1][1].sum().backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_a_hutchinson_estimate_is_the_quadratic_form_of_its_probe():
    model, x, probes = denoiser(), torch.randn(5, 2, 3), torch.randn(2, 5, 2, 3)
    _, estimates = with_hutchinson_divergence(lambda y: model.score(y, 0.3), x, probes)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: model.score(y[None], 0.3)[0]))(x).reshape(5, 6, 6)
    v = probes.reshape(2, 5, 6)
    torch.testing.assert_close(estimates, torch.einsum("kbi,bij,kbj->kb", v, jacobian, v), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings, message", [
    ({"divergence": "exakt"}, "exact, hutchinson"), ({"divergence": "hutchinson"}, "seeds"),
    ({"divergence": "hutchinson", "seeds": range(3)}, "one for each of the 4"), ({"probes": 0}, "probes"),
    ({"probes": 2}, "'exact' takes no probes"), ({"probe_kind": "gaussian"}, "'exact' takes no probe_kind"),
    ({"t_min": 1e-6}, "t_min"),
    ({"t_min": 0.0}, "t_min"), ({"rtol": -1.0}, "rtol"), ({"method": "rk45"}, "exponential"),
    ({"steps": 30}, "takes no steps"), ({"method": "exponential", "rtol": 1e-3}, "takes no rtol"),
    ({"method": "exponential", "steps": 7}, "steps"), ({"clock": "s"}, "clock"),
    ({"method": "exponential", "clock": "lambda"}, "takes no clock"), ({"fresh_probes": True}, "takes no fresh_probes"),
    ({"divergence": "hutchinson", "seeds": range(4), "probe_kind": "hadamard"}, "for method 'exponential'"),
    ({"divergence": "hutchinson", "seeds": range(4), "method": "exponential", "probe_kind": "hadamard",
      "fresh_probes": False}, "hadamard"),
    ({"method": "exponential", "fresh_probes": False}, "belongs to divergence 'hutchinson'"),
    ({"tolerance": 1e-3}, "takes no tolerance"), ({"method": "exponential", "tolerance": 0.0}, "above 0"),
    ({"method": "exponential", "max_evaluations": 99}, "takes no max_evaluations without tolerance"),
    ({"method": "exponential", "tolerance": 1e-3, "max_evaluations": 29}, "at least the first 30 steps"),
    ({"probe_kind": "uniform"}, "probe_kind"),
])
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        log_prob(denoiser(), torch.randn(4, 2, 3), **settings)


def test_input_that_is_not_finite_and_reduced_precision_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        log_prob(denoiser(), torch.full((4, 2, 3), torch.nan))
    for dtype in (torch.bfloat16, torch.int64):
        with pytest.raises(ValueError, match="float32 or float64"):
            log_prob(denoiser(), torch.ones(4, 2, 3, dtype=dtype))
    model, held = denoiser(), denoiser().bfloat16()
    labelled = Denoiser(MLP((2, 3), width=8, layers=1, classes=2), VPSDE())
    model.autocast = labelled.autocast = torch.bfloat16
    for rough in (model, held, labelled.given(label=1)):
        with pytest.raises(ValueError, match="precision"):
            log_prob(rough, torch.randn(4, 2, 3))


@pytest.mark.parametrize("levels, low, high", [(256, -1.0, 1.0), (256, 0.0, 1.0), (17, -1.0, 1.0), (2, -3.0, 5.0)])
def test_the_uniform_density_costs_log2_of_the_levels_in_any_scaling(levels, low, high):
    d = 12
    log_density = torch.full((3,), -d * math.log(high - low), dtype=torch.float64)
    expected = torch.full((3,), math.log2(levels), dtype=torch.float64)
    torch.testing.assert_close(bits_per_dim(log_density, d, levels, low, high), expected)


def test_bytes_have_an_offset_of_seven_bits_and_continuous_data_none():
    zero = torch.zeros(1)
    assert float(bits_per_dim(zero, 3072)) == 7 and float(bits_per_dim(zero, 3072, low=0.0)) == 8
    assert float(bits_per_dim(zero, 2, levels=None)) == 0
    assert float(bits_per_dim(zero, 1, levels=2)) == 0
    for wrong in ({"dimensions": 0}, {"levels": 1}, {"low": 1.0}):
        with pytest.raises(ValueError, match="need"):
            bits_per_dim(zero, **({"dimensions": 4} | wrong))


def gaussian(sde, d, generator):
    return GaussianMixture(sde, 0.5 * torch.randn(1, d, generator=generator), torch.tensor([0.3]))


@pytest.mark.costly
@pytest.mark.parametrize("d", [1, 8, 64])
def test_log_density_of_a_gaussian_is_exact_in_every_dimension(any_sde, d):
    model = gaussian(any_sde, d, torch.Generator().manual_seed(d))
    x = model.sample(8, any_sde.t_min, torch.Generator().manual_seed(0))
    result = log_prob(model, x, rtol=1e-9, atol=1e-9, prior=lambda z: model.log_prob(z, any_sde.t_max))
    assert float((result.value - model.log_prob(x, any_sde.t_min)).abs().max()) < 1e-6 * d


def sixteen_dimensions(sde):
    """The mixture of benchmarks/problems.py."""
    rng = np.random.default_rng(0)
    means, std, weights = rng.normal(size=(8, 16)), rng.uniform(0.15, 0.45, 8), rng.uniform(0.5, 1.5, 8)
    return GaussianMixture(sde, *(torch.from_numpy(a) for a in (means, std**2, weights)))


def test_log_density_of_a_mixture_is_exact_under_its_own_marginal_and_misses_the_gaussian_priors_mismatch():
    model = sixteen_dimensions(VPSDE())
    x = model.sample(64, 1e-5, torch.Generator().manual_seed(0))
    own = log_prob(model, x, rtol=1e-8, atol=1e-8, prior=lambda z: model.log_prob(z, 1.0))
    assert float((own.value - model.log_prob(x, 1e-5)).abs().max()) < 1e-4
    normal = log_prob(model, x, rtol=1e-8, atol=1e-8)
    mismatch = VPSDE().prior.log_prob(normal.latent) - model.log_prob(normal.latent, 1.0)
    torch.testing.assert_close(normal.value - own.value, mismatch)
    assert 0.01 < float(mismatch.abs().max()) < 0.05      # nats: what docs/likelihood.md reports


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.slow
def test_a_thousand_probes_agree_with_the_exact_trace(kind):
    model = GaussianMixture(VPSDE(), torch.tensor([[1.0, 0.0, 0.3], [-1.0, 0.5, 0.0]]), torch.tensor([0.1, 0.3]))
    x = model.sample(4, 1e-5, torch.Generator().manual_seed(1))
    exact = log_prob(model, x, rtol=1e-4, atol=1e-4).value
    result = log_prob(model, x, "hutchinson", probes=1000, probe_kind=kind, seeds=range(4), rtol=1e-4, atol=1e-4)
    z = (result.value - exact) / result.probe_error
    assert float(z.abs().max()) < 3 and float(z.square().mean()) < 3      # of four


@pytest.mark.costly
def test_decoding_the_latent_gives_the_data_back(any_sde):
    model = GaussianMixture(any_sde, torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.tensor([0.1, 0.3]))
    x = model.sample(16, any_sde.t_min, torch.Generator().manual_seed(0))
    for settings in ({"rtol": 1e-8, "atol": 1e-8}, {"method": "exponential", "steps": 400}):
        latent = log_prob(model, x, **settings).latent
        back = make_sampler("ode", t_end=any_sde.t_min, rtol=1e-8, atol=1e-8)(model, latent).x
        assert float((back - x).abs().max()) < 1e-5


# ---- the exponential method -------------------------------------------------------------------------------------------


def exponential_error(model, x, steps):
    result = log_prob(model, x, method="exponential", steps=steps,
                      prior=lambda z: model.log_prob(z, model.sde.t_max))
    assert result.nfe == steps
    return result.value - model.log_prob(x, model.sde.t_min), result.solver_error


def test_the_exponential_method_is_exact_for_the_gaussian_it_is_built_on(any_sde):
    model = GaussianMixture(any_sde, torch.zeros(1, 5), torch.ones(1))
    error, estimate = exponential_error(model, model.sample(8, any_sde.t_min, torch.Generator().manual_seed(0)), 8)
    assert float(error.abs().max()) < 1e-9 and float(estimate.max()) < 1e-9


@pytest.mark.costly
def test_the_exponential_method_has_order_four(mixture):
    x = mixture.sample(64, mixture.sde.t_min, torch.Generator().manual_seed(0))
    errors = [float(exponential_error(mixture, x, n)[0].square().mean().sqrt()) for n in (80, 160, 320)]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert errors[-1] < 1e-6 or min(orders) > 3.3, (errors, orders)


def test_the_exponential_method_has_equal_steps_in_the_angle_of_its_gaussian(any_sde):
    """asinh lambda, from t_min to t_max, both ends exactly."""
    seen = []

    class Watched(GaussianMixture):
        def predict(self, x, t, kind):
            seen.append(float(t))
            return super().predict(x, t, kind)

    log_prob(Watched(any_sde, torch.zeros(1, 1), torch.ones(1)), torch.ones(1, 1).double(), method="exponential", steps=20)
    assert (seen[0], seen[-1]) == (any_sde.t_min, any_sde.t_max)
    steps = any_sde.half_log_snr(torch.tensor(seen, dtype=torch.float64)).asinh().diff()
    torch.testing.assert_close(steps, steps.mean().expand(19), rtol=1e-8, atol=1e-10)


def test_thirty_evaluations_give_a_thousandth_of_a_bit_and_the_error_is_not_underestimated(oracle):
    for model in (sixteen_dimensions(VPSDE()), GaussianMixture(VPSDE(), oracle["mu"], oracle["var"], oracle["weights"])):
        x = model.sample(256, 1e-5, torch.Generator().manual_seed(0))
        error, estimate = exponential_error(model, x, 30)
        d = x.shape[1]
        assert abs(float(error.mean())) / d / math.log(2) < 1e-3
        assert float((error.abs() <= estimate).double().mean()) > 0.95
        assert float(estimate.mean()) < 0.01 * d


def test_the_exponential_method_shares_evaluations_and_probes_with_the_adaptive_ones():
    model, x, seeds = denoiser(std=0.1), torch.randn(4, 2, 3), range(4)
    exponential = log_prob(model, x, "hutchinson", method="exponential", steps=200, probes=2, seeds=seeds,
                           fresh_probes=False)
    assert exponential.nfe == model.network.calls == 200
    adaptive = log_prob(model, x, "hutchinson", rtol=1e-5, atol=1e-5, probes=2, seeds=seeds)
    torch.testing.assert_close(exponential.value, adaptive.value, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(exponential.probe_error, adaptive.probe_error, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(exponential.latent, adaptive.latent, rtol=1e-2, atol=1e-3)


def test_a_tolerance_is_met_by_each_example_on_its_own():
    model = sixteen_dimensions(VPSDE())
    x, unit = model.sample(64, 1e-5, torch.Generator().manual_seed(0)), 16 * math.log(2)
    settings = {"method": "exponential", "prior": lambda z: model.log_prob(z, 1.0)}
    result, tolerance = log_prob(model, x, tolerance=2e-4, **settings), 2e-4
    assert result.nfe in (30 + 60, 30 + 60 + 120, 30 + 60 + 120 + 240)
    assert float(result.solver_error.max()) <= tolerance * unit
    error = (result.value - model.log_prob(x, 1e-5)).abs()
    assert float((error <= tolerance * unit).double().mean()) > 0.95
    thirty = log_prob(model, x, **settings)
    passed = thirty.solver_error <= tolerance * unit
    assert 0 < int(passed.sum()) < 64      # those keep what thirty evaluations gave
    torch.testing.assert_close(result.value[passed], thirty.value[passed], rtol=0, atol=0)
    torch.testing.assert_close(result.latent[passed], thirty.latent[passed], rtol=0, atol=0)
    hard = int(thirty.solver_error.argmax())
    alone = log_prob(model, x[hard:hard + 1], tolerance=tolerance, **settings)
    torch.testing.assert_close(alone.value[0], result.value[hard])


def test_a_tolerance_that_cannot_be_met_says_what_was():
    with pytest.raises(ArithmeticError, match=r"of 4 examples is above tolerance=1e-09 \(of example \d of the batch .* "
                       r"after 90 evaluations, the last 60 in one go.* max_evaluations=150"):
        log_prob(denoiser(), torch.randn(4, 2, 3), method="exponential", tolerance=1e-9, max_evaluations=150)


def test_quadrature_weights_integrate_cubics_exactly():
    lam = np.array([3.0, 2.1, 1.5, 1.2, 0.4, -0.1, -1.3, -2.0])
    w = lambda s: np.exp(-s) / (1 + np.exp(-2 * s))      # noqa: E731
    for power in range(4):
        exact, _ = quad(lambda s: w(s) * s**power, lam[0], lam[-1])      # noqa: B023
        assert abs(quadrature(lam, 4) @ lam**power - exact) < 1e-10


@pytest.mark.costly
def test_the_clock_lambda_solves_the_same_flow(mixture):
    x = mixture.sample(16, mixture.sde.t_min, torch.Generator().manual_seed(0))
    settings = {"divergence": "hutchinson", "seeds": range(16), "rtol": 1e-9, "atol": 1e-9}
    a, b = (log_prob(mixture, x, clock=clock, **settings) for clock in ("t", "lambda"))
    torch.testing.assert_close(a.value, b.value, rtol=0, atol=1e-5)
    torch.testing.assert_close(a.latent, b.latent, rtol=1e-5, atol=1e-5)
    assert a.nfe != b.nfe


# ---- bad input --------------------------------------------------------------------------------------------------------


class Broken(nn.Module):
    def forward(self, x, time):
        return torch.where(time.reshape(-1, 1, 1) > 500, torch.nan, 0.1 * x)


@pytest.mark.parametrize("settings", [{}, {"method": "exponential"}])
def test_a_score_that_is_not_finite_is_named(settings):
    with pytest.raises(ArithmeticError, match="not finite .*evaluation"):
        log_prob(Denoiser(Broken(), VPSDE()), torch.randn(4, 2, 3), **settings)


def test_an_ode_by_lambda_says_where_it_stands_in_lambda():
    with pytest.raises(ArithmeticError, match=r"more than 20 evaluations: stopped at lambda = .* of 6.9\d* to -5"):
        log_prob(denoiser(), torch.randn(4, 2, 3), rtol=1e-6, atol=1e-6, max_evaluations=20, clock="lambda")


def test_an_ode_that_needs_too_many_evaluations_says_where_it_stands():
    with pytest.raises(ArithmeticError, match=r"more than 20 evaluations: stopped at t = .* \(rtol=1e-06, atol=1e-06"):
        log_prob(denoiser(), torch.randn(4, 2, 3), rtol=1e-6, atol=1e-6, max_evaluations=20)


@pytest.mark.parametrize("shape", [(0, 2, 3), (4,), (2, 0)])
def test_an_empty_batch_or_event_is_refused(shape):
    for likelihood in (log_prob, elbo, lambda m, x, seeds: chain_elbo(m, x, None, seeds=seeds)):
        with pytest.raises(ValueError, match="something in it"):
            likelihood(denoiser(), torch.zeros(shape), seeds=range(shape[0]))


def test_a_bound_names_an_event_that_does_not_fit_too():
    for bound in (elbo, lambda m, x, seeds: chain_elbo(m, x, None, seeds=seeds)):
        with pytest.raises(ValueError, match=r"events of shape \(3, 3\) do not fit the network"):
            bound(denoiser(), torch.randn(4, 3, 3), seeds=range(4))


class Constant(nn.Module):
    def forward(self, x, time):
        return torch.zeros_like(x)


@pytest.mark.parametrize("settings", [{}, {"divergence": "hutchinson", "seeds": range(4)}])
def test_a_constant_network_has_no_divergence(settings):
    result = log_prob(Denoiser(Constant(), VPSDE()), torch.randn(4, 3).double(), rtol=1e-8, atol=1e-8, **settings)
    log_alpha = float(VPSDE().log_alpha(1.0) - VPSDE().log_alpha(1e-5))
    torch.testing.assert_close(result.value, VPSDE().prior.log_prob(result.latent) + 3 * log_alpha)


def test_an_event_that_does_not_fit_the_network_is_named():
    for settings in ({}, {"method": "exponential"}):
        with pytest.raises(ValueError, match=r"events of shape \(3, 3\) do not fit the network"):
            log_prob(denoiser(), torch.randn(4, 3, 3), **settings)


def test_the_state_may_be_double_beside_a_float_network():
    model, x = denoiser(std=0.1), torch.randn(4, 2, 3)
    double = log_prob(model, x.double(), rtol=1e-4, atol=1e-4)
    assert double.value.dtype == double.latent.dtype == torch.float64
    torch.testing.assert_close(double.value.float(), log_prob(model, x, rtol=1e-4, atol=1e-4).value, rtol=1e-3, atol=1e-3)
