"""Autoencoders: sizes, the divergence of the encoder's answer, and which weights see the discriminator's answers."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from scorefield.models import Autoencoder, Denoiser, Discriminator
from scorefield.models.networks.autoencoder import kl_of
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE

SMALL = {"image_size": (8, 12), "channels": 1, "width": 8, "multipliers": (1, 2), "num_blocks": 1, "latent_channels": 3}


def test_kl_is_that_of_normal_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(5, 3, 2, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(kl_of(mean, log_variance), expected)


def test_each_level_but_the_last_halves_the_sides():
    network = Autoencoder(**SMALL)
    mean, log_variance = network.encode(torch.zeros(2, 1, 8, 12))
    assert mean.shape == log_variance.shape == (2, *network.latent) == (2, 3, 4, 6)
    assert network.decode(mean).shape == network(torch.zeros(2, 1, 8, 12), torch.zeros(2)).shape == (2, 1, 8, 12)


def test_training_sees_a_latent_drawn_by_the_noise():
    torch.manual_seed(0)
    network, x = Autoencoder(**SMALL), torch.randn(2, 1, 8, 12)
    noise = torch.randn(2, *network.latent)
    seen = network(x, None, noise)
    mean, log_variance = network.encode(x)
    torch.testing.assert_close(seen.x_hat, network.decode(mean + (log_variance / 2).exp() * noise))
    assert seen.of_data is seen.of_constant is seen.of_x_hat is None


def test_the_players_see_each_other_as_constants():
    torch.manual_seed(0)
    network, x = Autoencoder(**SMALL, discriminator=8), torch.randn(2, 1, 8, 12)
    judge = set(network.discriminator.parameters())
    for name, of_judge in (("of_data", True), ("of_constant", True), ("of_x_hat", False)):
        network.zero_grad()
        getattr(network(x, None, torch.zeros(2, *network.latent)), name).sum().backward()
        assert all((p.grad is not None) == of_judge for p in judge)
        decoder = network.decoder.conv_out.weight
        assert (decoder.grad is not None) != of_judge
    seen = network(x, None, torch.zeros(2, *network.latent))
    torch.testing.assert_close(seen.of_constant, seen.of_x_hat, rtol=0, atol=0)


@pytest.mark.parametrize(("size", "answers"), [(8, 2), (28, 5), (32, 6), (256, 30)])
def test_a_discriminator_answers_for_each_patch(size, answers):
    with torch.device("meta"):
        assert Discriminator((size, size), 1, 4)(torch.empty(2, 1, size, size)).shape == (2, 1, answers, answers)


def test_an_autoencoder_has_no_score():
    model = Denoiser(Autoencoder(**SMALL), VPSDE())
    with pytest.raises(ArgumentError, match="an autoencoder, which has no score"):
        model.score(torch.zeros(1, 1, 8, 12), 0.5)


@pytest.mark.parametrize(("settings", "match"), [
    ({"latent_channels": 0}, "latent_channels must be at least 1, got 0"), ({"scaling": 0.0}, "scaling must be above 0"),
    ({"shift": 1.0}, "shift goes with a scaling"), ({"discriminator": -4}, "discriminator must be a width, or 0"),
    ({"discriminator": 6}, "must be a multiple of 4"), ({"multipliers": (1, 2, 2, 2)}, "divisible by 8"),
    ({"image_size": (4, 4), "discriminator": 8}, "at least 8 pixels a side, got 4"),
])
def test_sizes_that_do_not_fit_are_refused(settings, match):
    with pytest.raises(ArgumentError, match=match):
        Autoencoder(**{**SMALL, **settings})


def test_a_preview_shows_examples_above_their_reconstructions():
    from scorefield.data import from_arrays, make_codec
    from scorefield.evaluation.plots import image_grid
    from scorefield.evaluation.preview import Preview

    levels = torch.randint(0, 256, (40, 1, 8, 12), generator=torch.Generator().manual_seed(0))
    data, codec, model = from_arrays(levels, levels), make_codec(256), Denoiser(Autoencoder(**SMALL), VPSDE())
    with torch.no_grad():
        made = codec.decode(model.network(codec.encode(levels)))
    rows = torch.cat([part for i in range(0, 32, 8) for part in (levels[i:i + 8].to(torch.uint8), made[i:i + 8])])
    assert torch.equal(Preview()(model, data, codec), image_grid(rows, 256, torch.arange(64) // 8))


def test_an_autoencoder_has_no_figures_of_samples():
    from scorefield.data import from_arrays, make_codec
    from scorefield.evaluation.measures import Measures

    data = from_arrays(torch.zeros(20, 1, 8, 12, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match="an autoencoder draws no samples, so it has no such figures"):
        Measures().require([], 100, Denoiser(Autoencoder(**SMALL), VPSDE()), data, make_codec(256))
