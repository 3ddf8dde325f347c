"""Every sampler on flow matching's process, whose signal ends at 0, against exact mixtures and the flow of a Gaussian."""

import numpy as np
import pytest
import torch

from scorefield.models import GaussianMixture, ScoreModel
from scorefield.numerics.grids import GRIDS
from scorefield.samplers import SAMPLERS, ddim_invert, make_sampler, prior_sample
from scorefield.sde_lib import FlowSDE

SDE, SAMPLES, EACH = FlowSDE(), 4, 2000
STOCHASTIC = {
    "euler_maruyama": {"steps": 400, "grid": "logsnr"}, "reverse_diffusion": {"steps": 400, "grid": "logsnr"},
    "ddim": {"steps": 200, "eta": 1.0}, "dpm_solver++": {"steps": 100, "method": "sde"},
    "predictor_corrector": {"steps": 200, "grid": "logsnr", "snr": 0.1},
    "langevin": {"steps": 400, "corrector_steps": 10, "snr": 0.4},
    "sa_solver": {"steps": 60}, "er_sde": {"steps": 60}, "restart": {"steps": 40},
    "edm": {"steps": 60, "churn": 20.0}, "torchsde": {"steps": 1024, "method": "euler"},
}
ORDERS = [("ddim", {}, 1), ("euler", {}, 1), ("heun", {}, 2), ("rk4", {"scaling": "ve"}, 4), ("dpm_solver", {"order": 2}, 2),
          ("dpm_solver", {"order": 3, "method": "singlestep"}, 3), ("dpm_solver++", {"order": 3}, 3),
          ("deis", {"order": 3}, 3), ("ipndm", {}, 2), ("unipc", {"order": 2}, 3), ("auto", {"order": 2}, 3)]


class Independent(ScoreModel):
    """Every element of x is a draw of one mixture on a line, so that one sample holds many draws."""

    def __init__(self, mixture):
        super().__init__()
        self.mixture, self.sde = mixture, mixture.sde

    def predict(self, x, t, kind):
        return self.mixture.predict(x.reshape(-1, 1), t, kind).reshape(x.shape)


@pytest.fixture(scope="module")
def modes():
    """Two modes on a line, at -1 and 1."""
    return GaussianMixture(SDE, torch.tensor([[-1.0], [1.0]]), torch.tensor([0.04, 0.09]), torch.tensor([0.3, 0.7]))


@pytest.mark.costly
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_draw_the_mixture(name, modes):
    """Moments within four standard errors, and a bias of 0.01, of the data's; without a predictor, Langevin lags by 0.05."""
    bias = 0.05 if name == "langevin" else 0.01
    n, sampler = SAMPLES * EACH, make_sampler(name, **STOCHASTIC[name])
    assert sampler.stochastic
    x_T = prior_sample(SDE, (EACH,), range(SAMPLES), dtype=torch.float64)
    x = sampler(Independent(modes), x_T, seeds=range(SAMPLES)).x
    weights, means, variances = modes.weights, modes.means[:, 0], modes.variances
    mean = float(weights @ means)
    variance = float(weights @ (variances + (means - mean).square()))
    fourth = float(weights @ ((means - mean)**4 + 6 * (means - mean)**2 * variances + 3 * variances**2))
    assert abs(float(x.mean()) - mean) < 4 * (variance / n)**0.5 + bias
    assert abs(float(x.var()) - variance) < 4 * ((fourth - variance**2) / n)**0.5 + bias
    right = x[x > 0]
    assert abs(len(right) / n - 0.7) < 4 * (0.21 / n)**0.5 + 0.005
    assert abs(float(right.std()) - 0.3) < 4 * 0.3 / (2 * 0.7 * n)**0.5 + 0.01


def smooth():
    return GaussianMixture(SDE, torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]), torch.tensor([0.3, 0.5, 0.4]),
                           torch.tensor([1.0, 2.0, 1.5]))


@pytest.mark.costly
@pytest.mark.parametrize("name, options, order", ORDERS)
def test_deterministic_samplers_have_their_order_of_convergence(name, options, order):
    model, x_T = smooth(), prior_sample(SDE, (2,), range(8), dtype=torch.float64)
    exact = make_sampler("ode", method="dopri8", t_end=0.02, rtol=1e-13, atol=1e-13)(model, x_T).x
    steps = [80, 161, 320]
    errors = [float((make_sampler(name, steps=n, t_end=0.02, grid="logsnr", **options)(model, x_T).x - exact).norm())
              for n in steps]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] > order - 0.2 and errors[-1] < 0.05


@pytest.mark.parametrize("name", ["auto", "ode", "edm", "dpm_solver++", "unipc", "heun"])
def test_the_flow_of_a_gaussian_scales_by_its_standard_deviation(name):
    model = GaussianMixture(SDE, torch.zeros(1, 3), torch.tensor([0.3]))
    x_T = prior_sample(SDE, (3,), range(5), dtype=torch.float64)
    options = {"rtol": 1e-9, "atol": 1e-9} if name == "ode" else {"steps": 300, "grid": "logsnr"}
    result = make_sampler(name, t_end=1e-3, **options)(model, x_T)
    t = result.times[[0, -1]]
    variance = SDE.alpha(t).square() * 0.3 + SDE.sigma(t).square()
    torch.testing.assert_close(result.x, x_T * (variance[1] / variance[0]).sqrt(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("scaling", ["x", "ve"])
def test_one_euler_step_of_a_point_mass_is_exact_as_its_paths_are_straight(scaling):
    """x_t = (1 - t) x_0 + t eps for one x_0: what rectified flow promises (Liu et al. 2023)."""
    model = GaussianMixture(SDE, torch.tensor([[0.7, -0.2]]), torch.zeros(1))
    x_T = prior_sample(SDE, (2,), range(5), dtype=torch.float64)
    x = make_sampler("euler", steps=1, t_end=0.01, scaling=scaling)(model, x_T).x
    eps = (x_T - (1 - SDE.t_max) * model.means) / SDE.t_max
    torch.testing.assert_close(x, 0.99 * model.means + 0.01 * eps, rtol=1e-9, atol=1e-9)


def test_every_grid_starts_at_the_last_time_of_the_process():
    for grid in GRIDS:
        times = make_sampler("ddim", steps=10, grid=grid).times(smooth())
        assert bool((times.diff() < 0).all()) and float(times[0]) <= SDE.t_max, grid
        assert float(times[0]) == SDE.t_max or grid == "strided_leading"      # which skips the last indices by design
    with pytest.raises(ValueError, match="within"):
        make_sampler("ddim", grid=[1.0, 0.5, 0.1]).times(smooth())


def test_ancestral_sampling_says_why_it_does_not_take_the_process(modes):
    with pytest.raises(ValueError, match="DDPM and SMLD chains, and FlowSDE.*limit of neither; use .*ddim with eta 1"):
        make_sampler("ancestral")(modes, torch.zeros(2, 1), seeds=range(2))


def test_inversion_leads_back_to_the_latent():
    model, sampler = smooth(), make_sampler("ddim", steps=400, grid="logsnr")
    x_T = prior_sample(SDE, (2,), range(4), dtype=torch.float64)
    assert float((ddim_invert(model, sampler(model, x_T).x, sampler) - x_T).abs().max()) < 0.05


def test_every_sampler_is_held_to_one_of_these():
    ones = {"ancestral", "ode"}
    assert set(SAMPLERS) == ones | set(STOCHASTIC) | {name for name, *_ in ORDERS}
