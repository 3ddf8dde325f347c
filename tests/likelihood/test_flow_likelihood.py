"""Likelihoods and bounds on flow matching's process, whose signal ends at 0, against exact densities."""

import math

import pytest
import torch

from scorefield.likelihood import bits_per_dim, chain_elbo, elbo, log_prob
from scorefield.models import GaussianMixture
from scorefield.sde_lib import Chain, FlowSDE

SDE = FlowSDE()
METHODS = [{"rtol": 1e-9, "atol": 1e-9}, {"rtol": 1e-10, "atol": 1e-10, "clock": "lambda"},
           {"method": "exponential", "steps": 400}]


@pytest.fixture(scope="module")
def mixture():
    return GaussianMixture(SDE, torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]), torch.tensor([0.04, 0.1, 0.02]),
                           torch.tensor([1.0, 2.0, 1.5]))


@pytest.mark.costly
@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_log_prob_is_exact_under_the_true_marginal_at_the_last_time(settings, mixture):
    x = mixture.sample(64, SDE.t_min, torch.Generator().manual_seed(0))
    result = log_prob(mixture, x, prior=lambda z: mixture.log_prob(z, SDE.t_max), **settings)
    assert float((result.value - mixture.log_prob(x, SDE.t_min)).abs().max()) < 1e-4


def test_the_prior_costs_less_than_a_thousandth_of_a_nat_and_less_than_the_standard_normal_would(mixture):
    x = mixture.sample(256, SDE.t_min, torch.Generator().manual_seed(0))
    exact = mixture.log_prob(x, SDE.t_min)
    value = log_prob(mixture, x, method="exponential", steps=300).value
    normal = log_prob(mixture, x, method="exponential", steps=300, prior=lambda z: -z.square().sum(1) / 2
                      - math.log(2 * math.pi)).value
    errors = [float((v - exact).square().mean().sqrt()) for v in (value, normal)]
    assert errors[0] < 1e-3 and errors[0] < errors[1] / 3


def test_the_hutchinson_divergence_and_thirty_evaluations_do_too(mixture):
    x = mixture.sample(64, SDE.t_min, torch.Generator().manual_seed(0))
    few = log_prob(mixture, x, method="exponential")
    assert few.nfe == 30 and float((few.value - mixture.log_prob(x, SDE.t_min)).mean().abs()) < 0.05
    probed = log_prob(mixture, x, "hutchinson", probes=8, seeds=range(64), method="exponential", steps=100)
    z = (probed.value - mixture.log_prob(x, SDE.t_min)) / probed.probe_error
    assert abs(float(z.median())) < 0.7 and float((z.abs() < 4).double().mean()) > 0.9


def test_the_bound_in_continuous_time_is_tight_for_an_exact_score(mixture):
    x = mixture.sample(1000, 0.0, torch.Generator().manual_seed(1))
    result = elbo(mixture, x, draws=128, seeds=[(1, i) for i in range(1000)])
    gap = mixture.log_prob(x, 0.0) - result.value
    assert bool(result.value.isfinite().all())
    pooled = float(result.error.square().sum().sqrt()) / 1000
    assert abs(float(gap.mean())) < 3 * pooled + 2e-3


@pytest.mark.slow
def test_the_bound_of_a_chain_is_nearly_the_density_with_many_steps():
    model = GaussianMixture(SDE, torch.tensor([[0.4, -0.2, 0.1]]), torch.tensor([0.3]))
    x = model.sample(64, 0.0, torch.Generator().manual_seed(0))
    gaps = {n: model.log_prob(x) - chain_elbo(model, x, None, steps=n, draws=4, seeds=range(64)).value for n in (1000, 50)}
    assert -0.01 < float(gaps[1000].mean()) < 0.1 < float(gaps[50].mean())


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_a_chain_of_integers_costs_little_more_than_their_entropy(variance):
    weights = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64)
    model = GaussianMixture(SDE, torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None], torch.zeros(5), weights)
    chain, k = Chain.from_sde(SDE, 1000), torch.arange(5).repeat_interleave(30)[:, None]
    assert float(chain.times[-1]) == SDE.t_max
    value = chain_elbo(model, k, 5, chain, variance=variance, seeds=range(150)).value.double().view(5, 30)
    gap = -float((weights * value.mean(1)).sum()) + float((weights * weights.log()).sum())
    error = float((weights * value.std(1) / 30**0.5).square().sum().sqrt())
    assert -3 * error < gap < 3 * error + (0.05 if variance == "beta_tilde" else 1.0)


def test_importance_weights_over_dequantisations_are_numbers(mixture):
    """log mean p over draws, as evaluations report it: NaN where one log p is."""
    x = torch.stack([mixture.sample(16, SDE.t_min, torch.Generator().manual_seed(i)) for i in range(3)])
    values = torch.stack([log_prob(mixture, part, method="exponential").value for part in x])
    assert bool(bits_per_dim(values.logsumexp(0) - math.log(3), 2, 17).isfinite().all())
