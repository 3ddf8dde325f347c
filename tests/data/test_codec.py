import json
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
    """Of each entry of the first axis: a column of a table, a channel of a series or of a picture."""
    scale, centre = torch.tensor([3.0, 0.1]), torch.tensor([5.0, -7.0])
    for shape in ((2,), (2, 3), (2, 3, 5)):
        y = torch.randn(400, *shape, generator=torch.Generator().manual_seed(0))
        y = y * scale.view(-1, *[1] * (len(shape) - 1)) + centre.view(-1, *[1] * (len(shape) - 1))
        codec = Points.standardising(y)
        x = codec.encode(y).transpose(0, 1).flatten(1).double()
        torch.testing.assert_close(x.mean(1), torch.zeros(2).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(x.square().mean(1), torch.ones(2).double(), rtol=1e-6, atol=0)
        torch.testing.assert_close(codec.decode(codec.encode(y)), y)
        assert codec == Points(codec.mean, codec.std) and hash(codec)


def test_moments_are_exact_in_float64_whatever_the_mean_and_the_size_of_the_numbers():
    """1, 2, ..., n have mean (n + 1)/2 and variance (n^2 - 1)/12; shifted by 1.7e9, and as large as floats go."""
    n = 2**20 + 3      # more than one part
    steps = torch.arange(1, n + 1).double()
    y = torch.stack([steps, 1.7e9 + steps / 4, steps * 1e302], 1)
    codec = Points.standardising(y)
    std = math.sqrt((n**2 - 1) / 12)
    assert codec.mean == pytest.approx(((n + 1) / 2, 1.7e9 + (n + 1) / 8, (n + 1) / 2 * 1e302), rel=1e-15)
    assert codec.std == pytest.approx((std, std / 4, std * 1e302), rel=1e-12)


def test_numbers_with_a_large_mean_keep_their_digits():
    """Seconds since 1970 that differ by fractions: float32 is 128 apart there."""
    y = 1.7e9 + torch.rand(100, 1, generator=torch.Generator().manual_seed(0)).double()
    codec = Points.standardising(y)
    x = codec.encode(y)
    assert x.dtype == torch.float32 and codec.dtype == torch.float64
    torch.testing.assert_close(codec.decode(x), y, rtol=0, atol=1e-6)
    assert Points.standardising(y - 1.7e9).dtype == torch.float32


def test_a_constant_column_is_refused_by_its_name():
    y = torch.tensor([[1.0, 4.0], [2.0, 4.0]])
    with pytest.raises(ValueError, match="column 'b' is 4 in all training examples"):
        Points.standardising(y, ("a", "b"))
    with pytest.raises(ValueError, match="channel 1 is 4 in all training examples"):
        Points.standardising(y[:, :, None].expand(2, 2, 7))


def test_a_standardisation_comes_back_from_json_to_the_last_bit():
    y = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).double() / 3
    for codec in (Points.standardising(y, ("a", "b")), Points(), Points(0.1, 0.3)):
        assert Points.from_stored(json.loads(json.dumps(codec.stored()))) == codec
    assert Points.from_stored(None) == Points()
    for damaged in ({"mean": 0.0, "std": -1.0}, {"mean": [0.0], "std": [1.0, 2.0]}, {"mean": 0.0}, {"mean": "x", "std": 1.0},
                    {"mean": [0.0], "std": [1.0], "columns": "a"}, {"mean": [0.0], "std": [1.0], "columns": ["a", "b"]}):
        with pytest.raises((ValueError, LookupError)):
            Points.from_stored(damaged)


def test_the_offset_of_standardised_points_makes_bits_those_of_the_data():
    """-log2 p(y)/D of N(mean, std^2), from the density of the standard normal that the model sees."""
    mean, std = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 8.0]).double()
    y = mean + std * torch.randn(10, 2, generator=torch.Generator().manual_seed(0)).double()
    codec = Points(tuple(mean.tolist()), tuple(std.tolist()))
    seen = torch.distributions.Normal(0, 1).log_prob(codec.encode(y).double()).sum(1)
    data = torch.distributions.Normal(mean, std).log_prob(y).sum(1)
    torch.testing.assert_close(-seen / (2 * math.log(2)) + codec.offset, -data / (2 * math.log(2)), rtol=1e-6, atol=1e-6)


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
