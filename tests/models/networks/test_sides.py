"""Pictures whose sides are not equal, and series: the same networks with other convolutions."""

import pytest
import torch
from helpers import randomised

from scorefield.models import NCSNpp, UNet
from scorefield.models.build import build_denoiser
from scorefield.models.layers import CONVOLUTIONS, SelfAttention, check_sizes, recompute_activations
from scorefield.models.networks.classifier import Classifier
from scorefield.numerics.errors import ArgumentError

SMALL = {"channels": 2, "width": 8, "multipliers": (1, 2, 1), "num_blocks": 1, "attention_resolutions": (8,), "dropout": 0.0}
TIME = torch.tensor([3.0, 700.0])


def flat(network, other):
    """`other`, of pictures, with the weights of `network`, of series, in the middle row of its kernels."""
    weights = {}
    for name, value in network.state_dict().items():
        target = other.state_dict()[name]
        if value.ndim == 3:
            weights[name] = torch.zeros_like(target)
            weights[name][:, :, target.shape[2] // 2] = value
        else:
            weights[name] = value
    other.load_state_dict(weights)
    return other.eval()


@pytest.mark.parametrize("settings", [{}, {"downsample_padding": 1}, {"scale_shift": True, "attention_head_dim": 4},
                                      {"classes": 3}, {"centred": False}], ids=str)
def test_a_unet_of_series_is_that_of_pictures_whose_rows_are_all_the_same(settings):
    one = randomised(UNet(image_size=(16,), **SMALL | settings)).double().eval()
    two = flat(one, UNet(image_size=(4, 16), **SMALL | settings).double())
    x = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(1)).double()
    told = [{"label": torch.tensor([0, 2])}] if "classes" in settings else []
    rows = two(x[:, :, None].expand(2, 2, 4, 16), TIME, *told)
    torch.testing.assert_close(rows, one(x, TIME, *told)[:, :, None].expand_as(rows), rtol=1e-9, atol=1e-10)


def test_a_classifier_of_series_is_that_of_pictures_whose_rows_are_all_the_same():
    one = randomised(Classifier(image_size=(16,), classes=3, **SMALL)).double().eval()
    two = flat(one, Classifier(image_size=(4, 16), classes=3, **SMALL).double())
    x = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(two(x[:, :, None].expand(2, 2, 4, 16), TIME), one(x, TIME), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("network, settings", [
    (UNet, {"downsample_padding": 1}), (NCSNpp, {"fir": True, "progressive_input": "residual"}),
    (NCSNpp, {"fir": True, "progressive_input": "input_skip", "progressive": "output_skip"}),
    (NCSNpp, {"block": "ddpm"})], ids=str)
def test_pictures_of_unequal_sides_and_transposed_ones_are_treated_alike(network, settings):
    """The network with transposed kernels maps transposed pictures to transposed outputs."""
    wide = randomised(network(image_size=(8, 16), **SMALL | settings)).double().eval()
    high = network(image_size=(16, 8), **SMALL | settings).double().eval()
    high.load_state_dict({name: value.mT if value.ndim == 4 else value for name, value in wide.state_dict().items()})
    x = torch.randn(2, 2, 8, 16, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(high(x.mT, TIME), wide(x, TIME).mT, rtol=1e-9, atol=1e-10)


def test_attention_goes_by_the_longer_side():
    def attended(sides, resolutions):
        network = UNet(image_size=sides, **SMALL | {"attention_resolutions": resolutions})
        return [isinstance(a, SelfAttention) for level in network.down for a in level.attentions]

    assert attended((4, 16), (16, 4)) == attended((16, 4), (16, 4)) == attended((16,), (16, 4)) == [True, False, True]
    assert attended(16, (16, 4)) == [True, False, True]


def test_sides_that_do_not_halve_are_refused_with_those_that_do():
    for sides, parts in (((8, 18), ["8 x 18", "16 or 20", "at most 2 levels"]), ((30,), ["got 30", "28 or 32", "2 levels"]),
                         ((2, 8), ["instead of 2 it takes 4", "2 levels"]),
                         ((7, 8), ["got 7 x 8", "4 or 8", "at most 1 level,"])):
        with pytest.raises(ArgumentError) as caught:
            check_sizes(sides, 8, (1, 2, 1), 1, 0.0, 1e-6, (1, 2))
        assert all(part in str(caught.value) for part in parts) and "multipliers" in caught.value.arguments
        assert ("image_size" in caught.value.arguments) == (len(sides) == 2)
        best = (1, 2, 1)[:min(s & -s for s in sides).bit_length()]
        check_sizes(sides, 8, best, 1, 0.0, 1e-6, (1, 2))


@pytest.mark.parametrize("network, shape, advice", [
    ("unet", (5,), "mlp"), ("unet", (3, 4, 4, 4), "mlp"), ("ncsnpp", (5,), "mlp"), ("ncsnpp", (2, 16), "unet")])
def test_a_network_refuses_shapes_that_it_cannot_take(network, shape, advice):
    with pytest.raises(ArgumentError, match=f"the data are .*; choose another network, such as {advice}"):
        build_denoiser({"sde": {"name": "vp"}, "model": {"network": network}}, shape)


@pytest.mark.parametrize("shape", [(1, 16), (2, 8, 16), (2, 16, 8)])
def test_one_word_builds_the_network_of_series_and_of_pictures(shape):
    settings = {name: value for name, value in SMALL.items() if name != "channels"}
    model = build_denoiser({"sde": {"name": "vp"}, "model": {"network": "unet", **settings}}, shape)
    convolutions = {type(module) for module in model.modules() if isinstance(module, tuple(CONVOLUTIONS.values()))}
    assert convolutions == {CONVOLUTIONS[len(shape) - 1]}
    x = torch.zeros(2, *shape)
    assert model.eps(x, 0.5).shape == x.shape
    recompute_activations(model.network)
    model.train().network(x, TIME).sum().backward()
