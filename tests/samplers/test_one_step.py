import numpy as np
import pytest
import torch

from scorefield.models import GaussianMixture
from scorefield.samplers import ddim_invert, make_sampler, prior_sample, slerp
from scorefield.sde_lib import VESDE, VPSDE, DDPMChain, SMLDChain, SubVPSDE

STD = 0.5      # of one-dimensional Gaussian data, for which every rule is linear and its variance a recursion
STOCHASTIC = {
    "euler_maruyama": {}, "reverse_diffusion": {}, "ancestral": {"variance": "beta"}, "ddim": {"eta": 1.0},
    "dpm_solver++": {"method": "sde", "order": 2},
}


def gaussian(sde):
    return GaussianMixture(sde, torch.zeros(1, 1), torch.tensor([STD**2]))


def variance(sde, t):
    return float(sde.alpha(t)) ** 2 * STD**2 + float(sde.sigma(t)) ** 2


def variance_of_rule(sampler, sde):
    """Variance at the end of x_s = keep x + of_eps eps + of_noise z with the exact eps = sigma x / V(t)."""
    times = sampler.times(gaussian(sde))
    spread = sde.prior.std**2
    for t, keep, of_eps, of_noise in zip(times, *sampler.coefficients(sde, times), strict=False):
        gain = float(keep + of_eps * sde.sigma(t) / variance(sde, t))
        spread = gain**2 * spread + float(of_noise) ** 2
    return spread


@pytest.mark.costly
@pytest.mark.parametrize("name", [name for name in STOCHASTIC if name != "dpm_solver++"])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=5.0)], ids=["vp", "ve"])
def test_samples_have_the_variance_that_the_rule_has_on_a_gaussian(name, sde):
    n = 20_000
    sampler = make_sampler(name, steps=50, t_end=1e-3, **STOCHASTIC[name])
    x_T = prior_sample(sde, (1,), range(n), dtype=torch.float64)
    x = sampler(gaussian(sde), x_T, seeds=range(n)).x
    expected = variance_of_rule(sampler, sde)
    assert abs(float(x.var()) / expected - 1) < 4 * np.sqrt(2 / n)
    assert abs(float(x.mean())) < 4 * np.sqrt(expected / n)


@pytest.mark.costly
@pytest.mark.parametrize("name, settings", [(n, s) for n, s in STOCHASTIC.items() if n != "dpm_solver++"]
                         + [("euler_maruyama", {"eta": 0.0}), ("euler_maruyama", {"eta": 0.6}), ("ddim", {"eta": 0.0}),
                            ("ancestral", {"variance": "beta_tilde"})])
def test_weak_order_is_at_least_one(name, settings):
    """The bias of the second moment, against the exact flow of a Gaussian from N(0, 1), falls with the step."""
    sde, steps = VPSDE(), np.array([100, 200, 400, 800])
    finest = variance_of_rule(make_sampler(name, steps=16 * 800, t_end=1e-3, **settings), sde)
    errors = [abs(variance_of_rule(make_sampler(name, steps=int(n), t_end=1e-3, **settings), sde) - finest)
              for n in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope < -0.85


@pytest.mark.slow
def test_with_many_steps_they_draw_the_data():
    """Two well separated modes: their weights, means and spreads come back."""
    model = GaussianMixture(VPSDE(), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.01, 0.04]),
                            torch.tensor([0.3, 0.7]))
    n = 4000
    x_T = prior_sample(VPSDE(), (1,), range(n), dtype=torch.float64)
    for name, settings in STOCHASTIC.items():
        x = make_sampler(name, steps=500, **settings)(model, x_T, seeds=range(n)).x
        right = x[x > 0]
        assert abs(len(right) / n - 0.7) < 4 * np.sqrt(0.21 / n), name
        assert abs(float(right.mean()) - 1.0) < 0.02 and abs(float(right.std()) - 0.2) < 0.011, name
        assert abs(float(x[x < 0].std()) - 0.1) < 0.01, name


def test_eta_zero_is_euler_on_the_probability_flow_and_needs_no_seeds():
    model = gaussian(VPSDE())
    sampler = make_sampler("euler_maruyama", steps=7, eta=0.0)
    x = x_T = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    times = sampler.times(model)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = x + (s - t) * model.sde.reverse_drift(x, t, model.score(x, t), eta=0.0)
    torch.testing.assert_close(sampler(model, x_T).x, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(make_sampler("euler", steps=7)(model, x_T).x, x, rtol=1e-12, atol=1e-12)
    assert not sampler.stochastic


def test_ancestral_steps_are_the_posterior_of_the_chain_at_the_predicted_data():
    """x_s has the mean and variance of q(x_s given x_t, x_0 = E[x_0 given x_t]) on a chain's own times."""
    for chain in (DDPMChain.from_schedule("linear", 100), SMLDChain.from_schedule(100)):
        sde = chain.to_sde()
        model = gaussian(sde)
        sampler = make_sampler("ancestral", steps=99, grid="strided")
        times = sampler.times(model)
        torch.testing.assert_close(times, chain.times.flip(0))
        keep, of_eps, of_noise = sampler.coefficients(sde, times)
        x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
        for i in (0, 50, 98):
            index = 99 - i
            mean, spread = chain.posterior(model.x0(x, times[i]), x, index)
            torch.testing.assert_close(keep[i] * x + of_eps[i] * model.eps(x, times[i]), mean, rtol=1e-8, atol=1e-8)
            assert float(of_noise[i] ** 2) == pytest.approx(float(spread), rel=1e-8)
        beta = make_sampler("ancestral", steps=99, grid="strided", variance="beta").coefficients(sde, times)[2]
        if isinstance(chain, DDPMChain):
            torch.testing.assert_close(beta.square().flip(0), chain.betas[1:], rtol=1e-6, atol=1e-12)


def test_ddim_at_eta_one_has_the_ancestral_variance():
    sde = VPSDE()
    ddim, ancestral = make_sampler("ddim", steps=30, eta=1.0), make_sampler("ancestral", steps=30)
    for a, b in zip(ddim.coefficients(sde, ddim.times(gaussian(sde))),
                    ancestral.coefficients(sde, ancestral.times(gaussian(sde))), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_ddim_is_euler_in_the_variance_exploding_scaling(mixture):
    x_T = prior_sample(mixture.sde, (2,), range(5), dtype=torch.float64)
    a, b = (make_sampler(name, steps=12, grid="logsnr", **s)(mixture, x_T).x
            for name, s in (("ddim", {}), ("euler", {"scaling": "ve"})))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_inversion_and_sampling_undo_each_other_as_steps_grow(mixture):
    x = mixture.sample(20, mixture.sde.t_sample, torch.Generator().manual_seed(0))
    errors = []
    for steps in (50, 200):
        sampler = make_sampler("ddim", steps=steps, grid="logsnr")
        errors.append(float((sampler(mixture, ddim_invert(mixture, x, sampler)).x - x).abs().mean()))
    assert errors[1] < errors[0] / 2 and errors[1] < 0.05
    with pytest.raises(ValueError, match="eta"):
        ddim_invert(mixture, x, make_sampler("ddim", eta=0.5))


def test_slerp_keeps_the_norm_and_reaches_both_ends():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    for weight in (0.25, 0.5):
        torch.testing.assert_close(slerp(a, b, weight).flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))
    many = torch.randn(1000, 9, generator=generator)      # the cosine of some is rounded to beyond 1 or -1
    torch.testing.assert_close(slerp(many, many, 0.3), many)
    torch.testing.assert_close(slerp(many, -many, 0.0), many)
    torch.testing.assert_close(slerp(many, -many, 1.0), -many)


def test_what_cannot_work_is_refused_before_the_first_evaluation():
    class Untouched(GaussianMixture):
        def predict(self, x, t, kind):
            raise AssertionError("evaluated")

    model = Untouched(SubVPSDE(), torch.zeros(1, 1), torch.ones(1))
    for name, settings in (("ancestral", {}), ("predictor_corrector", {"predictor": "ancestral"})):
        with pytest.raises(ValueError, match="SubVPSDE.*reverse_diffusion"):
            make_sampler(name, **settings)(model, torch.zeros(2, 1), seeds=range(2))


@pytest.mark.parametrize("name, settings, argument", [
    ("euler_maruyama", {"eta": -0.1}, "eta"), ("ddim", {"eta": 1.1}, "eta"), ("ddim", {"eta": -0.1}, "eta"),
    ("ancestral", {"variance": "guessed"}, "variance"), ("torchsde", {"eta": 0.0}, "eta"),
    ("torchsde", {"method": "heun"}, "method"), ("torchsde", {"steps": 100}, "power of two"),
    ("predictor_corrector", {"snr": 0.0}, "snr"),
    ("predictor_corrector", {"predictor": "ode"}, "predictor"), ("langevin", {"corrector": "hmc"}, "corrector"),
    ("langevin", {"corrector_steps": -1}, "corrector_steps"),
])
def test_settings_out_of_range_are_refused(name, settings, argument):
    with pytest.raises(ValueError, match=argument):
        make_sampler(name, **settings)


@pytest.mark.costly
@pytest.mark.parametrize("corrector", ["langevin", "annealed"])
@pytest.mark.parametrize("predictor", ["reverse_diffusion", "euler_maruyama", "ancestral"])
def test_the_corrector_keeps_the_marginal_that_the_predictor_reaches(predictor, corrector):
    """On 16-dimensional Gaussian data the variance at the end is that of the marginal, without and with corrector."""
    sde, n, d = VPSDE(), 500, 16
    model = GaussianMixture(sde, torch.zeros(1, d), torch.tensor([STD**2]))
    x_T = prior_sample(VPSDE(), (d,), range(n), dtype=torch.float64)
    for steps in (0, 2):
        sampler = make_sampler("predictor_corrector", predictor=predictor, corrector=corrector, steps=600, snr=0.1,
                               corrector_steps=steps, t_end=1e-3)
        result = sampler(model, x_T, seeds=range(n))
        assert result.nfe == 600 * (1 + steps)
        assert float(result.x.var()) == pytest.approx(variance(sde, 1e-3), rel=0.06)


@pytest.mark.slow
def test_annealed_langevin_dynamics_draws_the_data():
    model = GaussianMixture(VESDE(sigma_max=5.0), torch.tensor([[0.4]]), torch.tensor([0.09]))
    n = 3000
    x = make_sampler("langevin", steps=100, corrector_steps=20, snr=0.2)(
        model, prior_sample(VESDE(sigma_max=5.0), (1,), range(n), dtype=torch.float64), seeds=range(n)).x
    assert abs(float(x.mean()) - 0.4) < 0.05 and float(x.std()) == pytest.approx(0.3, rel=0.1)


def test_the_reference_solution_does_not_depend_on_the_batch_and_converges_strongly():
    """torchsde's paths are one a sample: the same seeds give the same samples in any batch, on any step."""
    model = gaussian(VPSDE())
    x_T = prior_sample(VPSDE(), (1,), range(6), dtype=torch.float64)

    def draw(steps, part=slice(None)):
        sampler = make_sampler("torchsde", steps=steps, t_end=0.01)
        return sampler(model, x_T[part], seeds=list(range(6))[part]).x

    fine = draw(512)
    torch.testing.assert_close(draw(64, slice(2, 4)), draw(64)[2:4], rtol=1e-9, atol=1e-9)
    errors = [float((draw(steps) - fine).abs().mean()) for steps in (16, 64)]
    assert errors[1] < errors[0] / 3
