"""What is kept between runs: coefficients are made once for a sampler, a process and a grid, and never for another."""

import pytest
import torch
from helpers import randomised

from scorefield.models import MLP, Denoiser
from scorefield.numerics.kept import Kept
from scorefield.samplers import ExponentialAdams, make_sampler
from scorefield.sde_lib import SDES, VPSDE, CosineVPSDE, DDPMChain, LearnedVPSDE


def denoiser(sde, parametrization="v", time_input="half_log_snr"):
    return Denoiser(randomised(MLP((3,), width=8, layers=1)), sde, parametrization, time_input)


class Unkept(VPSDE):
    """Of which nothing is kept."""

    content = None


@pytest.fixture
def made(monkeypatch):
    """The grids for which rules were made."""
    grids, rules = [], ExponentialAdams.rules
    monkeypatch.setattr(ExponentialAdams, "rules", lambda self, s: grids.append(len(s.lam)) or rules(self, s))
    return grids


def test_the_rules_of_a_grid_are_made_once(made):
    sampler, x = make_sampler("auto", steps=13, data_std=0.77), torch.ones(2, 3)
    first = sampler(denoiser(VPSDE()), x).x
    again = make_sampler("auto", steps=13, data_std=0.77)(denoiser(VPSDE()), x).x      # equal settings, other objects
    assert torch.equal(first, again) and len(made) == 1
    for settings, sde in (({"order": 3}, VPSDE()), ({"steps": 14}, VPSDE()), ({"t_end": 0.01}, VPSDE()),
                          ({}, VPSDE(beta_max=19)), ({}, CosineVPSDE())):
        make_sampler("auto", **{"steps": 13, "data_std": 0.77} | settings)(denoiser(sde), x)
    assert len(made) == 6


def test_a_process_that_changes_is_not_taken_for_what_it_was(made):
    x, sampler = torch.ones(2, 3), make_sampler("auto", steps=11)
    changed = VPSDE()
    sampler(denoiser(changed), x)
    changed.beta_max = 12.0
    torch.testing.assert_close(sampler(denoiser(changed), x).x, sampler(denoiser(VPSDE(beta_max=12.0)), x).x, rtol=0, atol=0)
    learned = LearnedVPSDE()
    assert learned.content is None
    before = sampler(denoiser(learned), x).x
    with torch.no_grad():
        learned.schedule.height[0] += 3
    assert not torch.equal(sampler(denoiser(learned), x).x, before)
    chains = [DDPMChain.from_schedule("cosine", n).to_sde() for n in (50, 60)]
    assert chains[0].content != chains[1].content and chains[0].content == chains[0].content


@pytest.mark.parametrize("parametrization", ["eps", "x0", "v", "score", "flow"])
def test_a_prediction_from_kept_numbers_is_equal_to_the_bit(parametrization):
    model, other, x = denoiser(VPSDE(), parametrization), denoiser(Unkept(), parametrization), torch.randn(4, 3)
    for t in (0.3, torch.tensor(0.3), torch.tensor(0.7, dtype=torch.float64), torch.full((4,), 0.7)):
        for kind in ("eps", "x0", "v", "score", "flow"):
            for _ in range(2):
                torch.testing.assert_close(model.predict(x, t, kind), other.predict(x, t, kind), rtol=0, atol=0)


def test_numbers_kept_under_inference_mode_serve_training():
    model, x = denoiser(VPSDE()), torch.randn(4, 3)
    with torch.inference_mode():
        model.eps(x, 0.37)
    model.eps(x, 0.37).sum().backward()
    assert next(model.network.parameters()).grad is not None


@pytest.mark.parametrize("name", SDES)
def test_the_time_of_many_is_the_time_of_each(name):
    sde = SDES[name]()
    ends = sde.half_log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64))
    lam = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, 12, dtype=torch.float64)).reshape(3, 4)
    each = torch.stack([sde.time(one) for one in lam.flatten()]).reshape(3, 4)
    torch.testing.assert_close(sde.time(lam), each, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name, options", [("dpm_solver", {"order": 3, "method": "singlestep"}), ("edm", {"churn": 2.0})])
def test_the_inner_times_of_all_steps_are_found_at_once(name, options, monkeypatch):
    calls, time = [], VPSDE.time
    monkeypatch.setattr(VPSDE, "time", lambda self, lam: calls.append(lam) or time(self, lam))
    make_sampler(name, steps=20, grid="uniform", **options)(denoiser(VPSDE()), torch.ones(2, 3), seeds=range(2))
    assert len(calls) == 1


def test_kept_values_are_the_newest():
    kept, made = Kept(2), []

    def of(key):
        return kept.of(key, lambda: made.append(key) or key)

    assert [of(key) for key in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2] and len(kept) == 2
    assert of([]) == [] and len(kept) == 2      # what cannot be hashed is not kept
