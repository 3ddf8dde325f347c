"""Any callable is a score model: functions, networks, networks of diffusers, denoisers of k-diffusion."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scorefield.models import MLP, TIME_INPUTS, Denoiser, GaussianMixture, wrap
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VESDE, VPSDE, DDPMChain

KINDS = ["eps", "x0", "v", "score", "flow"]
TIMES = torch.tensor([0.1, 0.5, 0.999], dtype=torch.float64)      # all within the range of every SDE


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def half(x, time):
    return x / 2 + time[:, None].to(x) / 1000


@pytest.fixture
def mixture(sde):
    return GaussianMixture(sde, torch.tensor([[-1.0, 0.5], [0.7, 1.0]]), torch.tensor([0.2, 0.1]))


@pytest.mark.parametrize("predicts", KINDS)
def test_a_function_that_is_exact_becomes_the_exact_model(mixture, predicts):
    """It is told half log-SNR, of which the SDE knows the time; that is float32."""
    def function(x, half_log_snr):
        return mixture.predict(x, mixture.sde.time(half_log_snr.double()).clamp(0, mixture.sde.t_max), predicts)

    model = wrap(function, mixture.sde, predicts, time="half_log_snr")
    for kind in KINDS:
        exact = mixture.predict(normal(3, 2), TIMES, kind)
        error = (model.predict(normal(3, 2), TIMES, kind) - exact).abs().amax(1) / exact.abs().amax(1)
        assert float(error.max()) < 1e-3, kind


def test_a_wrapped_network_is_the_denoiser_of_that_network(sde):
    network = MLP((2,), 8, 1)
    nn.init.normal_(network.last.weight)
    model, denoiser = wrap(network, sde, "edm", "c_noise", 0.5), Denoiser(network, sde, "edm", "c_noise", 0.5)
    for kind in KINDS:
        assert torch.equal(model.predict(normal(3, 2), TIMES, kind), denoiser.predict(normal(3, 2), TIMES, kind))
    assert {id(p) for p in model.parameters()} == {id(p) for p in network.parameters()}


def test_a_denoiser_of_k_diffusion_is_told_sigma_and_sees_x_itself():
    """D(x, sigma) of data N(0, I) is x / (1 + sigma^2)."""
    model = wrap(lambda x, sigma: x / (1 + sigma[:, None].double() ** 2), VESDE(), predicts="x0", time="sigma")
    score = -normal(3, 2) / (1 + VESDE().sigma(TIMES)[:, None] ** 2)
    torch.testing.assert_close(model.score(normal(3, 2), TIMES), score, rtol=1e-5, atol=1e-7)


def test_a_network_of_diffusers_answers_with_its_sample():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16),
                                    layers_per_block=1, down_block_types=("DownBlock2D", "DownBlock2D"),
                                    up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=4).eval()
    sde = DDPMChain.from_schedule("linear", 1000).to_sde()
    x = normal(3, 1, 8, 8, dtype=torch.float32)
    model = wrap(network, sde, time="index")
    with torch.no_grad():
        expected = network(x, torch.tensor([99.0, 499.0, 998.0])).sample
        torch.testing.assert_close(model.eps(x, TIMES), expected, rtol=1e-5, atol=1e-5)


def test_time_may_be_a_function_of_the_sde_and_t():
    seen = []

    def function(x, time):
        seen.append(time)
        return x

    model = wrap(function, VPSDE(), time=lambda sde, t: 7 * sde.alpha(t))
    model.eps(normal(3, 2), TIMES)
    model.eps(normal(3, 2), 0.5)
    assert torch.equal(seen[0], (7 * VPSDE().alpha(TIMES)).float())
    assert torch.equal(seen[1], (7 * VPSDE().alpha(0.5)).float().expand(3))


def test_a_function_may_take_conditions():
    def function(x, time, condition):
        return x * condition["label"][:, None] + condition["shift"]

    model = wrap(function, VPSDE(), conditions=("label", "shift"), classes=3)
    x, shift = normal(3, 2), normal(3, 2)
    expected = x * torch.tensor([[0.0], [2.0], [1.0]]).double() + shift
    torch.testing.assert_close(model.given(label=[0, 2, 1], shift=shift).eps(x, 0.5), expected)
    with pytest.raises(ArgumentError, match="labels go from 0 to 2"):
        model.given(label=3)
    with pytest.raises(ArgumentError, match="never saw"):
        model.given(label=None)
    guided = wrap(function, VPSDE(), conditions=("label",), classes=3, label_dropout=True)
    with pytest.raises(ArgumentError, match="takes label$"):
        guided.given(shift=shift)
    assert guided.takes.label_dropout


def test_a_network_that_declares_its_conditions_need_not_repeat_them():
    model = wrap(MLP((2,), 8, 1, classes=5), VPSDE())
    assert model.takes.names == ("label",) and model.takes.classes == 5
    assert model.given(label=4).eps(normal(3, 2), 0.5).shape == (3, 2)


def test_a_wrapped_function_keeps_the_dtype_of_x_and_pickles():
    model = wrap(half, VPSDE())
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert model.score(normal(3, 2).to(dtype), 0.5).dtype == dtype
    assert torch.equal(pickle.loads(pickle.dumps(model)).eps(normal(3, 2), TIMES), model.eps(normal(3, 2), TIMES))


# Bad input


@pytest.mark.parametrize(("function", "match"), [
    (lambda x, time: x[:1], r"<lambda> must return a tensor of x's shape \(3, 2\), got \(1, 2\)"),
    (lambda x, time: x.sum(1), r"x's shape \(3, 2\), got \(3,\)"),
    (lambda x, time: (x, x), "must return a tensor, .* got tuple"), (lambda x, time: None, "got NoneType"),
    (lambda x, time: SimpleNamespace(sample=x[None]), r"got \(1, 3, 2\)"),
    (nn.Bilinear(2, 1, 5), None)], ids=["few", "flat", "tuple", "none", "more", "module"])
def test_an_output_of_another_shape_is_refused_with_what_was_expected(function, match):
    if match is None:
        function, match = Wide(), r"Wide must return a tensor of x's shape \(3, 2\), got \(3, 4\)"
    with pytest.raises(ValueError, match=match):
        wrap(function, VPSDE()).eps(normal(3, 2), 0.5)


class Wide(nn.Module):
    def forward(self, x, time):
        return torch.cat([x, x], 1)


@pytest.mark.parametrize(("settings", "argument", "match"), [
    ({"predicts": "noise"}, "predicts", "unknown predicts 'noise'; choose from eps, x0, v, score, flow, edm$"),
    ({"time": "t"}, "time", "unknown time 't'; choose from " + ", ".join(TIME_INPUTS)),
    ({"predicts": "edm"}, "input_std", "needs the standard deviation"), ({"input_std": -1.0}, "input_std", "positive"),
    ({"time": "index"}, "time", "needs the SDE of a chain"), ({"label_dropout": True}, "label_dropout", "Wrapped"),
], ids=str)
def test_words_that_do_not_exist_are_refused_with_those_that_do(settings, argument, match):
    with pytest.raises(ArgumentError, match=match) as caught:
        wrap(half, VPSDE(), **settings)
    assert caught.value.arguments == (argument,)


def test_what_is_not_callable_is_refused():
    with pytest.raises(ArgumentError, match=r"needs a function or network of \(x, time\), got Tensor"):
        wrap(torch.zeros(2), VPSDE())
