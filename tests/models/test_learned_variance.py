"""A network that gives its variance: v = 1 and v = 0 are beta and beta-tilde to the bit, in sampling and in the bound."""

import pytest
import torch

from scorefield.guidance import classifier_free, classifier_guided, threshold
from scorefield.likelihood import chain_elbo
from scorefield.models import MLP, Denoiser, DiT, FittedVariance, Moments, UNet
from scorefield.models.build import build_denoiser
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.models.networks.outputs import doubled
from scorefield.models.score_model import Derived
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VPSDE, DDPMChain
from scorefield.sde_lib.transition import Transition, learned_between, reverse_variance
from tests.helpers import randomised

SHAPE, SEEDS = (1, 8, 8), range(4)


class Constant(torch.nn.Module):
    """A network of eps = x tanh(time), whose raw second output is one number."""

    def __init__(self, raw):
        super().__init__()
        self.raw = raw

    def forward(self, x, time):
        return torch.cat([x * torch.tanh(time / 1000)[:, None, None, None], torch.full_like(x, self.raw)], 1)


def constant(v, sde=None):
    return Denoiser(Constant(2 * v - 1), sde or VPSDE(), learned_variance=True)


@pytest.mark.parametrize("v, kind", [(1.0, "beta"), (0.0, "beta_tilde")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sde", [VPSDE(), DDPMChain.from_schedule("cosine", 400).to_sde()], ids=["vp", "chain"])
def test_v_of_1_and_0_sample_as_beta_and_beta_tilde_to_the_bit(v, kind, dtype, sde):
    x_T = prior_sample(sde, SHAPE, SEEDS).to(dtype)
    learned, fixed = (make_sampler("ancestral", steps=7, variance=variance)(constant(v, sde), x_T, SEEDS)
                      for variance in ("learned", kind))
    assert torch.equal(learned.x, fixed.x) and learned.nfe == fixed.nfe == 7


@pytest.mark.parametrize("v, kind", [(1.0, "beta"), (0.0, "beta_tilde")])
@pytest.mark.parametrize("levels", [None, 17])
@pytest.mark.parametrize("steps", [5, None])
def test_v_of_1_and_0_bound_as_beta_and_beta_tilde_to_the_bit(v, kind, levels, steps):
    model = constant(v, DDPMChain.from_schedule("cosine", 40).to_sde())
    x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    k = x if levels is None else (16 * x).round().long()
    learned, fixed = (chain_elbo(model, k, levels, steps=steps, variance=variance, seeds=SEEDS)
                      for variance in ("learned", kind))
    assert torch.equal(learned.value, fixed.value) and torch.equal(learned.per_step, fixed.per_step)


def test_the_log_variance_lies_between_those_of_the_strided_step():
    sde, times = VPSDE(), torch.tensor([0.9, 0.35, 0.1], dtype=torch.float64)
    step = Transition.along(sde, times)
    beta, tilde = (reverse_variance(kind, step)[0] for kind in ("beta", "beta_tilde"))
    v = torch.tensor([[-0.3, 0.0, 0.25, 0.5, 0.75, 1.0, 1.2]], dtype=torch.float64)
    torch.testing.assert_close(learned_between(v, tilde, beta).log(), v * beta.log() + (1 - v) * tilde.log(),
                               rtol=0, atol=1e-14)
    # one draw of the step, less that of v = 0, is the noise times the difference of the roots
    x = torch.zeros(1, 1, 1, 7).double()

    class Network(torch.nn.Module):
        def forward(self, x, time):
            return torch.cat([torch.zeros_like(x), (2 * v - 1).expand_as(x)], 1)

    first = make_sampler("ancestral", steps=2, grid=times.tolist(), variance="learned")
    model = Denoiser(Network(), sde, learned_variance=True)
    state = first(model, x, [0], trajectory=True).trajectory[1]
    noise = make_sampler("ancestral", steps=2, grid=times.tolist(), variance="beta")(model, x, [0], trajectory=True)
    z = noise.trajectory[1] / beta.sqrt()
    torch.testing.assert_close(state, z * learned_between(v, tilde, beta).sqrt(), rtol=1e-12, atol=1e-14)


def test_elements_of_a_bound_have_their_own_variances():
    """A bound in which half of the elements have v = 1 lies between the two, and is the sum of the halves' terms."""
    class Half(Constant):
        def forward(self, x, time):
            output = super().forward(x, time)
            output[:, 1:, :, 4:] = -output[:, 1:, :, 4:]
            return output

    sde = DDPMChain.from_schedule("cosine", 20).to_sde()
    x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    bounds = [chain_elbo(model, x, None, variance="learned", seeds=SEEDS).per_step
              for model in (constant(1.0, sde), constant(0.0, sde), Denoiser(Half(1.0), sde, learned_variance=True),
                            Denoiser(Half(-1.0), sde, learned_variance=True))]
    torch.testing.assert_close(bounds[0] + bounds[1], bounds[2] + bounds[3], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(bounds[2], bounds[3], rtol=1e-3)


@pytest.mark.parametrize("make, event", [
    (lambda: MLP((3,), 16, 1), (3,)), (lambda: UNet(8, 2, 8, (1, 2), 1, (), 0.0), (2, 8, 8)),
    (lambda: UNet((8,), 2, 8, (1, 2), 1, (), 0.0), (2, 8)), (lambda: NCSNpp(8, 2, 8, (1, 2), 1, (), 0.0), (2, 8, 8)),
    (lambda: NCSNpp(8, 3, 8, (1, 2), 1, (), 0.0, progressive="output_skip", fir=True), (3, 8, 8)),
    (lambda: DiT(8, 2, width=8, layers=1, heads=2), (2, 8, 8)),
], ids=["mlp", "unet", "unet1d", "ncsnpp", "ncsnpp_skip", "dit"])
def test_a_doubled_network_gives_what_it_gave_and_as_much_again(make, event):
    torch.manual_seed(0)
    network, x, time = randomised(make()), torch.randn(5, *event), torch.full((5,), 300.0)
    before, after = network(x, time), doubled(network)(x, time)
    assert after.shape == (5, 2 * event[0], *event[1:]) and not after[:, event[0]:].any()
    torch.testing.assert_close(after[:, :event[0]], before)


def test_a_config_makes_such_a_model_and_it_begins_half_way():
    config = {"sde": {"name": "vp"}, "model": {"network": "unet", "width": 8, "multipliers": (1, 2), "num_blocks": 1,
                                               "attention_resolutions": (), "learned_variance": True}}
    model = build_denoiser(config, (1, 8, 8)).eval()
    prediction, share = model.with_share(torch.randn(2, 1, 8, 8), 0.5, "x0")
    assert prediction.shape == share.shape == (2, 1, 8, 8) and (share == 0.5).all()
    assert model.with_network(model.network).learned_variance


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "score"])
def test_the_prediction_beside_the_share_is_the_models_to_the_bit(kind):
    torch.manual_seed(0)
    model = Denoiser(randomised(doubled(MLP((3,), 16, 1, classes=4))), VPSDE(), "v", learned_variance=True,
                     label_dropout=True).eval()
    x, t = torch.randn(6, 3), torch.linspace(0.1, 0.9, 6).double()
    for view in (model, model.given(label=2), model.given(label=2).given(label=None),
                 threshold(model.given(label=1)), classifier_free(model, 1.5, label=3, batched=False),
                 classifier_free(model, 1.5, interval=(0.2, 0.5), label=3, batched=False),
                 classifier_free(model, 1.0, label=3),
                 classifier_guided(model.given(label=1), lambda x, t: x @ torch.ones(3, 4), 2.0, label=1)):
        with torch.no_grad():
            prediction, share = view.with_share(x, t, kind)
            assert torch.equal(prediction, view.predict(x, t, kind)) and share.shape == x.shape
    labelled = model.with_share(x, t, kind, {"label": torch.full((6,), 3)})[1]
    assert torch.equal(classifier_free(model, 1.5, label=3).with_share(x, t, kind)[1], labelled)


def test_a_guided_mean_is_shifted_by_the_learned_variance_times_the_gradient():
    """v = 1 is mean_shift with beta to the bit (Dhariwal and Nichol 2021, algorithm 1)."""
    x_T = prior_sample(VPSDE(), SHAPE, SEEDS)
    guided = classifier_guided(constant(1.0), lambda x, t: x.flatten(1)[:, :3], 1.5, label=2)
    samples = [make_sampler("ancestral", steps=5, variance=variance, mean_shift=True)(guided, x_T, SEEDS)
               for variance in ("learned", "beta")]
    assert torch.equal(samples[0].x, samples[1].x) and samples[0].nfe == samples[1].nfe == 10


def test_a_step_to_the_data_draws_no_noise():
    class Free(VPSDE):
        t_min = 0.0

    x = torch.ones(1, *SHAPE).double()
    sampler = make_sampler("ancestral", steps=1, grid=[0.4, 0.0], variance="learned")
    for v in (0.0, 0.7, 1.0, 1.3):
        model = constant(v, Free())
        torch.testing.assert_close(sampler(model, x, [0]).x, model.x0(x, 0.4), rtol=1e-12, atol=1e-12)


def test_what_has_learned_no_variance_is_refused_in_one_line():
    model, x = Denoiser(MLP((2,), 8, 1), VPSDE()), torch.zeros(1, 2)
    fitted = FittedVariance(model, Moments(torch.tensor([0.0, 1.0]).double(), torch.ones(2, 2), torch.ones(2, 2), 1))
    for one in (model, fitted, threshold(model)):
        with pytest.raises(ArgumentError, match="needs a model that has learned one") as error:
            make_sampler("ancestral", steps=2, variance="learned")(one, x, [0])
        assert error.value.arguments == ("variance",) and "\n" not in str(error.value)
    with pytest.raises(ArgumentError, match="needs a model that has learned one"):
        chain_elbo(model, x, None, steps=3, variance="learned", seeds=[0])
    with pytest.raises(ArgumentError, match="unknown variance"):
        make_sampler("ddim", variance="learned")
    with pytest.raises(ArgumentError, match="energy"):
        Denoiser(MLP((2,), 8, 1), VPSDE(), energy=True, learned_variance=True)
    with pytest.raises(ValueError, match="twice its channels"):
        Denoiser(MLP((2,), 8, 1), VPSDE(), learned_variance=True).eps(x, 0.5)
    with pytest.raises(ArgumentError, match="nothing whose variance"):
        build_denoiser({"sde": {"name": "vp"}, "model": {"network": "classifier", "learned_variance": True}}, (1, 32, 32))

    class Shifted(Derived):
        def predict(self, x, t, kind):
            return self.model.predict(x, t, kind) + 1

    with pytest.raises(ArgumentError, match="Shifted does not pass on"):
        Shifted(constant(1.0)).with_share(torch.zeros(1, *SHAPE), 0.5, "eps")
