"""A network that returns the exact target gives back exactly the noise, the data, the score and v."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import PARAMETRIZATIONS, Denoiser

prove = settings(deadline=None, derandomize=True, max_examples=30)
KINDS = ["eps", "x0", "v", "score"]


class Oracle(nn.Module):
    """Returns what it is told to, whatever it is asked."""

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output, requires_grad=False)

    def forward(self, x, time):
        return self.output


def exact_cases(sde, t, seed):
    """x_0, eps and the four predictions at t (batch,), in float64."""
    x0, eps = torch.randn(2, len(t), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    return alpha * x0 + sigma * eps, {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "score": -eps / sigma}


def relative_error(actual, exact):
    """Largest error of each sample, relative to the sample's largest value."""
    return ((actual.double() - exact).abs().amax(1) / exact.abs().amax(1)).max().item()


def test_the_targets_are_those_of_their_names(sde):
    t = torch.linspace(sde.t_min, 1, 50, dtype=torch.float64)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    _, exact = exact_cases(sde, t, seed=0)
    assert sorted(PARAMETRIZATIONS) == sorted(KINDS)
    for name, parametrization in PARAMETRIZATIONS.items():
        a, b = parametrization.target(alpha, sigma)
        target = a * exact["x0"] + b * exact["eps"]
        torch.testing.assert_close(target, exact[name], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", KINDS)
@prove
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 99))
def test_the_exact_target_gives_back_the_noise_the_data_the_score_and_v(sde, name, fractions, seed):
    t = sde.t_min ** torch.tensor(fractions, dtype=torch.float64)      # from t_min to 1, evenly in its logarithm
    x, exact = exact_cases(sde, t, seed)
    denoiser = Denoiser(Oracle(exact[name]), sde, name)
    for kind in KINDS:
        assert relative_error(getattr(denoiser, kind)(x, t), exact[kind]) < 1e-9, kind


@pytest.mark.parametrize("name", KINDS)
def test_float32_keeps_five_digits_where_no_small_number_divides(sde, name):
    """eps and score for all but the network of x_0, which divides by sigma; x_0 for those of x_0 and v, v for v.

    Elsewhere the loss is that of the formula: rounding of x_t over alpha in x_0, over sigma in eps.
    """
    t = torch.cat([torch.logspace(-5, -1, 400), torch.linspace(0.1, 1, 400)]).double().clamp(min=sde.t_min)
    x, exact = exact_cases(sde, t, seed=3)
    denoiser = Denoiser(Oracle(exact[name].float()), sde, name)
    rounding = 1e-6 * torch.maximum(x.abs(), exact["eps"].abs() * sde.sigma(t)[:, None]).amax(1, keepdim=True)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    for kind in KINDS:
        prediction = denoiser.predict(x.float(), t, kind)
        assert prediction.dtype == torch.float32
        kept = {"eps": ("eps", "score"), "score": ("eps", "score"), "x0": ("x0",), "v": KINDS}[name]
        if kind in kept:
            assert relative_error(prediction, exact[kind]) < 1e-5, kind
        elif kind == "x0":
            assert bool(((prediction - exact["x0"]).abs() <= rounding / alpha).all())
        elif kind == "eps":
            assert bool(((prediction - exact["eps"]).abs() <= rounding / sigma).all())


@pytest.mark.parametrize("name", KINDS)
def test_the_slope_of_eps_in_the_output_is_the_second_coefficient(sde, name):
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x = torch.ones(2, 1, dtype=torch.float64)
    outputs = torch.tensor([[0.2], [0.4]], dtype=torch.float64)
    at = Denoiser(Oracle(outputs), sde, name).eps(x, t), Denoiser(Oracle(outputs + 1), sde, name).eps(x, t)
    slope = {"eps": torch.ones_like(t), "x0": -alpha / sigma, "score": -sigma,
             "v": alpha / (alpha.square() + sigma.square())}[name]
    torch.testing.assert_close((at[1] - at[0])[:, 0], slope, rtol=1e-12, atol=0)
    torch.testing.assert_close(PARAMETRIZATIONS[name].eps(alpha, sigma)[1], slope, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_an_unknown_kind_of_prediction_lists_those_that_exist(name):
    one = torch.ones(1)
    with pytest.raises(ValueError, match="'noise'; choose from x0, eps, v, score"):
        PARAMETRIZATIONS[name].coefficients("noise", one, one)
