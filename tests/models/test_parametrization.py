"""A network that returns the exact target gives back exactly the noise, the data, the score and v."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scorefield.models import PARAMETRIZATIONS, Denoiser
from scorefield.models.parametrization import make_parametrization
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VESDE

prove = settings(deadline=None, derandomize=True, max_examples=30)
KINDS = ["eps", "x0", "v", "score", "flow"]
NAMES = [*KINDS, "edm"]
STD = 0.5      # of the data, as EDM's networks assume it


class Oracle(nn.Module):
    """Returns what it is told to, whatever it is asked."""

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output, requires_grad=False)

    def forward(self, x, time):
        return self.output


def exact_cases(sde, t, seed):
    """x_t, and the target of every parametrisation at t (batch,), in float64."""
    x0, eps = torch.randn(2, len(t), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    edm = (sigma * x0 - alpha * STD**2 * eps) / (STD * (alpha.square() * STD**2 + sigma.square()).sqrt())
    return alpha * x0 + sigma * eps, {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "score": -eps / sigma,
                                      "flow": eps - x0, "edm": edm}


def relative_error(actual, exact):
    """Largest error of each sample, relative to the sample's largest value."""
    return ((actual.double() - exact).abs().amax(1) / exact.abs().amax(1)).max().item()


def test_the_targets_are_those_of_their_names(sde):
    t = torch.linspace(sde.t_min, sde.t_max, 50, dtype=torch.float64)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    _, exact = exact_cases(sde, t, seed=0)
    assert sorted(PARAMETRIZATIONS) == sorted(NAMES)
    for name in NAMES:
        a, b = make_parametrization(name, STD).target(alpha, sigma)
        target = a * exact["x0"] + b * exact["eps"]
        torch.testing.assert_close(target, exact[name], rtol=1e-14, atol=1e-15)


@pytest.mark.costly
@pytest.mark.parametrize("name", NAMES)
@prove
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 99))
def test_the_exact_target_gives_back_the_noise_the_data_the_score_and_v(sde, name, fractions, seed):
    fractions = torch.tensor(fractions, dtype=torch.float64)
    t = sde.t_max * (sde.t_min / sde.t_max) ** fractions      # from t_max to t_min, evenly in its logarithm
    x, exact = exact_cases(sde, t, seed)
    denoiser = Denoiser(Oracle(exact[name]), sde, name, input_std=STD)
    for kind in KINDS:
        assert relative_error(getattr(denoiser, kind)(x, t), exact[kind]) < 1e-9, kind


@pytest.mark.parametrize("name", NAMES)
def test_float32_keeps_five_digits_where_no_small_number_divides(sde, name):
    """eps and score for all but the network of x_0, which divides by sigma; x_0 for those of x_0, v, flow and edm, v and
    flow for the last three.

    Elsewhere the loss is that of the formula: rounding of x_t over alpha in x_0, over sigma in eps.
    """
    t = torch.cat([torch.logspace(-5, -1, 400), torch.linspace(0.1, 1, 400)]).double().clamp(sde.t_min, sde.t_max)
    x, exact = exact_cases(sde, t, seed=3)
    denoiser = Denoiser(Oracle(exact[name].float()), sde, name, input_std=STD)
    rounding = 1e-6 * torch.maximum(x.abs(), exact["eps"].abs() * sde.sigma(t)[:, None]).amax(1, keepdim=True)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    for kind in KINDS:
        prediction = denoiser.predict(x.float(), t, kind)
        assert prediction.dtype == torch.float32
        kept = {"eps": ("eps", "score"), "score": ("eps", "score"), "x0": ("x0",), "v": KINDS, "flow": KINDS,
                "edm": KINDS}[name]
        if kind in kept:
            assert relative_error(prediction, exact[kind]) < 1e-5, kind
        elif kind == "x0":
            assert bool(((prediction - exact["x0"]).abs() <= rounding / alpha).all())
        elif kind == "eps":
            assert bool(((prediction - exact["eps"]).abs() <= rounding / sigma).all())


@pytest.mark.parametrize("name", NAMES)
def test_the_slope_of_eps_in_the_output_is_the_second_coefficient(sde, name):
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x = torch.ones(2, 1, dtype=torch.float64)
    outputs = torch.tensor([[0.2], [0.4]], dtype=torch.float64)
    at = [Denoiser(Oracle(outputs + more), sde, name, input_std=STD).eps(x, t) for more in (0, 1)]
    slope = {"eps": torch.ones_like(t), "x0": -alpha / sigma, "score": -sigma,
             "v": alpha / (alpha.square() + sigma.square()),
             "flow": alpha / (alpha + sigma), "edm": -alpha * STD / (alpha.square() * STD**2 + sigma.square()).sqrt()}[name]
    torch.testing.assert_close((at[1] - at[0])[:, 0], slope, rtol=1e-12, atol=0)
    torch.testing.assert_close(make_parametrization(name, STD).eps(alpha, sigma)[1], slope, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_kind_of_prediction_lists_those_that_exist(name):
    one = torch.ones(1)
    with pytest.raises(ValueError, match="'noise'; choose from x0, eps, v, score, flow$"):
        make_parametrization(name, STD).coefficients("noise", one, one)


# EDM's preconditioning


class Wave(nn.Module):
    """A smooth function of input and time that keeps what it was last given."""

    def forward(self, x, time):
        self.x, self.time = x, time
        return torch.sin(3 * x + time.to(x)[:, None])


@pytest.mark.parametrize("std", [0.5, 1.7])
def test_edm_is_the_denoiser_of_its_paper(sde, std):
    """Karras et al. 2022, equation 7 and table 1, in their variables z = x / alpha and level = sigma / alpha."""
    t = torch.cat([sde.t_min * torch.ones(1), torch.linspace(max(sde.t_min, 0.01), sde.t_max, 40)]).double()
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    x = (alpha * std + sigma) * torch.randn(41, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z, level = x / alpha, sigma / alpha
    c_skip, c_out = std**2 / (level**2 + std**2), level * std / (level**2 + std**2).sqrt()
    c_in, c_noise = 1 / (level**2 + std**2).sqrt(), level[:, 0].log() / 4
    denoised = c_skip * z + c_out * Wave()(c_in * z, c_noise.float())
    denoiser = Denoiser(Wave(), sde, "edm", "c_noise", input_std=std)
    torch.testing.assert_close(denoiser.x0(x, t), denoised, rtol=1e-6, atol=1e-7)      # time is float32
    torch.testing.assert_close(denoiser.network.x, c_in * z, rtol=1e-12, atol=0)
    torch.testing.assert_close(denoiser.network.time, c_noise.float(), rtol=1e-6, atol=1e-7)
    denoised = c_skip * z + c_out * Wave()(c_in * z, denoiser.network.time)
    score = (denoised - z) / level**2 / alpha
    torch.testing.assert_close(sigma * denoiser.score(x, t), sigma * score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("std", [0.5, 1.7])
def test_edms_target_has_unit_variance_and_no_correlation_with_the_input(sde, std):
    """For data of that standard deviation; their appendix B.6 derives the coefficients from these two facts."""
    t = torch.linspace(sde.t_min, sde.t_max, 50, dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    of_x0, of_eps = make_parametrization("edm", std).target(alpha, sigma)
    one = torch.ones_like(t)
    torch.testing.assert_close(of_x0.square() * std**2 + of_eps.square(), one, rtol=1e-12, atol=0)
    covariance = of_x0 * alpha * std**2 + of_eps * sigma
    torch.testing.assert_close(covariance / (alpha**2 * std**2 + sigma**2).sqrt(), 0 * one, rtol=0, atol=1e-15)


def test_an_edm_network_that_answers_zero_has_the_score_of_one_gaussian(sde):
    t = torch.linspace(sde.t_min, sde.t_max, 50, dtype=torch.float64)
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    variance = sde.alpha(t).square() * STD**2 + sde.sigma(t).square()
    score = Denoiser(Oracle(torch.zeros(50, 3)), sde, "edm", input_std=STD).score(x, t)
    torch.testing.assert_close(score, -x / variance[:, None], rtol=1e-12, atol=0)


def test_edm_keeps_five_digits_in_float32_from_sigma_0002_to_80():
    sde = VESDE(0.002, 80.0)
    t = torch.linspace(0, 1, 500, dtype=torch.float64)
    x, exact = exact_cases(sde, t, seed=4)
    denoiser = Denoiser(Oracle(exact["edm"].float()), sde, "edm", input_std=STD)
    for kind in KINDS:
        assert relative_error(denoiser.predict(x.float(), t, kind), exact[kind]) < 1e-5, kind


def test_edm_needs_the_standard_deviation_of_the_data():
    with pytest.raises(ArgumentError, match="'edm' needs the standard deviation of the data$") as caught:
        Denoiser(Wave(), VESDE(), "edm")
    assert caught.value.arguments == ("input_std",)


# Flow


def test_flow_has_finite_coefficients_where_alpha_or_sigma_is_zero():
    alpha, sigma = torch.tensor([1.0, 0.0, 0.3]), torch.tensor([0.0, 1.0, 0.0])
    flow = make_parametrization("flow")
    for pair in (flow.x0(alpha, sigma), flow.eps(alpha, sigma), flow.target(alpha, sigma),
                 flow.coefficients("v", alpha, sigma), flow.coefficients("flow", alpha, sigma)):
        assert all(bool(part.isfinite().all()) for part in pair)


def test_the_flow_of_a_flow_network_is_its_output_also_by_the_coefficients():
    alpha, sigma = torch.tensor([0.9, 0.2]).double(), torch.tensor([0.1, 0.7]).double()
    a, b = make_parametrization("flow").coefficients("flow", alpha, sigma)
    torch.testing.assert_close(a, torch.zeros_like(a), rtol=0, atol=1e-16)
    torch.testing.assert_close(b, torch.ones_like(b), rtol=1e-15, atol=0)


def test_flow_is_the_velocity_of_the_straight_path():
    """d/dt [(1 - t) x_0 + t eps] = eps - x_0."""
    x0, eps = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    velocity = torch.func.jvp(lambda t: (1 - t) * x0 + t * eps, (torch.tensor(0.3).double(),), (torch.ones(()).double(),))[1]
    a, b = make_parametrization("flow").target(torch.tensor(0.7).double(), torch.tensor(0.3).double())
    torch.testing.assert_close(a * x0 + b * eps, velocity, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_a_parametrisation_pickles_and_equals_its_copy(name):
    one = make_parametrization(name, STD)
    assert pickle.loads(pickle.dumps(one)) == one and one.name == name
