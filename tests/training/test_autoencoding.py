"""The objective of autoencoders: its terms by closed forms, the two players, and runs that resume to the bit."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from scorefield.data import make_codec
from scorefield.models import Autoencoder, Denoiser
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.processes import World
from scorefield.sde_lib import VPSDE
from scorefield.training import Autoencoding, Batch, build_objective

LATENT = (3, 4, 4)


def model_of(**settings):
    torch.manual_seed(0)
    network = Autoencoder(image_size=8, channels=1, width=8, multipliers=(1, 2), num_blocks=1, latent_channels=3, **settings)
    return Denoiser(network, VPSDE())


def batch_and_noise(n=4):
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1), torch.randn(n, *LATENT, generator=generator)


def test_with_l2_the_loss_is_the_bound_of_a_decoder_of_that_variance():
    model, (batch, noise), variance = model_of(), batch_and_noise(), 0.04
    loss = Autoencoding(LATENT, "l2", kl_weight=variance).loss(model, batch, noise)
    seen = model.network(batch.x, None, noise)
    fit = Normal(seen.x_hat, math.sqrt(variance)).log_prob(batch.x).flatten(1).sum(1)
    kl = kl_divergence(Normal(seen.mean, (seen.log_variance / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    constant = 0.5 * math.log(2 * math.pi * variance)
    torch.testing.assert_close(loss / variance, (kl - fit) / 64 - constant, rtol=1e-4, atol=1e-4)


def test_l1_is_the_mean_of_absolute_differences():
    model, (batch, noise) = model_of(), batch_and_noise()
    loss = Autoencoding(LATENT, kl_weight=0.0).loss(model, batch, noise)
    torch.testing.assert_close(loss, (model.network(batch.x, None, noise).x_hat - batch.x).abs().mean((1, 2, 3)))


def test_the_perceptual_distance_is_that_of_normalised_features():
    model, (batch, noise) = model_of(), batch_and_noise()
    features = nn.Conv2d(1, 5, 3)
    plain, both = (Autoencoding(LATENT, perceptual_model=given, perceptual_weight=0.7).loss(model, batch, noise)
                   for given in (None, lambda x: [features(x), 2 * features(x)]))
    pair = batch.x, model.network(batch.x, None, noise).x_hat
    a, b = (features(x) / features(x).norm(dim=1, keepdim=True) for x in pair)
    torch.testing.assert_close(both - plain, 0.7 * 2 * (a - b).square().sum(1).mean((1, 2)), rtol=1e-4, atol=1e-5)


def gradients(model, objective, batch, noise):
    model.network.zero_grad()
    objective.loss(model, batch, noise).mean().backward()
    return {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}


def test_the_autoencoder_meets_the_discriminator_after_its_start():
    model, (batch, noise) = model_of(discriminator=8), batch_and_noise()
    objective = Autoencoding(LATENT, discriminator_start=2, discriminator_weight=1.0)
    alone = gradients(model, Autoencoding(LATENT, discriminator_weight=0.0), batch, noise)
    judged = [name for name in alone if name.startswith("discriminator.")]
    assert len(judged) == len(list(model.network.discriminator.parameters()))
    before = gradients(model, objective, batch, noise)
    for _ in range(2):
        objective.stepped(World())
    after = gradients(model, objective, batch, noise)
    assert all(torch.equal(alone[name], before[name]) for name in alone)
    assert all(torch.equal(alone[name], after[name]) == (name in judged) for name in alone if alone[name].any())


def test_its_weight_is_balanced_at_the_last_layer():
    """The adversarial gradient there is as long as that of the reconstruction."""
    model, (batch, noise) = model_of(discriminator=8), batch_and_noise()
    last = "decoder.conv_out.weight"
    fit = gradients(model, Autoencoding(LATENT, kl_weight=0.0, discriminator_weight=0.0), batch, noise)[last]
    both = gradients(model, Autoencoding(LATENT, kl_weight=0.0, discriminator_weight=0.5), batch, noise)[last]
    assert float((both - fit).norm()) == pytest.approx(0.5 * float(fit.norm()), rel=0.02)


def test_held_out_losses_leave_the_discriminator_out():
    model, (batch, noise) = model_of(discriminator=8), batch_and_noise()
    with torch.no_grad():
        losses = [Autoencoding(LATENT, discriminator_weight=weight).loss(model, batch, noise) for weight in (0.0, 9.0)]
    assert torch.equal(*losses)


def test_the_number_of_updates_is_a_part_of_the_state():
    objective = Autoencoding(LATENT)
    objective.stepped(World())
    other = Autoencoding(LATENT)
    other.restore(objective.state())
    assert other.updates.number == 1


def test_figures_are_psnr_and_the_rate():
    model, (batch, noise) = model_of(), batch_and_noise()
    found = Autoencoding(LATENT, codec=make_codec(256, low=0.0)).metrics(model, batch, noise)
    seen = model.network(batch.x, None, noise)
    mse = (seen.x_hat - batch.x).square().mean((1, 2, 3))
    torch.testing.assert_close(found["psnr"].float(), -10 * torch.log10(mse))
    kl = kl_divergence(Normal(seen.mean, (seen.log_variance / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(found["kl_bits"].float(), kl / 64 / math.log(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("objective", "match"), [("score_matching", "by objective autoencoder, and by no other"),
                                                  ("classifier", "by objective autoencoder, and by no other")])
def test_an_autoencoder_needs_its_objective(objective, match):
    with pytest.raises(ArgumentError, match=match):
        build_objective(model_of(), {"objective": objective})


def test_another_network_is_no_autoencoder():
    from scorefield.models import MLP

    with pytest.raises(ArgumentError, match="model.network and training.objective to autoencoder, or neither"):
        build_objective(Denoiser(MLP((2,)), VPSDE()), {"objective": "autoencoder"})


@pytest.mark.parametrize(("settings", "match"), [
    ({"reconstruction": "l3"}, "unknown reconstruction 'l3'; choose from l1, l2"),
    ({"kl_weight": -1.0}, "kl_weight must lie in 0 .. 1e"),
    ({"codec": make_codec(None)}, "is for pictures of levels"),
])
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ArgumentError, match=match):
        Autoencoding(LATENT, **settings)
