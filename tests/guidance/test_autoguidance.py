"""Autoguidance: its formula, EDM2's sampler with it, its cost, and what it refuses."""

import pytest
import torch

from scorefield.guidance import autoguided, guided
from scorefield.models import GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VESDE, VPSDE


def mixtures(sde, labels=None):
    means = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return [GaussianMixture(sde, means * scale, torch.full((4,), v), labels=labels) for scale, v in ((1, 0.05), (0.8, 0.3))]


def test_every_prediction_is_extrapolated_away_from_the_other_model_within_the_interval():
    model, other = mixtures(VPSDE())
    x = torch.randn(5, 3, dtype=torch.float64)
    made = autoguided(model, other, 2.5, (0.2, 0.6))
    for kind in ("eps", "x0", "score"):
        wanted = 2.5 * model.predict(x, 0.4, kind) - 1.5 * other.predict(x, 0.4, kind)
        torch.testing.assert_close(made.predict(x, 0.4, kind), wanted, rtol=1e-12, atol=1e-12)
        assert torch.equal(made.predict(x, 0.8, kind), model.predict(x, 0.8, kind))
    assert (made.evaluations_at(0.4), made.evaluations_at(0.8)) == (2, 1)


def test_edm_with_autoguidance_is_the_sampler_of_edm2():
    """Their loop, written anew: D is that of the other network lerped to the model's, in both halves of Heun's step."""
    sde = VESDE(sigma_min=0.002, sigma_max=80.0)
    model, other = mixtures(sde)
    x_T = prior_sample(sde, (3,), range(6), dtype=torch.float64)
    steps, scale = 8, 1.7
    result = make_sampler("edm", steps=steps)(autoguided(model, other, scale), x_T)
    high, low = (float(sde.sigma(t)) ** (1 / 7) for t in (sde.t_max, sde.t_sample))
    levels = [*((high + torch.arange(steps, dtype=torch.float64) / (steps - 1) * (low - high)) ** 7), torch.tensor(0.0)]

    def denoised(x, sigma):
        ref, own = (m.x0(x, sde.time(-sigma.log())) for m in (other, model))
        return ref + scale * (own - ref)

    x = x_T
    for now, then in zip(levels, levels[1:], strict=False):
        slope = (x - denoised(x, now)) / now
        moved = x + (then - now) * slope
        if then > 0:
            slope = (slope + (moved - denoised(moved, then)) / then) / 2
            moved = x + (then - now) * slope
        x = moved
    torch.testing.assert_close(result.x, x, rtol=1e-9, atol=1e-9)
    assert result.nfe == 2 * (2 * steps - 1)


def test_both_models_are_told_the_label_and_a_model_without_labels_is_not():
    labels = [0, 0, 1, 1]
    (model, other), (_, plain) = mixtures(VPSDE(), labels), mixtures(VPSDE())
    x = torch.randn(5, 3, dtype=torch.float64)
    own = model.given(label=1).eps(x, 0.4)
    for worse, told in ((other, other.given(label=1)), (plain, plain)):
        made = guided(model, label=1, scale=3.0, autoguidance=worse)
        torch.testing.assert_close(made.eps(x, 0.4), 3 * own - 2 * told.eps(x, 0.4), rtol=1e-12, atol=1e-12)
    without = guided(model, scale=3.0, autoguidance=other)
    torch.testing.assert_close(without.eps(x, 0.4), 3 * model.eps(x, 0.4) - 2 * other.eps(x, 0.4), rtol=1e-12, atol=1e-12)
    again = guided(model, label=1, scale=3.0, autoguidance=other).given(label=0)
    zero = 3 * model.given(label=0).eps(x, 0.4) - 2 * other.given(label=0).eps(x, 0.4)
    torch.testing.assert_close(again.eps(x, 0.4), zero, rtol=1e-12, atol=1e-12)


def test_what_does_not_fit_is_refused_and_a_guided_model_has_no_density():
    (model, other), (elsewhere, _) = mixtures(VPSDE()), mixtures(VESDE())
    with pytest.raises(ArgumentError, match="needs a scale"):
        guided(model, autoguidance=other)
    with pytest.raises(ArgumentError, match="the model has the SDE VPSDE.* guides it VESDE"):
        autoguided(model, elsewhere, 2.0)
    with pytest.raises(ArgumentError, match="finite"):
        autoguided(model, other, float("inf"))
    assert "autoguidance at scale 2" in autoguided(model, other, 2.0).density_problem
