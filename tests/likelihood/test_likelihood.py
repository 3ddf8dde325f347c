import math

import pytest
import torch
from torch import nn

from likelihood import bits_per_dim, log_prob
from likelihood.divergence import with_exact_divergence, with_hutchinson_divergence
from models import MLP, Denoiser, GaussianMixture
from sde_lib import VPSDE


def test_log_density_of_a_gaussian_is_exact(any_sde):
    """The prior is not quite the marginal at t = 1; for a Gaussian that mismatch is known, and nothing else is left."""
    mean, variance, d = torch.tensor([[0.4, -0.2, 0.1]]), 0.3, 3
    model = GaussianMixture(any_sde, mean, torch.tensor([variance]))
    x = model.sample(20, any_sde.t_min, torch.Generator().manual_seed(0))
    result = log_prob(model, x, rtol=1e-9, atol=1e-9)
    a, s = any_sde.alpha(1.0), any_sde.sigma(1.0)
    v1 = a**2 * variance + s**2
    p1 = -0.5 * ((result.latent - a * mean).square().sum(1) / v1 + d * torch.log(2 * math.pi * v1))
    exact = model.log_prob(x, any_sde.t_min) + any_sde.prior_log_prob(result.latent) - p1
    assert float((result.value - exact).abs().max()) < 1e-6 * d


def test_log_density_of_a_mixture_agrees_with_the_exact_one(oracle):
    model = GaussianMixture(VPSDE(), oracle["mu"], oracle["var"], oracle["weights"])
    result = log_prob(model, oracle["x_0"], rtol=1e-8, atol=1e-8)
    mismatch = model.log_prob(result.latent, 1.0) - VPSDE().prior_log_prob(result.latent)
    exact = model.log_prob(oracle["x_0"], 1e-5)
    assert float((result.value + mismatch - exact).abs().max()) < 1e-5


def test_the_density_integrates_to_one(any_sde):
    model = GaussianMixture(any_sde, torch.tensor([[-0.5], [0.6]]), torch.tensor([0.02, 0.05]))
    x = torch.linspace(-3, 3, 1201, dtype=torch.float64)[:, None]
    density = log_prob(model, x, rtol=1e-6, atol=1e-6).value.exp()
    assert abs(float(torch.trapezoid(density, x[:, 0])) - 1) < 1e-4


def test_the_hutchinson_estimate_is_unbiased_and_its_error_bar_covers(any_sde):
    model = GaussianMixture(any_sde, torch.tensor([[1.0, 0.0, 0.3], [-1.0, 0.5, 0.0]]), torch.tensor([0.1, 0.3]))
    x = model.sample(1, any_sde.t_min, torch.Generator().manual_seed(1)).expand(200, 3)
    exact = log_prob(model, x[:1], rtol=1e-6, atol=1e-6).value
    result = log_prob(model, x, "hutchinson", probes=8, seeds=range(200), rtol=1e-6, atol=1e-6)
    z = (result.value - exact) / result.probe_error
    spread = float(result.value.std()) / math.sqrt(200)
    assert abs(float(result.value.mean() - exact)) < 3 * spread + 1e-5
    assert 0.88 < float((z.abs() < 2.365).double().mean()) <= 1      # 95 % of Student's t with 7 degrees of freedom


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


def denoiser(shape=(2, 3)):
    torch.manual_seed(0)
    network = MLP(shape, width=16, layers=2)
    for p in network.parameters():
        nn.init.normal_(p, std=0.3)
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


def test_a_hutchinson_estimate_is_the_quadratic_form_of_its_probe():
    model, x, probes = denoiser(), torch.randn(5, 2, 3), torch.randn(2, 5, 2, 3)
    _, estimates = with_hutchinson_divergence(lambda y: model.score(y, 0.3), x, probes)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: model.score(y[None], 0.3)[0]))(x).reshape(5, 6, 6)
    v = probes.reshape(2, 5, 6)
    torch.testing.assert_close(estimates, torch.einsum("kbi,bij,kbj->kb", v, jacobian, v), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings, message", [
    ({"divergence": "exakt"}, "exact, hutchinson"), ({"divergence": "hutchinson"}, "seeds"),
    ({"divergence": "hutchinson", "seeds": range(3)}, "one for each of the 4"), ({"probes": 0}, "--probes"),
    ({"t_min": 0.0}, "--t_min"), ({"rtol": -1.0}, "--rtol"),
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
    model = denoiser()
    model.autocast = torch.bfloat16
    with pytest.raises(ValueError, match="precision"):
        log_prob(model, torch.randn(4, 2, 3))


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
    for wrong in ({"dimensions": 0}, {"levels": 1}, {"low": 1.0}):
        with pytest.raises(ValueError, match="need"):
            bits_per_dim(zero, **({"dimensions": 4} | wrong))
