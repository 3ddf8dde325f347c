"""The codec of latents, by a linear autoencoder whose latents, posterior and likelihood have closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from scorefield.data import DequantizedPixels, Pixels, from_arrays
from scorefield.data.latents import Latents, Moments, is_stored
from scorefield.evaluation.likelihood import Evaluation
from scorefield.models import GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE

NOISE = 0.2      # standard deviation of x given z, many levels wide, so that levels have nearly a density


class Linear(nn.Module):
    """x = W z + NOISE n of z ~ N(0, I) in 2 of 4 dimensions, with the exact posterior of z, which is diagonal."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]]).T * 0.4, requires_grad=False)
        gram = self.weight.T @ self.weight      # a multiple of I
        self.variance = 1 / (1 + gram[0, 0] / NOISE**2)

    def encode(self, x):
        mean = self.variance / NOISE**2 * x.flatten(1) @ self.weight
        return mean, torch.full_like(mean, math.log(self.variance))

    def decode(self, z):
        return (z @ self.weight.T).reshape(-1, 1, 2, 2)


def codec_of(mean=(0.3, -0.2), std=(0.8, 0.8), pixels=None):
    return Latents(Linear(), pixels or Pixels(256, -2.0, 2.0), (1, 2, 2), (2,), mean, std, NOISE, "digest")


def levels(n=32):
    linear, generator = Linear(), torch.Generator().manual_seed(0)
    x = linear.decode(torch.randn(n, 2, generator=generator)) + NOISE * torch.randn(n, 1, 2, 2, generator=generator)
    return Pixels(256, -2.0, 2.0).decode(x)


def test_the_bound_is_tight_where_the_posterior_is_exact():
    """Every z of q then gives log P(k) itself, whatever the scaling of the latents."""
    codec, k, linear = codec_of(), levels(8), Linear()
    # x = (z - m) / s of z ~ N(0, I)
    mean = -torch.tensor(codec.mean) / torch.tensor(codec.std)
    model = GaussianMixture(VPSDE(), mean[None], torch.tensor([1 / codec.std[0]**2]))
    scoring = Evaluation(model, from_arrays(k, k), codec, draws=2, divergence="exact", method="exponential",
                         float64=True, progress=False)
    found = scoring.run().result()
    covariance = linear.weight @ linear.weight.T + NOISE**2 * torch.eye(4)
    x = codec.pixels.encode(k).flatten(1).double()
    density = MultivariateNormal(torch.zeros(4).double(), covariance.double()).log_prob(x)
    exact = -density / (4 * math.log(2)) + math.log2(255 / 4)
    assert found.dimensions == 4
    torch.testing.assert_close(found.bits_per_dim, exact, rtol=0, atol=5e-3)      # bins have a width
    assert float(found.draw_bits.std(0).max()) < 5e-3
    assert set(found.terms) == {"density", "reconstruction", "posterior"}
    torch.testing.assert_close(sum(found.terms.values()), found.log_prob)
    assert found.bits_per_dim_iw is not None


def test_terms_are_the_logarithms_of_their_distributions():
    codec, k = codec_of(), levels(4)
    u = torch.rand(4, 2, generator=torch.Generator().manual_seed(1))
    x = codec.encode(k, u)
    mean, log_variance = codec.network.encode(codec.pixels.encode(k))
    std = (log_variance / 2).exp()
    centred = (mean - torch.tensor(codec.mean)) / codec.std[0]
    q = torch.distributions.Normal(centred, std / codec.std[0])
    terms = codec.terms(k, x)
    torch.testing.assert_close(terms["posterior"].float(), -q.log_prob(x).sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q.cdf(x), u, rtol=1e-4, atol=1e-4)
    p = torch.distributions.Normal(codec.pictures(x), NOISE)
    density = p.log_prob(codec.pixels.encode(k)).sum((1, 2, 3)) + 4 * math.log(4 / 255)
    torch.testing.assert_close(terms["reconstruction"].float(), density, rtol=1e-3, atol=1e-2)


def test_one_half_gives_the_mean_and_decodes_to_it():
    codec, k = codec_of(), levels(600)      # more than the network sees at once
    x = codec.encode(k, torch.full((600, 2), 0.5))
    mean, _ = codec.network.encode(codec.pixels.encode(k))
    torch.testing.assert_close(x * 0.8 + torch.tensor(codec.mean), mean)
    torch.testing.assert_close(codec.pictures(x), codec.network.decode(mean))
    assert torch.equal(codec.decode(x), codec.pixels.decode(codec.pictures(x)))
    moments = Moments(codec)
    assert torch.equal(moments.encode(codec.moments(k), torch.full((600, 2), 0.5)), x)


def test_dequantised_pictures_are_encoded_from_the_middle_of_their_bins():
    codec, k = codec_of(pixels=DequantizedPixels(256, -2.0, 2.0)), levels(4)
    expected = codec.network.encode(codec.pixels.encode(k, torch.full((4, 1, 2, 2), 0.5)))
    assert torch.equal(codec.moments(k), torch.cat(expected, 1))


def test_the_ends_of_the_noise_give_finite_latents():
    codec, k = codec_of(), levels(2)
    for u in (0.0, 1 - 2**-24):
        assert bool(codec.encode(k, torch.full((2, 2), u)).isfinite().all())


def test_what_is_stored_is_told_from_what_is_damaged():
    stored = codec_of().stored() | {"shape": [2, 1, 1]}
    assert is_stored(stored)
    for field, value in (("shape", [2, 0, 1]), ("mean", [0.0]), ("std", [1.0, 0.0]), ("decoder_std", float("nan")),
                         ("digest", 3)):
        assert not is_stored(stored | {field: value})
    assert not is_stored(None) and not is_stored({"shape": [2, 1, 1]})


def test_pictures_of_another_shape_are_refused():
    with pytest.raises(ArgumentError, match=r"takes pictures of shape \(1, 2, 2\), and these have \(1, 4, 4\)"):
        codec_of().event((1, 4, 4))
