"""The variance of x_0 from moments: on exact models it is that of their posteriors."""

import itertools

import pytest
import torch

from scorefield.data import from_arrays, make_codec
from scorefield.evaluation import fit_moments
from scorefield.likelihood import chain_elbo
from scorefield.models import FittedVariance, GaussianMixture, Moments
from scorefield.models.variance import from_stored, stored
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VESDE, VPSDE, DDPMChain

MEANS, VARIANCES = torch.tensor([[-1.0, 0.3], [1.0, -0.2]]), torch.tensor([0.02, 0.1])
SDES = {"vp": VPSDE(), "ve": VESDE(sigma_max=10.0), "chain": DDPMChain.from_schedule("cosine", 100).to_sde()}


def mixture_of(sde):
    return GaussianMixture(sde, MEANS, VARIANCES)


def fitted(sde, n=4000, points=40):
    model = mixture_of(sde)
    x = model.sample(n + 10, generator=torch.Generator().manual_seed(1)).float()
    return model, fit_moments(model, from_arrays(x[10:], x[:10]), make_codec(None), n, points)


@pytest.mark.costly
@pytest.mark.parametrize("name", SDES)
def test_of_an_exact_model_both_estimates_are_the_mean_of_its_posterior_variance(name):
    """At every time within five standard errors of 4,000 examples; E over x_t by 20,000 draws of its own."""
    sde = SDES[name]
    model, moments = fitted(sde)
    for i in range(0, 40, 6):
        t = sde.time(moments.half_log_snr[i]).clamp(sde.t_min, sde.t_max)
        x_t = model.sample(20_000, float(t), torch.Generator().manual_seed(2))
        exact = model.posterior(x_t, t).variance.mean(0) * float((sde.alpha(t) / sde.sigma(t)).square())
        error = 5 * (2 / 4000) ** 0.5      # a squared normal number has the standard deviation sqrt 2, or less
        for estimate in ("residual", "score"):
            torch.testing.assert_close(moments.shares(estimate)[i], exact, rtol=0, atol=error)
        assert float(moments.shares("residual", "isotropic")[i]) == pytest.approx(float(exact.mean()), abs=error)


@pytest.mark.slow
def test_gaussian_data_have_the_variance_of_the_closed_form():
    sde, std = VPSDE(), 0.5
    model = GaussianMixture(sde, torch.zeros(1, 2), torch.tensor([std**2]))
    x = model.sample(20_010, generator=torch.Generator().manual_seed(0)).float()
    model = FittedVariance(model, fit_moments(model, from_arrays(x[10:], x[:10]), make_codec(None), 20_000, 30))
    t = torch.tensor([0.02, 0.2, 0.5, 0.9], dtype=torch.float64)
    found = model.posterior(torch.zeros(4, 2, dtype=torch.float64), t).variance
    alpha2, sigma2 = sde.alpha(t) ** 2, sde.sigma(t) ** 2
    exact = std**2 * sigma2 / (alpha2 * std**2 + sigma2)
    torch.testing.assert_close(found, exact[:, None].expand(4, 2), rtol=0.03, atol=0)


def test_between_its_times_the_share_is_interpolated_and_beyond_them_it_stays():
    sde = VPSDE()
    share = torch.tensor([[0.2, 0.1], [0.8, 0.9]], dtype=torch.float64)
    moments = Moments(torch.tensor([-1.0, 1.0], dtype=torch.float64), share, 1 - share, 10)
    x = torch.zeros(1, 2, dtype=torch.float64)
    for place, wanted in ((-3.0, [0.2, 0.1]), (0.0, [0.4, 0.3]), (2.0, [0.8, 0.9])):
        t = sde.time(torch.tensor(place, dtype=torch.float64))
        scale = float((sde.sigma(t) / sde.alpha(t)).square())
        for estimate in ("residual", "score"):
            variance = FittedVariance(mixture_of(sde), moments, estimate).posterior(x, t).variance
            torch.testing.assert_close(variance, scale * torch.tensor([wanted], dtype=torch.float64), rtol=1e-9, atol=0)
        isotropic = FittedVariance(mixture_of(sde), moments, covariance="isotropic")
        middle = (0.15 * 0.85) ** 0.5 if place == 0 else sum(wanted) / 2
        assert float(isotropic.posterior(x, t).variance) == pytest.approx(scale * middle, rel=1e-9)
        each = isotropic.posterior(x.expand(3, 2), t.expand(3)).variance
        torch.testing.assert_close(each, isotropic.posterior(x, t).variance.expand(3, 2), rtol=1e-12, atol=0)
    bounded = FittedVariance(mixture_of(sde), moments, span=2.0)
    assert float(bounded.posterior(x, 1.0).variance.max()) == 1.0


def test_a_bound_and_samples_are_better_for_it_and_it_is_kept_in_a_file(tmp_path):
    import numpy as np

    model, moments = fitted(VPSDE(), 2000, 60)
    np.savez(tmp_path / "m.npz", **stored(moments))
    with np.load(tmp_path / "m.npz") as arrays:
        again = from_stored(arrays)
    assert again.n == 2000 and all(torch.equal(getattr(again, k), getattr(moments, k)) for k in ("residual", "score"))
    known = FittedVariance(model, moments)
    x = model.sample(500, generator=torch.Generator().manual_seed(5)).float()
    bounds = [float(chain_elbo(m, x, None, steps=10, variance=v, seeds=range(500)).value.mean())
              for m, v in ((model, "beta"), (known, "analytic"), (model, "analytic"))]
    assert bounds[0] < bounds[1] < bounds[2]      # its variance is the mean of the exact one
    x_T = prior_sample(VPSDE(), (2,), range(4))
    assert make_sampler("ddim", steps=3, variance="analytic")(known, x_T, range(4)).nfe == 3


def test_what_does_not_fit_is_refused():
    model, data = mixture_of(VPSDE()), from_arrays(torch.randn(20, 2))
    for settings in ({"points": 1}, {"n": 1}):
        with pytest.raises(ArgumentError, match="at least 2"):
            fit_moments(model, data, make_codec(None), **settings)
    with pytest.raises(ArgumentError, match="have no labels"):
        fit_moments(model, data, make_codec(None), 4, 2, labelled=True)
    good = torch.ones(2, 2, dtype=torch.float64)
    for place, shape in (([1.0, 0.0], (2, 2)), ([0.0, 1.0], (3, 2))):
        with pytest.raises(ArgumentError, match="moments need"):
            Moments(torch.tensor(place, dtype=torch.float64), torch.ones(shape), good, 3)
    moments = Moments(torch.tensor([0.0, 1.0], dtype=torch.float64), good, good, 3)
    for settings in ({"estimate": "scores"}, {"covariance": "full"}):
        with pytest.raises(ArgumentError, match="unknown"):
            FittedVariance(model, moments, **settings)


@pytest.mark.parametrize("covariance", ["diagonal", "isotropic"])
def test_optimal_indices_are_those_of_the_least_sum_of_divergences(covariance):
    """Against all choices of 4 of 8 indices, with the divergence of a step written from its mean and variance."""
    chain = DDPMChain.from_schedule("cosine", 8)
    model, moments = fitted(chain.to_sde(), 500, 20)
    known = FittedVariance(model, moments, covariance=covariance)

    def divergence(i, j):      # of a step from i to j, for errors of the fitted size
        step = chain.between(i, j)
        tilde = step.variance * (step.sigma_s / step.sigma_t).square()
        of_x0 = known.posterior(torch.zeros(1, 2, dtype=torch.float64), chain.times[i]).variance.expand(1, 2)[0]
        return float(0.5 * (1 + step.posterior[1].square() * of_x0 / tilde).log().sum())

    sums = {(0, *inner, 7): sum(divergence(j, i) for i, j in itertools.pairwise((0, *inner, 7)))
            for inner in itertools.combinations(range(1, 7), 2)}
    best = min(sums, key=sums.get)
    assert known.best_indices(chain.times, 4).tolist() == list(best)
    assert known.best_indices(chain.times.flip(0), 4).tolist() == [7 - i for i in reversed(best)]
    assert known.best_indices(chain.times, 8).tolist() == list(range(8))
    assert known.best_indices(chain.times, 2).tolist() == [0, 7]


def test_the_bound_of_the_optimal_indices_is_better_than_that_of_even_ones():
    """By more than four standard errors of 500 examples, at 5 and at 10 steps of 100, with shared noise."""
    model, moments = fitted(SDES["chain"], 2000, 60)
    known, chain = FittedVariance(model, moments), DDPMChain.from_schedule("cosine", 100)
    x = model.sample(500, generator=torch.Generator().manual_seed(5))
    for steps in (5, 10):
        even, best = (chain_elbo(known, x, None, chain, steps, "analytic", grid, draws=8, seeds=range(500)).value
                      for grid in ("even", "optimal"))
        gain = best - even
        assert float(gain.mean()) > 4 * float(gain.std()) / 500**0.5


def test_samplers_take_the_optimal_indices_as_a_grid():
    model, moments = fitted(SDES["chain"], 200, 20)
    known = FittedVariance(model, moments)
    result = make_sampler("ancestral", steps=6, grid="optimal", variance="analytic")(
        known, prior_sample(model.sde, (2,), range(3)), range(3))
    indices = (100 * result.times - 1).round().long()
    assert result.nfe == 6 and torch.equal(indices.flip(0), known.best_indices(model.sde.time(model.sde.half_log_snr(
        torch.arange(1, 101, dtype=torch.float64) / 100)), 6))
    model, moments = fitted(SDES["vp"], 200, 20)
    times = make_sampler("ddim", steps=6, grid="optimal").times(FittedVariance(model, moments))
    assert len(times) == 7 and times[0] == 1 and float(times[-1]) == model.sde.t_sample
    with pytest.raises(ArgumentError, match="fit them with mode fit_variance"):
        make_sampler("ddim", grid="optimal").times(model)
    with pytest.raises(ArgumentError, match="choose from even, optimal"):
        chain_elbo(known, torch.zeros(1, 2), None, grid="odd", seeds=[0])


def test_the_optimal_indices_are_found_once_for_all_batches(monkeypatch):
    model, moments = fitted(SDES["chain"], 200, 20)
    known = FittedVariance(model, moments)
    first = known.best_indices(SDES["chain"].time(moments.half_log_snr), 5)
    monkeypatch.setattr(Moments, "shares", None)      # of which every search would make its divergences
    again = known.best_indices(SDES["chain"].time(moments.half_log_snr), 5)
    first += 1      # the caller's own
    assert torch.equal(again + 1, first)
