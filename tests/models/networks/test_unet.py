"""DDPM's U-Net: its size, its start at zero, where it attends, and what its output may depend on."""

import math

import pytest
import torch
from torch import nn

from scorefield.models import UNet
from scorefield.models.layers import Downsample, SelfAttention, check_sizes, timestep_embedding
from scorefield.numerics.errors import ArgumentError

SMALL = {"image_size": 8, "channels": 2, "width": 16, "multipliers": (1, 2), "num_blocks": 1,
         "attention_resolutions": (4,)}


def randomised(network, seed=0):
    """The same network with weights that let everything through, the layers that start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return randomised(UNet(**SMALL))


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 2, 8, 8, generator=generator), torch.tensor([0.0, 10.0, 500.0, 999.0])


# The published network


def test_the_default_is_the_cifar10_network_of_35_746_307_parameters():
    with torch.device("meta"):
        network = UNet()
    assert sum(p.numel() for p in network.parameters()) == 35_746_307


@pytest.mark.parametrize("attention_resolutions", [(), (4,)])
def test_the_output_is_zero_at_initialisation(attention_resolutions, batch):
    output = UNet(**SMALL | {"attention_resolutions": attention_resolutions})(*batch)
    assert output.shape == (4, 2, 8, 8) and not output.any()


@pytest.mark.parametrize("attention_resolutions", [(), (16,), (32, 8), (4, 8, 16, 32), (64,)], ids=str)
def test_attention_sits_at_the_listed_resolutions_and_in_the_middle_only(attention_resolutions):
    network = UNet(image_size=32, width=8, multipliers=(1, 1, 2, 2), num_blocks=2,
                   attention_resolutions=attention_resolutions)
    sizes = []
    for module in network.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    network(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    levels = [32, 16, 8, 4]
    down = [s for s in levels if s in attention_resolutions for _ in range(2)]
    up = [s for s in reversed(levels) if s in attention_resolutions for _ in range(3)]
    assert sizes == [*down, 4, *up]


@pytest.mark.parametrize("head_dim", [None, 8, 4, 1])
def test_self_attention_is_softmax_of_scaled_products_added_to_its_input(head_dim):
    channels = 8
    layer = randomised(SelfAttention(channels, groups=2, head_dim=head_dim))
    x = torch.randn(2, channels, 3, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        pixels = layer.norm(x).reshape(2, channels, 9)
        weight, bias = layer.qkv.weight[:, :, 0, 0], layer.qkv.bias
        q, k, v = (weight @ pixels + bias[:, None]).split(channels, dim=1)
        d = head_dim or channels
        attended = torch.cat([
            torch.einsum("bqk,bck->bcq", torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / d**0.5, 2), v)
            for q, k, v in zip(q.split(d, 1), k.split(d, 1), v.split(d, 1), strict=True)], dim=1)
        expected = x + (layer.out.weight[:, :, 0, 0] @ attended + layer.out.bias[:, None]).reshape(x.shape)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_group_norm_has_32_groups_or_a_quarter_of_the_width():
    for width, groups in ((4, 1), (32, 8), (128, 32), (160, 32)):
        with torch.device("meta"):
            network = UNet(image_size=8, width=width, multipliers=(1, 2))
        norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
        assert {norm.num_groups for norm in norms} == {groups}
        assert {norm.eps for norm in norms} == {1e-6}


def test_groups_and_eps_of_every_norm_can_be_set():
    network = UNet(**SMALL, groups=8, norm_eps=1e-3)
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(8, 1e-3)}


@pytest.mark.parametrize(("padding", "whole"), [(0, (0, 1)), (1, (1, 2))])
def test_a_halved_picture_is_padded_below_and_to_the_right_or_on_all_sides(padding, whole):
    layer = Downsample(1, padding)
    with torch.no_grad():
        layer.conv.weight.fill_(1.0)
        layer.conv.bias.zero_()
        pixels = layer(torch.ones(1, 1, 6, 6))[0, 0]      # how many pixels each of the 3 x 3 windows sees
    assert pixels.shape == (3, 3)
    assert [i for i in range(3) if pixels[i, i] == 9] == list(whole)


def test_an_uncentred_network_sees_2_x_minus_1(network, batch):
    x, time = batch
    other = UNet(**SMALL, centred=False).eval()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other((x + 1) / 2, time), network(x, time), rtol=1e-5, atol=1e-5)


# What the output may depend on


def test_the_output_does_not_depend_on_the_other_samples_of_the_batch(network, batch):
    x, time = batch
    with torch.no_grad():
        together = network(x, time)
        alone = torch.cat([network(x[i:i + 1], time[i:i + 1]) for i in range(4)])
    assert float(together.abs().max()) > 0.01
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5 * float(together.abs().max()))


def test_the_output_depends_on_time_and_on_every_pixel(network, batch):
    x, time = batch
    x = x[:1].clone().requires_grad_()
    output = network(x, time[2:3])
    assert float((output - network(x, time[3:4])).detach().abs().max()) > 1e-4
    gradient = torch.autograd.grad(output[0, 0, 0, 0], x)[0]      # one corner sees all pixels through attention
    assert int((gradient == 0).sum()) == 0


def test_every_parameter_takes_part(batch):
    network = randomised(UNet(**SMALL))
    network(*batch).square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert idle == []


def test_channels_last_and_contiguous_agree(network, batch):
    x, time = batch
    with torch.no_grad():
        expected = network(x, time)
        other = randomised(UNet(**SMALL)).to(memory_format=torch.channels_last)
        output = other(x.contiguous(memory_format=torch.channels_last), time)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_and_not_in_evaluation(batch):
    network = randomised(UNet(**SMALL, dropout=0.5))
    with torch.no_grad():
        assert torch.equal(network(*batch), network(*batch))
        network.train()
        assert not torch.equal(network(*batch), network(*batch))
        network = randomised(UNet(**SMALL, dropout=0.0)).train()
        assert torch.equal(network(*batch), network(*batch))


@pytest.mark.parametrize("settings", [
    {"image_size": 7, "multipliers": (1,)}, {"image_size": 12, "multipliers": (2, 1, 3)}, {"image_size": 4, "width": 4},
    {"image_size": 8, "channels": 1, "num_blocks": 3, "multipliers": (1, 1)}], ids=str)
def test_any_size_that_halves_often_enough_will_do(settings):
    network = randomised(UNet(**{"width": 8, "num_blocks": 1, "multipliers": (1, 2)} | settings))
    x = torch.zeros(2, settings.get("channels", 3), settings["image_size"], settings["image_size"])
    assert network(x, torch.zeros(2)).shape == x.shape


@pytest.mark.parametrize(("settings", "match"), [
    ({"image_size": 20}, "4 levels.*divisible by 8, got 20"), ({"image_size": 9, "multipliers": (1, 2)}, "got 9"),
    ({"width": 0}, "multiple of 4"), ({"width": 30}, "multiple of 4.*got 30"), ({"width": -4}, "multiple of 4"),
    ({"width": 132}, "got 132"), ({"num_blocks": 0}, "1 <= num_blocks <= 1000"), ({"multipliers": ()}, "multipliers >= 1"),
    ({"multipliers": (1, 0)}, "multipliers >= 1"), ({"dropout": 1.0}, "dropout < 1"), ({"dropout": -0.1}, "dropout"),
    ({"freq_shift": 2}, "freq_shift is 0 or 1, got 2"), ({"downsample_padding": 2}, "downsample_padding is 0 or 1"),
    ({"attention_head_dim": 48}, "256 channels cannot have heads of 48"), ({"groups": 7}, "7 groups"),
], ids=str)
def test_sizes_that_do_not_fit_are_errors_that_name_the_argument(settings, match):
    with pytest.raises(ArgumentError, match=match) as caught:
        UNet(**settings)
    assert set(settings) & set(caught.value.arguments) and "--" not in str(caught.value)


@pytest.mark.parametrize(("name", "taken", "refused"), [
    ("image_size", (1, 2**16), (0, 2**16 + 1)), ("width", (4, 8), (0, 2, 6)), ("multipliers", ((1,), (7, 1)), ((), (0,))),
    ("num_blocks", (1, 1000), (0, 1001)), ("dropout", (0.0, 0.999), (-0.001, 1.0)), ("norm_eps", (1e-9, 0.999), (0.0, 1.0)),
])
def test_sizes_are_taken_up_to_their_limits_and_refused_beyond(name, taken, refused):
    sizes = {"image_size": 8, "width": 8, "multipliers": (1,), "num_blocks": 1, "dropout": 0.0, "norm_eps": 1e-6}
    for value in taken:
        check_sizes(**sizes | {name: value})
    for value in refused:
        with pytest.raises(ArgumentError, match="got"):
            check_sizes(**sizes | {name: value})


# The embedding of time


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("dim", [4, 32, 128])
def test_the_embedding_of_time_is_sines_then_cosines_of_geometric_frequencies(dim, shift):
    times = [0.0, 0.5, 1.0, 37.25, 999.0]
    embedding = timestep_embedding(torch.tensor(times), dim, shift)
    assert embedding.shape == (5, dim) and embedding.dtype == torch.float32
    half = dim // 2
    for row, time in zip(embedding.tolist(), times, strict=True):
        angles = [time * 10_000 ** (-i / (half - shift)) for i in range(half)]
        assert row[:half] == pytest.approx([math.sin(a) for a in angles], abs=2e-4)      # 999 in float32
        assert row[half:] == pytest.approx([math.cos(a) for a in angles], abs=2e-4)
