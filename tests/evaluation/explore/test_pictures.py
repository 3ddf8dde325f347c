"""The pictures of the papers against closed forms of Gaussians and mixtures."""

import math

import pytest
import torch

from scorefield.data import Points, make_codec
from scorefield.evaluation.explore import (
    forward,
    interpolate,
    inversion,
    inversions,
    invert,
    langevin,
    progressive,
    rate_distortion,
    schedule,
    shared_latents,
    slerp_samples,
    swiss_roll,
)
from scorefield.evaluation.explore.langevin import published, published_start, shares
from scorefield.evaluation.explore.paths import StartedAt, carry, on_chain
from scorefield.likelihood import chain_elbo
from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.models.networks.outputs import doubled
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import SAMPLERS, make_sampler, prior_sample
from scorefield.sde_lib import VESDE, VPSDE, CosineVPSDE, DDPMChain, SMLDChain, ddpm

MEAN, VARIANCE = torch.tensor([0.5, -1.0], dtype=torch.float64), 0.25


@pytest.fixture
def gaussian(any_sde):
    """N((0.5, -1), 0.25 I) under each SDE."""
    return GaussianMixture(any_sde, MEAN[None], torch.tensor([VARIANCE]))


def spread(sde, t):
    return (VARIANCE * sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt()


def flowed(sde, x, t, s):
    """Where the probability flow of the Gaussian carries x from time t to time s."""
    t, s = (torch.tensor(u, dtype=torch.float64) for u in (t, s))
    return sde.alpha(s) * MEAN + spread(sde, s) / spread(sde, t) * (x - sde.alpha(t) * MEAN)


def exact(sde, **options):
    return make_sampler("ode", rtol=1e-6, atol=1e-6, scaling="ve", **options)


def points(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return MEAN + math.sqrt(VARIANCE) * torch.randn(n, 2, dtype=torch.float64, generator=generator)


def test_interpolations_go_where_the_flow_carries_the_mixture(gaussian):
    sde, (a, b) = gaussian.sde, points(2)
    t, end = 0.4 * sde.t_max, sde.t_sample
    result = interpolate(gaussian, exact(sde), a, b, [0, t], points=5, seed=3)
    plain, through = result.x
    weights = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    mixed = (1 - weights) * a + weights * b
    assert torch.equal(plain[0], a) and torch.equal(plain[-1], b) and (plain - mixed).abs().max() < 1e-14
    from scorefield.numerics.noise import NoiseStream

    noisy = sde.perturb(mixed, t, NoiseStream([3]).normal(mixed[:1]).expand_as(mixed))
    assert (through - flowed(sde, noisy, t, end)).abs().max() < 1e-4
    assert result.nfe[0] == 0 < result.nfe[1]


def test_the_noise_of_an_interpolation_is_one_for_all_weights():
    """So by a sampler with noise the results for a Gaussian are linear in the weight."""
    model = GaussianMixture(VPSDE(), MEAN[None], torch.tensor([VARIANCE]))
    x = interpolate(model, make_sampler("euler_maruyama", steps=50), *points(2), [0.5], points=3).x[0]
    assert (x[1] - (x[0] + x[2]) / 2).abs().max() < 1e-12


@pytest.mark.parametrize("t", [0.2, 0.6, 1.0])
def test_completions_have_the_posterior_of_a_gaussian(t):
    """Exactly at any number of steps, as the analytic variance is exact for a Gaussian."""
    model = GaussianMixture(VPSDE(), MEAN[None], torch.tensor([VARIANCE]))
    x0, sampler, n = points(1)[0], make_sampler("ddim", steps=20, eta=1.0, variance="analytic"), 2000
    result = shared_latents(model, sampler, x0, [t], n)
    posterior = model.posterior(result.latents, t)
    std = float(posterior.variance.mean().sqrt())
    assert (result.completions[0].mean(0) - posterior.mean[0]).abs().max() < 4 * std / n**0.5
    assert abs(float(result.spread[0]) / std - 1) < 4 / (4 * n) ** 0.5
    assert torch.equal(result.completions, shared_latents(model, sampler, x0, [t], n, batch_size=700).completions)


def test_completions_need_noise():
    model = GaussianMixture(VPSDE(), MEAN[None], torch.tensor([VARIANCE]))
    with pytest.raises(ArgumentError, match="draws none") as error:
        shared_latents(model, make_sampler("auto"), points(1)[0], [0.5])
    assert error.value.arguments == ("sampler",)


def test_a_film_shows_the_predictions_along_the_samplers_own_path(gaussian):
    sde, sampler = gaussian.sde, make_sampler("euler_maruyama", steps=30)
    seeds = range(7)
    x_T = prior_sample(sde, (2,), seeds, dtype=torch.float64)
    film = progressive(gaussian, sampler, x_T, seeds, frames=4, batch_size=3)
    whole = sampler(gaussian, x_T, seeds, trajectory=True)
    assert torch.equal(film.times, whole.times[[0, 10, 20, 30]])
    assert torch.equal(film.states, whole.trajectory[[0, 10, 20, 30]]) and torch.equal(film.x, whole.x)
    for t, state, prediction in zip(film.times, film.states, film.predictions, strict=True):
        assert torch.equal(prediction, gaussian.x0(state, t))


def test_films_end_at_the_sample_where_a_sampler_ends_at_the_data():
    model = GaussianMixture(VPSDE(), MEAN[None], torch.tensor([VARIANCE]))
    film = progressive(model, make_sampler("edm", steps=10), prior_sample(model.sde, (2,), range(3)), frames=5)
    assert float(film.times[-1]) == 0 and torch.equal(film.predictions[-1], film.x)
    adaptive = progressive(model, make_sampler("ode"), prior_sample(model.sde, (2,), range(3)), frames=5)
    assert len(adaptive.times) == 5


def test_slerp_goes_from_one_sample_to_the_other_on_latents_of_gaussian_norm():
    model = GaussianMixture(VPSDE(), torch.zeros(1, 1000), torch.tensor([VARIANCE]))
    x_T = prior_sample(model.sde, (1000,), range(4), dtype=torch.float64)
    sampler = make_sampler("ddim", steps=10)
    path = slerp_samples(model, sampler, x_T[:2], x_T[2:], points=5)
    assert (path.latents.norm(dim=2) / 1000**0.5 - 1).abs().max() < 0.08
    assert (path.x[:, 0] - sampler(model, x_T[:2]).x).abs().max() < 1e-12
    assert (path.x[:, -1] - sampler(model, x_T[2:]).x).abs().max() < 1e-12
    with pytest.raises(ArgumentError, match="draws noise"):
        slerp_samples(model, make_sampler("ddim", eta=0.5), x_T[:2], x_T[2:])


@pytest.mark.costly
def test_latents_are_where_the_flow_carries_the_data_and_decode_to_them(gaussian):
    sde, x = gaussian.sde, points(20)
    latents, nfe = invert(gaussian, exact(sde), x)
    assert (latents - flowed(sde, x, sde.t_sample, sde.t_max)).abs().max() < 1e-3 * float(spread(sde, sde.t_max)) and nfe
    there_and_back = inversion(gaussian, exact(sde), x, batch_size=7)
    assert float(there_and_back.error.max()) < 1e-7


@pytest.mark.parametrize("name, order", [("ddim", 1), ("euler", 1)])
def test_the_error_of_an_inversion_falls_as_steps_grow(name, order):
    model = GaussianMixture(VPSDE(), MEAN[None], torch.tensor([VARIANCE]))
    rounds = inversions(model, lambda steps: make_sampler(name, steps=steps), points(20), [50, 100, 200])
    error = [float(r.error.mean()) ** 0.5 for r in rounds.values()]
    assert all(later < earlier for earlier, later in zip(error, error[1:], strict=False))
    assert math.log2(error[1] / error[2]) > order - 0.3
    assert [r.nfe for r in rounds.values()] == [100, 200, 400]


def test_what_cannot_be_taken_backwards_is_refused():
    model = GaussianMixture(VPSDE(), MEAN[None], torch.tensor([VARIANCE]))
    for name in ("auto", "unipc", "edm"):
        with pytest.raises(ArgumentError, match="only ddim, euler, heun, rk4, ode"):
            inversion(model, make_sampler(name), points(2))


CASES = {
    "points": (Points(), None), "standardised": (Points((0.5, -1.0), (2.0, 0.5)), None),
    "pixels": (make_codec(9), 9), "dequantised": (make_codec(9, dequantize=True), 9)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("settings", [{}, {"variance": "beta_tilde", "draws": 2}, {"variance": "analytic"}])
def test_rate_and_rest_add_up_to_the_bound_and_rate_rises(case, settings):
    codec, levels = CASES[case]
    model = GaussianMixture(CosineVPSDE(), torch.zeros(2, 2), torch.tensor([0.02, 0.3]))
    generator = torch.Generator().manual_seed(1)
    data = (torch.randint(levels, (11, 2), generator=generator).to(torch.uint8) if levels
            else codec.decode(model.sample(11, generator=generator).float()))
    seeds = [(5, i) for i in range(11)]
    curve = rate_distortion(model, codec, data, seeds, steps=40, batch_size=4, **settings)
    assert abs(float(curve.rate[0]) + curve.rest - curve.total) < 1e-9
    assert len(curve.rate) == 40 and bool((curve.rate >= 0).all()) and bool((curve.rate.diff() <= 0).all())
    assert bool((curve.times.diff() > 0).all())
    if codec.discrete:
        bound = chain_elbo(model, data, 9, steps=40, seeds=seeds, dtype=torch.float64, **settings)
        assert abs(curve.total + float(bound.value.mean()) / 2 / math.log(2)) < 1e-12


def test_rate_and_distortion_of_a_gaussian_are_those_of_its_posterior():
    """The squared error of E[x_0 given x_t] is Var[x_0 given x_t]; with the analytic variance, the rate is the information
    that x_t has about x_0 at few steps already: 1/2 log(1 + SNR v) nats.
    """
    sde, scale = VPSDE(), 3.0
    model = GaussianMixture(sde, torch.zeros(1, 2), torch.tensor([VARIANCE]))
    data = scale * model.sample(4000, generator=torch.Generator().manual_seed(0)).float()
    curve = rate_distortion(model, Points(0.0, scale), data, range(4000), batch_size=4000, steps=15, variance="analytic")
    alpha, sigma = sde.alpha(curve.times), sde.sigma(curve.times)
    known = scale * (VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)).sqrt()
    assert (curve.distortion / known - 1).abs().max() < 0.04
    information = 0.5 * (1 + VARIANCE * (alpha / sigma) ** 2).log2()
    assert (curve.rate - information).abs().max() < 0.03 and float(information[0]) > 3
    assert bool((curve.distortion.diff() > -0.02).all())
    entropy = 0.5 * math.log2(2 * math.pi * math.e * VARIANCE * scale**2)
    assert abs(curve.total - entropy) < 0.03


def test_the_curve_of_a_learned_variance_adds_up_to_its_bound():
    model = Denoiser(doubled(MLP((2,))), VPSDE(), learned_variance=True)
    data = torch.tensor([[0, 8], [3, 5]], dtype=torch.uint8)
    curve = rate_distortion(model, make_codec(9), data, range(2), steps=10, variance="learned")
    bound = chain_elbo(model, data, 9, steps=10, seeds=range(2), dtype=torch.float64, variance="learned")
    assert abs(curve.total + float(bound.value.mean()) / 2 / math.log(2)) < 1e-9 and len(curve.distortion) == 10


def test_predictions_in_range_make_the_bound_of_pictures_with_clip_x0():
    model = GaussianMixture(VPSDE(), torch.full((1, 3), 1.5), torch.tensor([0.5]))
    data = torch.full((4, 3), 8, dtype=torch.uint8)
    curve = rate_distortion(model, make_codec(9), data, range(4), steps=10, clip_x0=True)
    bound = chain_elbo(model, data, 9, steps=10, seeds=range(4), dtype=torch.float64, clip_x0=True)
    assert abs(curve.total + float(bound.value.mean()) / 3 / math.log(2)) < 1e-12
    assert float(curve.distortion[-1]) == 0      # E[x_0] = 1.5 lies above the range, whose end is the truth
    with pytest.raises(ArgumentError, match="only pictures"):
        rate_distortion(model, Points(), data.float(), range(4), clip_x0=True)


def test_a_strip_is_the_forward_process_with_one_noise(any_sde):
    x0 = points(3)
    strip = forward(any_sde, x0, range(3), frames=5)
    assert torch.equal(strip.states[0], x0) and strip.times.tolist() == [any_sde.t_max * i / 4 for i in range(5)]
    alpha, sigma = any_sde.alpha(strip.times[1:])[:, None, None], any_sde.sigma(strip.times[1:])[:, None, None]
    eps = (strip.states[1:] - alpha * x0) / sigma
    assert (eps - eps[:1]).abs().max() < 1e-10
    many = forward(any_sde, points(4000), range(4000), frames=2).states[1]
    last = torch.tensor(any_sde.t_max, dtype=torch.float64)
    assert abs(float(many.std(0).mean() / spread(any_sde, last)) - 1) < 0.03


@pytest.mark.costly
def test_reverse_points_are_those_of_the_forward_process_and_the_drift_is_exact(any_sde):
    model = GaussianMixture(any_sde, MEAN[None], torch.tensor([VARIANCE]))
    seeds = range(1500)
    result = swiss_roll(model, make_sampler("ddim", steps=100, eta=1.0), points(1500),
                        prior_sample(any_sde, (2,), seeds, dtype=torch.float64), seeds, frames=4)
    widths = torch.stack([spread(any_sde, t) for t in result.times])
    assert (result.distance / widths).max() < 0.12 and bool((result.times.diff() > 0).all())
    t = result.times[2]
    x = result.places * max(1.0, float((any_sde.alpha(t) ** 2 + any_sde.sigma(t) ** 2).sqrt()))
    score = -(x - any_sde.alpha(t) * MEAN) / spread(any_sde, t) ** 2
    drift = -(any_sde.drift(t) * x - any_sde.g2(t) * score)
    assert (result.drift[2] / drift - 1).abs().max() < 1e-9
    with pytest.raises(ArgumentError, match="points in the plane"):
        swiss_roll(model, make_sampler("ddim"), points(2), torch.zeros(2, 3), range(2))


def test_naive_langevin_gets_the_weights_wrong_and_annealed_right():
    model, sampler = published()
    sigma = model.sde.sigma(sampler.times(model)[1:])
    assert abs(float(sigma[0]) - 20) < 0.01 and abs(float(sigma[-1]) - 1) < 1e-4 and len(sigma) == 10
    n = 200
    result = langevin(model, sampler, published_start(n), [(0, i) for i in range(n)])
    naive, annealed = (float(shares(x, model.means)[1]) for x in (result.naive, result.annealed))
    error = (0.8 * 0.2 / n) ** 0.5
    assert abs(annealed - 0.8) < 4 * error and abs(naive - 0.5) < 4 * error and result.nfe == 1000
    for x in (result.naive, result.annealed):      # both have the shape of the modes, with noise of variance 1
        upper = x[x[:, 0] > 0]
        assert abs(float(upper.mean()) - 5) < 0.3 and abs(float(upper.var(0).mean()) / 2 - 1) < 0.3


def test_schedules_are_the_formulas_of_their_processes():
    curves = schedule(VPSDE(0.1, 20.0), points=11)
    t = curves.times
    alpha_bar = torch.exp(-0.1 * t - 9.95 * t**2)
    assert (curves.alpha**2 - alpha_bar).abs().max() < 1e-12 and (curves.g2 - (0.1 + 19.9 * t)).abs().max() < 1e-10
    assert (curves.log_snr - torch.log(alpha_bar / (1 - alpha_bar))).abs().max() < 1e-9 and curves.betas is None
    chain = DDPMChain.from_schedule("linear", 100)
    assert (schedule(chain.to_sde()).betas - chain.betas).abs().max() < 1e-12
    added = SMLDChain.from_schedule(20, 0.01, 50.0)
    assert (schedule(added.to_sde()).betas[1:] / (added.sigma**2).diff() - 1).abs().max() < 1e-9


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("torchsde", "langevin")])
def test_every_sampler_starts_at_any_time(name):
    """Of the Gaussian at t it makes the Gaussian at its end; torchsde, which cannot, is refused."""
    sde, n = VPSDE(), 400
    model = GaussianMixture(sde, MEAN[None], torch.tensor([VARIANCE]))
    x = sde.perturb(points(n), 0.5, torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(9)))
    sampler = make_sampler(name, **({"steps": 60} if "steps" in SAMPLERS[name].__dataclass_fields__ else {}))
    out, _ = carry(model, sampler, x, range(n), start=0.5)
    assert (out.mean(0) - MEAN).abs().max() < 0.12 and (out.std(0) / VARIANCE**0.5 - 1).abs().max() < 0.15


def test_a_start_that_cannot_be_is_refused_and_t_max_changes_nothing():
    model = GaussianMixture(VPSDE(), MEAN[None], torch.tensor([VARIANCE]))
    x = prior_sample(model.sde, (2,), range(3))
    sampler = make_sampler("auto")
    assert torch.equal(carry(model, sampler, x, start=1.0)[0], sampler(model, x).x)
    for start in (0.0005, 1.5):
        with pytest.raises(ArgumentError, match="t must lie above 0.001") as error:
            carry(model, sampler, x, start=start)
        assert error.value.arguments == ("times",)
    with pytest.raises(ArgumentError, match="torchsde"):
        StartedAt(sampler=make_sampler("torchsde"), start=0.5)


def test_a_start_spreads_the_steps_below_it_and_keeps_lists_and_indices():
    model = GaussianMixture(VPSDE(), MEAN[None], torch.tensor([VARIANCE]))
    times = StartedAt(sampler=make_sampler("euler", steps=4), start=0.5).times(model)
    assert torch.allclose(times, torch.linspace(0.5, 0.001, 5, dtype=torch.float64), rtol=0, atol=1e-15)
    listed = StartedAt(sampler=make_sampler("euler", grid=[1.0, 0.6, 0.3, 0.1]), start=0.5).times(model)
    assert listed.tolist() == [0.5, 0.3, 0.1]
    chain = GaussianMixture(ddpm("cosine", steps=100), MEAN[None], torch.tensor([VARIANCE]))
    strided = StartedAt(sampler=make_sampler("ddim", steps=9, grid="strided"), start=0.5).times(chain)
    assert len(strided) == 10 and bool((strided * 100 - (strided * 100).round()).abs().max() < 1e-9) and strided[0] == 0.5
    every = StartedAt(sampler=make_sampler("ddim", steps=99, grid="strided"), start=0.5).times(chain)
    assert torch.allclose(every, torch.arange(50, 0, -1, dtype=torch.float64) / 100, rtol=0, atol=1e-12)


def test_times_of_a_chain_are_its_indices():
    assert on_chain(ddpm("cosine", steps=10), [0, 0.01, 0.27, 1.0]) == [0.0, 0.1, 0.3, 1.0]
    assert on_chain(VESDE(), [0.27]) == [0.27]
