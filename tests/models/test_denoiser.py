"""What a network is told, and what comes back: time inputs, input scaling, dtypes, shapes, modes, errors."""

import copy
import pickle

import pytest
import torch
from torch import nn

from scorefield.models import MLP, PARAMETRIZATIONS, TIME_INPUTS, Denoiser, GaussianMixture
from scorefield.models.denoiser import evaluation_mode
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import SDE, VESDE, VPSDE, DDPMChain, SMLDChain

KINDS = ["eps", "x0", "v", "score", "flow"]


class Recorder(nn.Module):
    """A pointwise map of x and time that keeps what it was last given and counts its calls."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.calls = 0

    def forward(self, x, time):
        self.calls += 1
        self.x, self.time = x, time
        return self.scale * torch.tanh(x) + (0.01 * time).sin().reshape(-1, *[1] * (x.ndim - 1))


TIMES = torch.tensor([0.001, 0.25, 0.5, 0.999], dtype=torch.float64)      # all within the range of every SDE


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


# What the network is told of time


@pytest.mark.parametrize("word", ["999t", "sigma", "log_sigma", "half_log_snr", "c_noise"])
def test_the_network_is_told_of_time_in_the_words_asked_for(sde, word):
    network = Recorder()
    Denoiser(network, sde, time_input=word).eps(normal(4, 2), TIMES)
    expected = {"999t": 999 * TIMES, "sigma": sde.sigma(TIMES), "log_sigma": sde.sigma(TIMES).log(),
                "half_log_snr": sde.alpha(TIMES).log() - sde.sigma(TIMES).log(),
                "c_noise": (sde.sigma(TIMES) / sde.alpha(TIMES)).log() / 4}[word]
    assert network.time.shape == (4,) and network.time.dtype == torch.float32
    torch.testing.assert_close(network.time.double(), expected, rtol=1e-6, atol=1e-6)


def test_log_sigma_is_rounded_once_alone_for_times_in_float32(sde):
    network, t = Recorder(), torch.linspace(0.001, sde.t_max, 1000)
    Denoiser(network, sde, time_input="log_sigma").eps(normal(1000, 2), t)
    assert torch.equal(network.time, sde.sigma(t.double()).log().float())


@pytest.mark.parametrize("chain", [DDPMChain.from_schedule("cosine", 40), SMLDChain.from_schedule(40)])
def test_a_network_of_a_chain_is_told_the_index(chain):
    network = Recorder()
    Denoiser(network, chain.to_sde(), time_input="index").eps(normal(40, 2), chain.times)
    torch.testing.assert_close(network.time, torch.arange(40.0), rtol=0, atol=1e-4)


def test_the_index_needs_the_sde_of_a_chain():
    with pytest.raises(ArgumentError, match=r"'index' needs the SDE of a chain, got VPSDE\(") as caught:
        Denoiser(Recorder(), VPSDE(), time_input="index")
    assert caught.value.arguments == ("time_input",)


@pytest.mark.parametrize("word", TIME_INPUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_time_that_the_network_is_told_does_not_depend_on_the_dtype_of_x(word, dtype):
    network, chain = Recorder(), DDPMChain.from_schedule("cosine", 40).to_sde()
    denoiser = Denoiser(network, chain, time_input=word)
    for t in (952.546 / 999, torch.tensor(0.9535).double(), torch.tensor([0.1, 0.9535]).double()):
        times = []
        for x in (normal(2, 3), normal(2, 3).to(dtype)):
            denoiser(x, t)
            times.append(network.time)
        assert times[0].dtype == times[1].dtype == torch.float32 and torch.equal(*times)
        exact = TIME_INPUTS[word](chain, torch.as_tensor(t, dtype=torch.float64)).expand(2).float()
        assert torch.equal(times[1], exact)


def test_a_bf16_state_at_a_scalar_time_is_told_952_546_and_not_952():
    network = Recorder()
    Denoiser(network, VPSDE()).eps(normal(2, 3).bfloat16(), 952.546 / 999)
    torch.testing.assert_close(network.time, torch.full((2,), 952.546), rtol=1e-7, atol=0)


def test_times_in_float32_are_told_as_if_in_float64():
    network, t = Recorder(), torch.tensor([1e-4, 0.3])
    Denoiser(network, VPSDE(), time_input="log_sigma").eps(normal(2, 3), t)
    assert torch.equal(network.time, VPSDE().sigma(t.double()).log().float())


@pytest.mark.parametrize("t", [-0.1, 1.5, float("nan"), torch.tensor([0.5, 1.1])], ids=str)
def test_times_that_the_sde_has_not_are_refused_by_every_model(t):
    mixture = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
    for model in (Denoiser(Recorder(), VPSDE()), mixture, mixture.given()):
        for call in (model.score, model.x0, model.posterior):
            with pytest.raises(ArgumentError, match=r"t must lie in \[0, 1\]") as caught:
                call(normal(2, 2), t)
            assert caught.value.arguments == ("t",)


# Where a prediction does not exist


class Ends(SDE):
    """alpha = 1 - t and sigma = t, with both ends."""

    def alpha(self, t):
        return 1 - torch.as_tensor(t, dtype=torch.float64)

    def sigma(self, t):
        return torch.as_tensor(t, dtype=torch.float64)


@pytest.mark.parametrize(("parametrization", "kind", "t", "end"), [
    ("eps", "score", 0.0, "sigma"), ("v", "score", [0.5, 0.0], "sigma"), ("flow", "score", 0.0, "sigma"),
    ("edm", "score", 0.0, "sigma"), ("x0", "eps", 0.0, "sigma"), ("x0", "v", 0.0, "sigma"), ("x0", "flow", 0.0, "sigma"),
    ("eps", "x0", 1.0, "alpha"), ("score", "flow", [1.0, 0.2], "alpha"),
], ids=str)
def test_a_prediction_that_does_not_exist_at_a_time_is_refused_before_the_network_is_called(parametrization, kind, t, end):
    denoiser = Denoiser(Recorder(), Ends(), parametrization, input_std=0.5)
    with pytest.raises(ArgumentError, match=f"no {kind} of a network that predicts {parametrization} at t = .*{end} = 0"):
        denoiser.predict(normal(2, 2), torch.tensor(t), kind)
    assert denoiser.network.calls == 0


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow"])
def test_v_and_flow_networks_predict_at_both_ends(kind):
    for parametrization in ("v", "flow"):
        denoiser = Denoiser(Recorder(), Ends(), parametrization)
        for t in (0.0, 1.0, torch.tensor([0.0, 1.0])):
            assert bool(denoiser.predict(normal(2, 2), t, kind).isfinite().all())


def test_a_mixture_has_a_score_without_noise_unless_it_has_a_point_mass():
    means, x = torch.zeros(2, 2), torch.ones(1, 2)
    assert bool(GaussianMixture(VPSDE(), means, torch.tensor([1.0, 0.1])).score(x, 0.0).isfinite().all())
    mixture = GaussianMixture(VPSDE(), means, torch.tensor([1.0, 0.0]))
    for call in (mixture.score, mixture.log_prob, mixture.posterior):
        with pytest.raises(ArgumentError, match="no density and no score at t = 0: sigma = 0 there") as caught:
            call(x, 0.0)
        assert caught.value.arguments == ("t",)


# Scaling of the input


@pytest.mark.parametrize("std", [0.5, 1.0, 3.0])
def test_input_std_gives_the_network_unit_variance(sde, std):
    network = Recorder()
    x = (sde.alpha(TIMES).square() * std**2 + sde.sigma(TIMES).square()).sqrt()      # one standard deviation
    x = torch.stack([x, -2 * x], 1)
    for t in (TIMES, *TIMES):
        Denoiser(network.double(), sde, input_std=std).eps(x, t)
        times = t.expand(4)
        own = x / (sde.alpha(times).square() * std**2 + sde.sigma(times).square()).sqrt()[:, None]
        torch.testing.assert_close(network.x, own, rtol=1e-12, atol=0)
    Denoiser(network, sde, input_std=std).eps(x, TIMES)
    expected = torch.tensor([[1.0, -2.0]], dtype=torch.float64).expand(4, 2)
    torch.testing.assert_close(network.x, expected, rtol=1e-12, atol=0)


def test_without_input_std_the_network_sees_x_itself(sde):
    network, x = Recorder(), normal(4, 2)
    Denoiser(network, sde).eps(x, TIMES)
    assert torch.equal(network.x, x)


def test_the_scaling_of_the_input_leaves_the_meaning_of_the_output_alone():
    """x_0 = x - sigma F uses x as it came."""
    network, sde, x = Recorder().double(), VESDE(), normal(4, 2, dtype=torch.float64)
    data = Denoiser(network, sde, "eps", input_std=0.5).x0(x, TIMES)
    output = Denoiser(network, sde, "eps", input_std=0.5)(x, TIMES)
    torch.testing.assert_close(data, x - sde.sigma(TIMES)[:, None] * output, rtol=1e-12, atol=1e-12)


# Shapes, dtypes, cost


@pytest.mark.parametrize("event", [(), (2,), (3, 4, 4)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_scalar_time_and_a_vector_of_it_agree_for_every_event(sde, kind, event):
    for parametrization in PARAMETRIZATIONS:
        denoiser = Denoiser(Recorder(), sde, parametrization, "log_sigma", input_std=0.7)
        x = normal(3, *event)
        vector = denoiser.predict(x, torch.full((3,), 0.4, dtype=torch.float64), kind)
        assert vector.shape == x.shape
        for scalar in (0.4, torch.tensor(0.4, dtype=torch.float64)):
            torch.testing.assert_close(denoiser.predict(x, scalar, kind), vector, rtol=1e-6, atol=1e-6)


def test_a_time_per_sample_gives_what_each_time_gives_alone(sde):
    denoiser, x = Denoiser(Recorder(), sde, "v"), normal(4, 2)
    together = denoiser.x0(x, TIMES)
    for i, t in enumerate(TIMES):
        torch.testing.assert_close(denoiser.x0(x[i:i + 1], t), together[i:i + 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_predictions_have_the_dtype_of_x_whatever_the_network_computes_in(kind, dtype):
    for own in (torch.float32, torch.float64):
        network = Recorder().to(own)
        for t in (0.3, TIMES, TIMES.float()):
            prediction = Denoiser(network, VPSDE(), "v").predict(normal(4, 2, dtype=dtype), t, kind)
            assert prediction.dtype == dtype and network.x.dtype == own


def test_a_prediction_costs_one_call_of_the_network(sde):
    for parametrization in PARAMETRIZATIONS:
        denoiser = Denoiser(Recorder(), sde, parametrization, input_std=0.7)
        for calls, kind in enumerate(KINDS, 1):
            getattr(denoiser, kind)(normal(4, 2), TIMES)
            assert denoiser.network.calls == calls == calls * denoiser.evaluations
        calls = denoiser.network.calls
        denoiser.posterior(normal(4, 2), TIMES)
        assert denoiser.network.calls == calls + 1


@pytest.mark.machine
def test_autocast_is_the_arithmetic_of_the_network_alone():
    class Linear(nn.Linear):
        def forward(self, x, time):
            self.seen = super().forward(x)
            return self.seen

    denoiser = Denoiser(Linear(2, 2), VPSDE())
    exact = denoiser.eps(normal(4, 2), 0.5)
    assert denoiser.network.seen.dtype == torch.float32
    denoiser.autocast = torch.bfloat16
    rough = denoiser.eps(normal(4, 2), 0.5)
    assert denoiser.network.seen.dtype == torch.bfloat16 and rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.02)


def test_another_network_is_seen_in_the_same_way():
    sde = DDPMChain.from_schedule("linear", 50).to_sde()
    first, second = Recorder(), Recorder()
    second.scale.data.fill_(2.0)
    x = normal(4, 2)
    for parametrization in PARAMETRIZATIONS:
        view = Denoiser(first, sde, parametrization, "index", input_std=0.5).with_network(second)
        own = Denoiser(second, sde, parametrization, "index", input_std=0.5)
        assert torch.equal(view.x0(x, TIMES), own.x0(x, TIMES))
    assert view.network is second and first.calls == 0


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_restores_the_mode_also_after_an_error(training):
    model = nn.Sequential(nn.Dropout()).train(training)
    with pytest.raises(KeyError), evaluation_mode(model):
        assert not model.training and not model[0].training
        raise KeyError
    assert model.training == model[0].training == training


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_a_denoiser_pickles_and_is_saved_whole(sde, parametrization, tmp_path):
    denoiser = Denoiser(MLP((2,), 8, 1), sde, parametrization, "log_sigma", input_std=0.5)
    nn.init.normal_(denoiser.network.last.weight)
    torch.save(denoiser, tmp_path / "denoiser.pt")
    for other in (pickle.loads(pickle.dumps(denoiser)), torch.load(tmp_path / "denoiser.pt", weights_only=False),
                  copy.deepcopy(denoiser)):
        for kind in KINDS:
            assert torch.equal(other.predict(normal(4, 2), TIMES, kind), denoiser.predict(normal(4, 2), TIMES, kind))
        assert repr(other.sde) == repr(sde) and other.parametrization == denoiser.parametrization


# Bad input


def test_an_unknown_parametrization_lists_those_that_exist():
    with pytest.raises(ArgumentError, match="'noise'; choose from eps, x0, v, score, flow, edm$") as caught:
        Denoiser(Recorder(), VPSDE(), "noise")
    assert caught.value.arguments == ("parametrization",)


def test_an_unknown_time_input_lists_those_that_exist():
    with pytest.raises(ArgumentError, match="unknown time_input 't'") as caught:
        Denoiser(Recorder(), VPSDE(), time_input="t")
    assert all(word in str(caught.value) for word in TIME_INPUTS) and caught.value.arguments == ("time_input",)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_an_input_std_that_is_not_positive_is_refused(std):
    with pytest.raises(ValueError, match=f"input_std must be positive, got {std}"):
        Denoiser(Recorder(), VPSDE(), input_std=std)


def test_an_unknown_kind_of_prediction_is_refused():
    with pytest.raises(ValueError, match="'noise'; choose from x0, eps, v, score, flow$"):
        Denoiser(Recorder(), VPSDE()).predict(normal(1, 2), 0.5, "noise")


# The gradient of a scalar


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_score_of_an_energy_has_no_curl_and_others_have(parametrization, sde):
    """The Jacobian of the score is symmetric to rounding."""
    network, t = MLP((3,), 16, 2).double(), 0.3
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(parameter.numel()))

    def asymmetry(energy):
        model = Denoiser(network, sde, parametrization, input_std=0.5, energy=energy)
        jacobian = torch.autograd.functional.jacobian(lambda x: model.score(x[None], t)[0], normal(3, dtype=torch.float64))
        return float((jacobian - jacobian.T).abs().max() / jacobian.abs().max())

    assert asymmetry(True) < 1e-12 < 1e-4 < asymmetry(False)


def test_the_output_of_an_energy_is_the_gradient_of_its_scalar_and_trains(sde):
    network = Recorder()
    model, x = Denoiser(network, sde, energy=True), normal(4, 2)
    h = x.clone().requires_grad_()
    wanted, = torch.autograd.grad((h * network(h, 999 * TIMES)).sum(), h)
    with torch.no_grad():
        assert not model.eps(x, TIMES).requires_grad
        torch.testing.assert_close(model.eps(x, TIMES), wanted)
    model.eps(x, TIMES).square().sum().backward()
    assert float(network.scale.grad) != 0
    assert model.with_network(network).energy
    with torch.inference_mode(), pytest.raises(ArgumentError, match="not inference_mode"):
        model.eps(x, 0.5)


def test_samplers_and_likelihoods_take_an_energy(sde):
    from scorefield.likelihood import log_prob
    from scorefield.samplers import make_sampler, prior_sample

    model = Denoiser(MLP((2,), 8, 1), sde, energy=True)
    x = make_sampler("auto", steps=4)(model, prior_sample(sde, (2,), range(3)), range(3)).x
    assert bool(x.isfinite().all())
    assert bool(log_prob(model, x, method="exponential", steps=8, divergence="exact").value.isfinite().all())
