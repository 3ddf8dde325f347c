"""Chains sample on their own indices, and end at the data."""

import pytest
import torch

from scorefield.models import GaussianMixture
from scorefield.numerics.noise import NoiseStream
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VPSDE, DDPMChain, SMLDChain

CHAIN = DDPMChain.from_schedule("linear", 100)
SEEDS = range(5)


def mixture(sde):
    return GaussianMixture(sde, torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), torch.tensor([0.1, 0.2]), torch.ones(2))


def x_T(sde):
    return prior_sample(sde, (2,), SEEDS, dtype=torch.float64)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_plain_ancestral_sampling_is_algorithm_2(variance):
    model = mixture(CHAIN.to_sde())
    result = make_sampler("ancestral", variance=variance)(model, x_T(model.sde), SEEDS)

    x, noise, alpha_bar = x_T(model.sde), NoiseStream(SEEDS), (1 - CHAIN.betas).cumprod(0)
    for t in reversed(range(100)):
        beta, bar, before = CHAIN.betas[t], alpha_bar[t], alpha_bar[t - 1] if t else torch.tensor(1.0)
        x = (x - beta / (1 - bar).sqrt() * model.eps(x, (t + 1) / 100)) / (1 - beta).sqrt()
        if t:
            x = x + (beta if variance == "beta" else beta * (1 - before) / (1 - bar)).sqrt() * noise.normal(x)
    assert result.nfe == 100
    torch.testing.assert_close(result.x, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["ancestral", "ddim", "euler_maruyama", "reverse_diffusion", "euler"])
@pytest.mark.parametrize("chain", [CHAIN, SMLDChain.from_schedule(100, 0.1, 5.0)], ids=["ddpm", "smld"])
def test_steps_lie_on_indices_the_last_goes_to_the_data(name, chain):
    model = mixture(chain.to_sde())
    sampler = make_sampler(name, steps=7)
    result = sampler(model, x_T(model.sde), SEEDS, trajectory=True)
    indices = (100 * result.times - 1).round()
    torch.testing.assert_close(result.times, (indices + 1) / 100, rtol=0, atol=1e-15)
    assert len(indices) == 7 and indices[0] == 99 and indices[-1] == 0
    torch.testing.assert_close(result.x, model.x0(result.trajectory[-1], 0.01))
    assert result.nfe == 7


def test_ddim_goes_on_to_the_data_as_in_its_paper():
    model = mixture(CHAIN.to_sde())
    x, alpha_bar = x_T(model.sde), (1 - CHAIN.betas).cumprod(0)
    result = make_sampler("ddim", steps=10)(model, x, trajectory=True)
    bars = [alpha_bar[int(round(float(t) * 100)) - 1] for t in result.times] + [torch.tensor(1.0, dtype=torch.float64)]
    for t, bar, after in zip(result.times, bars, bars[1:], strict=False):
        eps = model.eps(x, t)
        x = after.sqrt() * (x - (1 - bar).sqrt() * eps) / bar.sqrt() + (1 - after).sqrt() * eps
    torch.testing.assert_close(result.x, x, rtol=1e-11, atol=1e-11)


def test_an_end_a_grid_or_denoise_is_taken_at_its_word():
    model = mixture(CHAIN.to_sde())
    start = x_T(model.sde)
    stopped = make_sampler("ddim", steps=5, t_end=0.21)
    assert not stopped.denoises(model) and float(stopped.times(model)[-1]) == 0.21 and len(stopped.times(model)) == 6
    assert make_sampler("ddim", steps=5, denoise=False)(model, start).nfe == 5
    assert make_sampler("ddim", steps=5, denoise=True)(model, start).nfe == 6
    uniform = make_sampler("ancestral", steps=5, grid="uniform").times(model)
    torch.testing.assert_close(uniform, torch.linspace(1, 0.01, 6, dtype=torch.float64))
    between = mixture(VPSDE())
    assert len(make_sampler("ancestral").times(between)) == 101 and not make_sampler("ancestral").denoises(between)


@pytest.mark.parametrize("steps, words", [(101, "takes 2 to 100 steps on them, got 101; grid uniform takes any number"),
                                          (1, "takes 2 to 100 steps"), (0, "takes 2 to 100 steps")])
def test_steps_that_a_chain_has_not_are_refused_with_those_that_it_has(steps, words):
    model = mixture(CHAIN.to_sde())
    with pytest.raises(ValueError, match=words):
        make_sampler("ancestral", steps=steps)(model, x_T(model.sde), SEEDS)
    with pytest.raises(ValueError, match="at most 99 steps between them, got 100"):
        make_sampler("ddim", steps=100, grid="strided").times(model)


@pytest.mark.parametrize("name", ["ddim", "euler_maruyama", "reverse_diffusion", "predictor_corrector", "heun", "euler"])
def test_a_default_of_more_steps_than_the_chain_has_takes_them_all(name):
    model = mixture(DDPMChain.from_schedule("linear", 32).to_sde())
    assert len(make_sampler(name).times(model)) == 32
    with pytest.raises(ValueError, match="takes 2 to 32 steps"):
        make_sampler(name, steps=33).times(model)
