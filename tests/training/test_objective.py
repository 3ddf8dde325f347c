import math

import pytest
import torch
from scipy.integrate import quad
from torch import nn

from models import PARAMETRIZATIONS, Denoiser
from models.denoiser import TIME_INPUTS
from sde_lib import DDPMChain, SMLDChain
from training.objective import TIME_SAMPLERS, WEIGHTINGS, Objective, unit_uniforms


class Zero(nn.Module):
    """A network that answers 0."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x, time):
        return 0 * self.unused * x


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("time_sampling", TIME_SAMPLERS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_way_of_drawing_times_has_the_same_expected_weight(weighting, time_sampling, importance, any_sde):
    """E[w/p h(t)] = int w h dt / (1 - t_min) for a test function h, for every weighting and SDE."""
    objective = Objective(any_sde, weighting, time_sampling, importance)
    t, weight = objective.draw_times(200_000, torch.Generator().manual_seed(0))
    lowest = any_sde.t_min
    assert float(t.min()) >= lowest and float(t.max()) <= 1

    def h(s):        # such that w h / p has no heavy tail
        return (lowest / s) ** 0.1 if importance else any_sde.sigma(s).square()

    def integrand(log_t):
        s = torch.tensor(math.exp(log_t), dtype=torch.float64)
        return float(objective.weight(s) * h(s) * s)

    expected = quad(integrand, math.log(lowest), 0, limit=500)[0] / (1 - lowest)
    values = weight * h(t)
    # low discrepancy is far more accurate than this
    allowed = 5 * float(values.std()) / math.sqrt(len(t)) + 1e-9
    assert abs(float(values.mean()) - expected) < allowed + 1e-4 * expected


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_importance_sampling_makes_the_weight_constant(weighting, any_sde):
    _, weight = Objective(any_sde, weighting, importance=True).draw_times(5000, torch.Generator().manual_seed(0))
    assert float(weight.std() / weight.mean()) < 0.02


def test_likelihood_importance_is_uniform_in_log_snr(any_sde):
    t, weight = Objective(any_sde, "likelihood", importance=True).draw_times(4096, torch.Generator().manual_seed(0))
    ends = any_sde.half_log_snr(torch.tensor([1.0, any_sde.t_min], dtype=torch.float64))
    place = ((any_sde.half_log_snr(t) - ends[0]) / (ends[1] - ends[0])).sort().values
    torch.testing.assert_close(place, (torch.arange(4096).double() + 0.5) / 4096, rtol=0, atol=1.1 / 4096)
    torch.testing.assert_close(weight, (2 * (ends[1] - ends[0]) / (1 - any_sde.t_min)).expand(4096),
                               rtol=1e-6, atol=0)


def test_low_discrepancy_puts_one_time_in_each_cell_and_uniform_does_not():
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 2, 64):
        u = unit_uniforms(batch, "low_discrepancy", generator)
        assert sorted((u * batch).long().tolist()) == list(range(batch))
    counts = (unit_uniforms(64, "uniform", generator) * 64).long().bincount(minlength=64)
    assert int(counts.max()) > 1


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("chain", [DDPMChain.from_schedule("cosine", 50), SMLDChain.from_schedule(50, 0.01, 5.0)],
                         ids=["ddpm", "smld"])
def test_on_a_chain_times_are_its_indices_with_the_mean_weight_kept(chain, importance):
    sde = chain.to_sde()
    objective = Objective(sde, "uniform", "uniform", importance, steps=chain.steps)
    t, weight = objective.draw_times(100_000, torch.Generator().manual_seed(0))
    index = t * chain.steps - 1
    torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-9)
    assert index.round().unique().numel() > (1 if importance else 49)
    h = sde.sigma(t).square() * (1 + t)          # E[w h] = mean over the chain of (1 + t)
    expected = float((1 + chain.times).mean())
    assert abs(float((weight * h).mean()) - expected) < 5 * float((weight * h).std()) / math.sqrt(len(t)) + 1e-6


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_loss_is_the_weighted_error_of_the_score(weighting, parametrization, any_sde):
    """Against its definition: lambda(t) || score_theta - grad log q(x_t given x_0) ||^2 / D with lambda = w sigma^2."""
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(Zero(), any_sde, parametrization)
    x0, eps = (torch.randn(50, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    t = torch.rand(50, dtype=torch.float64, generator=generator) * 0.98 + 0.01
    objective = Objective(any_sde, weighting)
    loss = objective.loss(denoiser, x0, t, objective.weight(t), eps)
    x_t = any_sde.perturb(x0, t, eps)
    sigma = any_sde.sigma(t)[:, None]
    error = denoiser.score(x_t, t) + eps / sigma
    lam = {"simple": sigma**2, "likelihood": any_sde.g2(t)[:, None], "uniform": torch.ones_like(sigma)}[weighting]
    torch.testing.assert_close(loss, (lam * error.square()).mean(1), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("time_input", [k for k in TIME_INPUTS if k != "index"])
def test_gradients_are_finite_at_the_smallest_time(parametrization, time_input, any_sde):
    from models import MLP
    denoiser = Denoiser(MLP((3,), 16, 2), any_sde, parametrization, time_input)
    objective = Objective(any_sde, "likelihood", importance=True)
    t = torch.full((8,), any_sde.t_min, dtype=torch.float64)
    weight = objective.draw_times(8, torch.Generator().manual_seed(0))[1]
    objective.loss(denoiser, torch.randn(8, 3), t, weight, torch.randn(8, 3)).mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in denoiser.parameters() if p.grad is not None)


def test_unknown_words_are_refused(any_sde):
    with pytest.raises(ValueError, match="simple, likelihood, uniform"):
        Objective(any_sde, "likelyhood")
    with pytest.raises(ValueError, match="uniform, low_discrepancy"):
        Objective(any_sde, time_sampling="stratified")
