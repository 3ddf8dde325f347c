"""Networks that take low_res and its noise."""

import pytest
import torch

from scorefield.models import MLP, Denoiser, DiT, NCSNpp, UNet
from scorefield.models.conditions import blank
from scorefield.models.layers import timestep_embedding
from scorefield.models.networks.low_res import resized
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE
from tests.helpers import randomised

SMALL = {"image_size": 8, "channels": 1, "width": 8, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": ()}
KINDS = {"unet": UNet, "ncsnpp": NCSNpp, "mlp": MLP,
         "dit": lambda multipliers, num_blocks, attention_resolutions, **settings: DiT(layers=2, heads=2, **settings)}


def made(kind, **settings):
    return randomised(KINDS[kind](**sizes(kind), **settings)).eval()


def sizes(kind):
    return {"shape": (1, 8, 8), "width": 16, "layers": 1} if kind == "mlp" else SMALL


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_depends_on_low_res_and_on_its_noise(kind):
    network = made(kind, low_res=2, low_res_noise=True)
    assert network.conditions == ("low_res", "low_res_noise")
    x, time, low_res = torch.randn(3, 1, 8, 8), torch.full((3,), 500.0), torch.randn(3, 2, 4, 4)
    clean = network(x, time, {"low_res": low_res, "low_res_noise": torch.zeros(3)})
    for other in ({"low_res": -low_res, "low_res_noise": torch.zeros(3)},
                  {"low_res": low_res, "low_res_noise": torch.full((3,), 0.3)}):
        assert not torch.allclose(network(x, time, other), clean, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_low_res_of_any_size_is_seen_at_the_size_of_x(kind):
    network = made(kind, low_res=1)
    x, time, small = torch.randn(2, 1, 8, 8), torch.full((2,), 500.0), torch.randn(2, 1, 4, 4)
    large = torch.nn.functional.interpolate(small, size=(8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(network(x, time, {"low_res": small}), network(x, time, {"low_res": large}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_without_low_res_has_the_weights_that_it_had_without_that_argument(kind):
    torch.manual_seed(0)
    plain = KINDS[kind](**sizes(kind))
    torch.manual_seed(0)
    told = KINDS[kind](**sizes(kind), low_res=0, low_res_noise=False)
    for (name, one), other in zip(plain.state_dict().items(), told.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_series_may_have_a_coarse_one():
    network = randomised(UNet(image_size=(16,), channels=1, width=8, multipliers=(1, 2), num_blocks=1,
                              attention_resolutions=(), low_res=1)).eval()
    x, time, coarse = torch.randn(2, 1, 16), torch.full((2,), 500.0), torch.randn(2, 1, 4)
    assert network(x, time, {"low_res": coarse}).shape == x.shape
    assert resized(coarse, (16,)).shape == (2, 1, 16)


def test_points_may_have_numbers_that_are_known_of_them():
    network = randomised(MLP((3,), width=16, layers=1, low_res=2))
    x, time, known = torch.randn(4, 3), torch.full((4,), 500.0), torch.randn(4, 2)
    h = network.first(torch.cat([x, known], 1))
    h = h + network.outer[0](torch.nn.functional.silu(network.inner[0](network.norms[0](h)) + network.time(
        timestep_embedding(time, 16))))
    torch.testing.assert_close(network(x, time, {"low_res": known}), network.last(torch.nn.functional.silu(h)))
    with pytest.raises(ArgumentError, match=r"low_res must be \(batch, 2\), got shape \(4, 3\)"):
        network(x, time, {"low_res": x})


def test_a_denoiser_binds_one_low_res_for_all_samples_and_takes_no_noise_for_granted():
    model = Denoiser(made("unet", low_res=1, low_res_noise=True), VPSDE())
    x, low_res = torch.randn(3, 1, 8, 8), torch.randn(1, 1, 4, 4)
    one = model.given(low_res=low_res).eps(x, 0.5)
    each = model.given(low_res=low_res.expand(3, 1, 4, 4), low_res_noise=torch.zeros(3)).eps(x, 0.5)
    assert torch.equal(one, each)
    assert not torch.allclose(model.given(low_res=low_res, low_res_noise=0.3).eps(x, 0.5), one, atol=1e-3)


def test_what_is_missing_or_does_not_fit_is_refused():
    model = Denoiser(made("unet", low_res=1), VPSDE())
    x = torch.randn(3, 1, 8, 8)
    with pytest.raises(ArgumentError, match="needs a low_res"):
        model.eps(x, 0.5)
    with pytest.raises(ArgumentError, match=r"low_res must be \(batch, 1, side, side\), got shape \(3, 2, 4, 4\)"):
        model.given(low_res=torch.randn(3, 2, 4, 4)).eps(x, 0.5)
    with pytest.raises(ArgumentError, match="for a batch of 2, x is a batch of 3"):
        model.given(low_res=torch.randn(2, 1, 4, 4)).eps(x, 0.5)
    with pytest.raises(ArgumentError, match="cannot be given 'low_res_noise'"):
        model.given(low_res_noise=0.1)
    with pytest.raises(ArgumentError, match="give low_res its number of channels"):
        UNet(**SMALL, low_res_noise=True)
    with pytest.raises(ArgumentError, match="needs the condition low_res"):
        model.network(x, torch.zeros(3), {"label": torch.zeros(3)})


def test_blank_conditions_fit_the_network():
    network = made("unet", classes=3, low_res=2, low_res_noise=True)
    told = blank(network, 4, (1, 8, 8))
    assert set(told) == {"label", "low_res", "low_res_noise"}
    assert network(torch.zeros(4, 1, 8, 8), torch.zeros(4), told).shape == (4, 1, 8, 8)
