"""The networks of Score SDE: their published sizes, every setting of theirs, and FIR resampling against dense matrices."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scorefield.models.layers import ResidualBlock, SelfAttention
from scorefield.models.networks.ncsnpp import ConvDown, ConvUp, FIRDown, FIRUp, NCSNpp
from scorefield.numerics.errors import ArgumentError

SMALL = {"image_size": 8, "channels": 2, "width": 8, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)}
DDPM = {"block": "ddpm", "num_blocks": 2, "skip_rescale": False}
PLUS = {"fir": True, "progressive_input": "residual"}
LARGE = {"image_size": 256, "multipliers": (1, 1, 2, 2, 2, 2, 2), "num_blocks": 2, "embedding": "fourier", "fir": True,
         "progressive_input": "input_skip", "progressive": "output_skip"}


def randomised(network, seed=0):
    """The same network with weights that let everything through, the layers that start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return network.eval()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 2, 8, 8, generator=generator), torch.tensor([0.1, 1.7, 3.0])


# The published networks


@pytest.mark.parametrize(("settings", "parameters"), [
    (DDPM, 35_218_947), ({}, 61_804_419), ({"num_blocks": 8}, 106_632_579), (PLUS, 62_693_251),
    (PLUS | {"embedding": "fourier"}, 62_758_915), (PLUS | {"embedding": "fourier", "num_blocks": 8}, 107_587_075),
    (PLUS | {"image_size": 64}, 62_693_251), (LARGE, 65_574_549),
], ids=["DDPM", "DDPM++", "DDPM++ deep", "NCSN++ VP", "NCSN++ VE", "NCSN++ VE deep", "CelebA-64", "LSUN-256"])
def test_published_networks_have_their_published_number_of_parameters(settings, parameters):
    with torch.device("meta"):
        network = NCSNpp(**settings)
    assert sum(p.numel() for p in network.parameters()) == parameters
    fixed = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    assert fixed == (128 if settings.get("embedding") == "fourier" else 0)


def test_it_attends_after_every_block_on_the_way_down_and_once_a_level_on_the_way_up():
    network = NCSNpp(**SMALL | {"num_blocks": 3})
    sizes = []
    for module in network.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    network(torch.zeros(1, 2, 8, 8), torch.zeros(1))
    assert sizes == [4, 4, 4] + [4] + [4]


# Every setting


FLAGS = [{}, DDPM, DDPM | {"fir": True}, PLUS, PLUS | {"embedding": "fourier"}, {"progressive": "output_skip"},
         DDPM | {"progressive_input": "residual"}, {"progressive_input": "input_skip", "combine": "cat"},
         {"progressive_input": "input_skip", "combine": "sum", "progressive": "output_skip", "fir": True},
         DDPM | {"progressive_input": "input_skip", "combine": "cat", "progressive": "output_skip"},
         {"skip_rescale": False}, {"centred": False}, {"last_label": 9}, {"groups": 2}, {"multipliers": (1,)},
         {"attention_resolutions": ()}, {"multipliers": (2, 1), "num_blocks": 2}]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_a_checkpoint_holds_the_weights_and_no_fixed_filters(flags):
    network = NCSNpp(**SMALL | flags)
    assert {*network.state_dict()} == {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_every_setting_gives_a_picture_of_the_inputs_shape_and_a_gradient_to_every_weight(flags, batch):
    network = randomised(NCSNpp(**SMALL | flags)).train()
    output = network(*batch)
    assert output.shape == batch[0].shape and bool(output.isfinite().all())
    output.square().sum().backward()
    idle = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not bool(p.grad.any()))]
    assert idle == []


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_the_output_is_zero_at_initialisation(flags, batch):
    assert not NCSNpp(**SMALL | flags)(*batch).any()


@pytest.mark.parametrize("flags", [DDPM, PLUS, LARGE | SMALL], ids=["DDPM", "NCSN++", "256"])
def test_channels_last_and_contiguous_agree(flags, batch):
    x, time = batch
    with torch.no_grad():
        expected = randomised(NCSNpp(**SMALL | flags))(x, time)
        other = randomised(NCSNpp(**SMALL | flags)).to(memory_format=torch.channels_last)
        output = other(x.contiguous(memory_format=torch.channels_last), time)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_network_for_data_in_the_unit_interval_sees_them_centred(batch):
    x, time = batch
    with torch.no_grad():
        inner = randomised(NCSNpp(**SMALL | PLUS))(2 * x - 1, time)
        outer = randomised(NCSNpp(**SMALL | PLUS | {"centred": False}))(x, time)
    assert torch.equal(inner, outer)


def test_last_label_counts_time_down(batch):
    x, time = batch
    with torch.no_grad():
        up, down = randomised(NCSNpp(**SMALL)), randomised(NCSNpp(**SMALL, last_label=9))
        assert torch.equal(up(x, 9 - time), down(x, time))


def test_the_fourier_embedding_is_sines_then_cosines_of_fixed_random_frequencies():
    torch.manual_seed(0)
    network = NCSNpp(**SMALL | {"width": 256, "embedding": "fourier", "fourier_scale": 4.0})
    assert float(network.fourier.frequencies.std()) == pytest.approx(4.0, rel=0.2)
    network.time, seen = nn.Identity(), torch.tensor([0.25, -1.5])
    angles = 2 * math.pi * seen[:, None].double() * network.fourier.frequencies.detach().double()
    waves = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    torch.testing.assert_close(network.embed(seen), F.silu(waves), rtol=0, atol=1e-4)


@pytest.mark.machine
def test_fourier_frequencies_stay_float32_where_the_weights_are_held_in_bfloat16(batch):
    network = randomised(NCSNpp(**SMALL | PLUS | {"embedding": "fourier"}))
    before = network.fourier.frequencies.clone()
    x, time = batch
    with torch.no_grad():
        expected = network(x, time)
        network.to(torch.bfloat16)
        output = network(x.bfloat16(), time)
    assert torch.equal(network.fourier.frequencies, before) and network.conv_in.weight.dtype == torch.bfloat16
    assert next(network.parameters()).dtype == output.dtype == torch.bfloat16
    assert float((output - expected).abs().max() / expected.abs().max()) < 0.05


def test_skip_rescale_halves_the_variance_of_every_sum():
    blocks = [randomised(ResidualBlock(8, 8, 16, None, 0.0, scale)) for scale in (1.0, math.sqrt(0.5))]
    x, time = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(blocks[0](x, time) / math.sqrt(2), blocks[1](x, time))


@pytest.mark.parametrize(("settings", "match"), [
    ({"image_size": 20}, "divisible by 8, got 20"), ({"width": 30}, "multiple of 4"), ({"num_blocks": 0}, "num_blocks"),
    ({"multipliers": ()}, "multipliers >= 1"), ({"dropout": 1.0}, "dropout < 1"), ({"block": "resnet"}, "biggan, ddpm"),
    ({"embedding": "log"}, "positional, fourier"), ({"progressive": "residual"}, "none, output_skip"),
    ({"progressive_input": "output_skip"}, "input_skip, residual"), ({"combine": "mean"}, "sum, cat"),
    ({"width": 132}, "GroupNorm with 32 groups does not fit 132"),
], ids=str)
def test_settings_that_do_not_fit_are_errors_that_name_the_argument(settings, match):
    with pytest.raises(ArgumentError, match=match) as caught:
        NCSNpp(**settings)
    assert set(settings) & set(caught.value.arguments) and "--" not in str(caught.value)


# FIR resampling, against matrices written out


TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8


def filter_matrix(out, size, offset, stride=1):
    """Row o: the taps at columns stride o - offset + (0, 1, 2, 3), where those exist."""
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for o in range(out):
        for j in range(4):
            column = stride * o - offset + j
            if 0 <= column < size:
                matrix[o, column] += TAPS[j]
    return matrix


def zeros_between(x):
    """x at the even pixels of a picture of twice the size."""
    out = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    out[:, :, ::2, ::2] = x
    return out


@pytest.fixture
def picture():
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_fir_down_is_the_filter_then_every_second_pixel(picture):
    matrix = filter_matrix(3, 6, offset=1, stride=2)
    torch.testing.assert_close(FIRDown()(picture), matrix @ picture @ matrix.T)


def test_fir_up_is_zeros_in_between_then_four_times_the_filter(picture):
    matrix = filter_matrix(12, 12, offset=2)
    torch.testing.assert_close(FIRUp()(picture), 4 * matrix @ zeros_between(picture) @ matrix.T)


def test_fir_keeps_a_constant_inside_the_picture():
    ones = torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(FIRUp()(ones)[:, :, 1:-1, 1:-1], torch.ones(1, 1, 14, 14))
    torch.testing.assert_close(FIRDown()(ones)[:, :, 1:-1, 1:-1], torch.ones(1, 1, 2, 2))


def test_conv_down_with_fir_is_the_filter_then_a_strided_convolution(picture):
    layer = randomised(ConvDown(3, 4, fir=True)).double()
    matrix = filter_matrix(7, 6, offset=2)
    expected = F.conv2d(matrix @ picture @ matrix.T, layer.conv.weight, layer.conv.bias, stride=2)
    torch.testing.assert_close(layer(picture), expected)


def test_conv_up_with_fir_is_zeros_in_between_a_convolution_then_four_times_the_filter(picture):
    layer = randomised(ConvUp(3, 4, fir=True)).double()
    wide = F.pad(zeros_between(picture), (2, 1, 2, 1))      # the convolution's whole reach
    matrix = filter_matrix(12, 13, offset=1)
    expected = 4 * matrix @ F.conv2d(wide, layer.conv.weight) @ matrix.T + layer.conv.bias[:, None, None]
    torch.testing.assert_close(layer(picture), expected)
