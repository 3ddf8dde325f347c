"""A network trained as EDM's samples and scores like any other, and training finds it (Karras et al. 2022)."""

import json
import math

import pytest
import torch
from torch import nn

from scorefield.configs import sections
from scorefield.configs.default import get_config
from scorefield.data import load_dataset, mixture_parameters
from scorefield.likelihood import log_prob
from scorefield.models import Denoiser, GaussianMixture
from scorefield.samplers import make_sampler, prior_sample
from scorefield.training import Batch, ScoreMatching, set_up
from scorefield.training.objectives.score_matching import NoisyTimes

STD = 0.8


class BestNetwork(nn.Module):
    """The F of least loss for a known mixture: E[x_0 given x_t] solved for F, of what an EDM network is told."""

    def __init__(self, exact, std):
        super().__init__()
        self.exact, self.std = exact, std

    def forward(self, h, c_noise):
        sde = self.exact.sde
        t = sde.time(-4 * c_noise.double()).clamp(max=sde.t_max)      # which is rounded
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        deviation = (alpha.square() * self.std**2 + sigma.square()).sqrt()
        x = h * deviation
        x0 = self.exact.x0(x, t)
        return (x0 - alpha * self.std**2 / deviation.square() * x) * deviation / (sigma * self.std)


@pytest.fixture
def best(mixture):
    return Denoiser(BestNetwork(mixture, STD), mixture.sde, "edm", "c_noise", input_std=STD)


# The network of least loss is the exact model


def test_it_has_the_exact_score(best, mixture):
    t = torch.logspace(math.log10(mixture.sde.t_min), math.log10(mixture.sde.t_max), 60, dtype=torch.float64)
    alpha, sigma = mixture.sde.alpha(t)[:, None], mixture.sde.sigma(t)[:, None]
    generator = torch.Generator().manual_seed(0)
    x0 = mixture.sample(60, generator=generator)
    eps = torch.randn(60, 2, dtype=torch.float64, generator=generator)
    x = alpha * x0 + sigma * eps
    torch.testing.assert_close(sigma * best.score(x, t), sigma * mixture.score(x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["edm", "dpm_solver++", "auto"])
def test_it_draws_the_exact_models_samples(sampler, best, mixture):
    start = prior_sample(mixture.sde, (2,), seeds=range(16)).double()
    ours, exact = (make_sampler(sampler, steps=8)(model, start) for model in (best, mixture))
    assert ours.nfe == exact.nfe
    torch.testing.assert_close(ours.x, exact.x, rtol=1e-4, atol=1e-4)


def test_it_has_the_exact_models_log_density(best, mixture):
    x = mixture.sample(8, generator=torch.Generator().manual_seed(0))
    ours, exact = (log_prob(model, x, method="exponential", steps=10) for model in (best, mixture))
    torch.testing.assert_close(ours.value, exact.value, rtol=1e-4, atol=1e-3)


def test_no_network_has_less_loss(best, mixture):
    generator = torch.Generator().manual_seed(0)
    objective = ScoreMatching(mixture.sde, "edm", importance=True, data_std=STD)
    t, weight = objective.times.draw(20_000, generator)
    x0, eps = mixture.sample(20_000, generator=generator), torch.randn(20_000, 2, generator=generator).double()
    least = objective.loss(best, Batch(x0), NoisyTimes(t, weight, eps))

    class Other(nn.Module):
        def forward(self, h, c_noise):
            return best.network(h, c_noise) + 0.05 * torch.sin(h)

    other = objective.loss(best.with_network(Other()), Batch(x0), NoisyTimes(t, weight, eps)) - least
    assert float(other.mean()) > 3 * float(other.std()) / math.sqrt(len(other))


# Training finds it


def small_config(name, **training):
    config = get_config()
    config.sde = sections.sde(name, **({"steps": 50} if name in ("ddpm", "smld") else {}))
    config.model.update(parametrization="edm", time_input="c_noise", input_std=1.0)
    config.training.update(weighting="edm", importance=True, precision="fp32", batch_size=16, warmup=2, log_every=2,
                           eval_every=2, sample_every=0, **training)
    return config


@pytest.mark.slow
def test_an_mlp_comes_near_the_least_loss(tmp_path):
    config = small_config("ve", steps=1200, learning_rate=3e-3, decay="cosine", ema_decay=0.99)
    config.data = sections.data("gaussians8", size=20_000)
    config.sde.update(sigma_min=0.002, sigma_max=80.0)
    config.model = sections.model("mlp", width=64, layers=3, parametrization="edm", time_input="c_noise", input_std=1.0)
    config.training.update(batch_size=512, warmup=50, log_every=100, eval_every=1200)
    dataset = load_dataset(config.data)
    trainer = set_up(config, dataset, tmp_path, torch.device("cpu"))
    exact = GaussianMixture(trainer.model.sde, *map(torch.from_numpy, mixture_parameters("gaussians8")))
    best = trainer.model.with_network(BestNetwork(exact, 1.0))
    least, start = (trainer.evaluate(model)["held_out_loss"] for model in (best, trainer.averaged))
    assert start == pytest.approx(1, abs=0.1)      # the variance of F
    trainer.train()
    end = trainer.evaluate(trainer.averaged)["held_out_loss"]
    assert least - 0.01 < end < least + 0.1 * (start - least)


@pytest.mark.costly
@pytest.mark.parametrize("sde", ["vp", "cosine", "subvp", "ve", "ddpm", "smld"])
@pytest.mark.parametrize("importance", [True, False])
def test_every_sde_and_chain_trains(sde, importance, tmp_path):
    config = small_config(sde, steps=2)
    config.training.importance = importance
    config.data.dequantize = True
    config.model.update(width=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=())
    set_up(config, load_dataset(config.data), tmp_path, torch.device("cpu")).train()
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert math.isfinite(lines[-1]["held_out_loss"])


def test_a_config_without_the_standard_deviation_of_the_data_is_refused(tmp_path):
    config = small_config("vp", steps=2)
    config.model.update(parametrization="eps", input_std=None)
    with pytest.raises(ValueError, match="weighting 'edm' needs the standard deviation of the data"):
        set_up(config, load_dataset(config.data), tmp_path, torch.device("cpu"))
