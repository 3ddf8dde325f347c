import math

import pytest
import torch

from scorefield.data import DequantizedPixels, Pixels, Points, make_codec, transforms
from scorefield.likelihood import bits_per_dim

ENDS = [(-1.0, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize("low, high", ENDS)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_pixels_are_the_functions_of_transforms_and_come_back(levels, low, high):
    k = torch.arange(levels, dtype=torch.uint8).expand(3, levels)
    u = torch.rand(k.shape, generator=torch.Generator().manual_seed(0))
    plain, noisy = make_codec(levels, low, high), make_codec(levels, low, high, dequantize=True)
    assert torch.equal(plain.encode(k), transforms.to_unit(k, levels, low, high))
    assert torch.equal(noisy.encode(k, u), transforms.dequantize(k, u, levels, low, high))
    assert torch.equal(plain.decode(plain.encode(k)), k) and torch.equal(noisy.decode(noisy.encode(k, u)), k)


@pytest.mark.parametrize("low, high", ENDS)
def test_the_offset_of_pixels_is_that_of_bits_per_dim(low, high):
    for codec in (Pixels(256, low, high), DequantizedPixels(256, low, high)):
        assert codec.offset == float(bits_per_dim(torch.zeros(()).double(), 12, 256, low, high))
    assert Points().offset == 0


def test_only_dequantised_pixels_want_noise_and_only_plain_ones_are_discrete():
    plain, noisy, points = Pixels(17), DequantizedPixels(17), Points()
    assert [c.noisy for c in (plain, noisy, points)] == [False, True, False]
    assert [c.discrete for c in (plain, noisy, points)] == [True, False, False]
    assert plain.dense == noisy and noisy.dense is noisy and points.dense is points
    with pytest.raises(ValueError, match="uniform noise u"):
        noisy.encode(torch.zeros(1, 2, dtype=torch.uint8))


def test_points_are_left_alone_unless_they_are_standardised():
    y = torch.randn(5, 2)
    assert Points().encode(y) is y and Points().decode(y) is y


def test_standardised_points_have_mean_0_and_deviation_1_and_come_back():
    y = torch.randn(400, 2, 3, generator=torch.Generator().manual_seed(0)).double() * 3 + 5
    codec = Points.standardising(y)
    x = codec.encode(y)
    torch.testing.assert_close(x.mean(0), torch.zeros(2, 3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(x.std(0), torch.ones(2, 3).double())
    torch.testing.assert_close(codec.decode(x), y)
    assert codec == Points(codec.mean, codec.std) and hash(codec)


def test_the_offset_of_standardised_points_makes_bits_those_of_the_data():
    """-log2 p(y)/D of N(mean, std^2), from the density of the standard normal that the model sees."""
    mean, std = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 8.0]).double()
    y = mean + std * torch.randn(10, 2, generator=torch.Generator().manual_seed(0)).double()
    codec = Points(tuple(mean.tolist()), tuple(std.tolist()))
    seen = torch.distributions.Normal(0, 1).log_prob(codec.encode(y)).sum(1)
    data = torch.distributions.Normal(mean, std).log_prob(y).sum(1)
    torch.testing.assert_close(-seen / (2 * math.log(2)) + codec.offset, -data / (2 * math.log(2)))


def test_data_that_cannot_be_encoded_are_named():
    with pytest.raises(ValueError, match=r"noise: example 7 holds 17; its levels are 0 .. 16"):
        Pixels(17).check(torch.tensor([[3], [17]]), "noise", first=6)
    with pytest.raises(ValueError, match=r"noise: example 0 holds nan; examples must be finite"):
        Points().check(torch.tensor([[math.nan]]), "noise")


@pytest.mark.parametrize("make, argument", [
    (lambda: Pixels(1), "levels"), (lambda: Pixels(256, 1.0, -1.0), "low"), (lambda: Points(0.0, 0.0), "std"),
    (lambda: make_codec(None, dequantize=True), "data.dequantize")])
def test_settings_without_sense_name_their_argument(make, argument):
    with pytest.raises(ValueError) as caught:
        make()
    assert caught.value.arguments[0] == argument
