"""The loss of an autoencoder whose latents a diffusion model is to learn.

    loss = r(x, x_hat) + w_p P(x, x_hat) + w_kl KL(q(z given x) || N(0, I)) / D + w_d lambda G(x_hat) + H

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", appendix G, divided by the D elements of
a picture. x_hat is the decoder's answer to a z drawn from q.

    r        mean of |x - x_hat| ("l1") or of (x - x_hat)^2 / 2 ("l2"). With l2, w_kl = s^2 and nothing else, the loss is s^2
             times the negative bound on log p(x) of a decoder with variance s^2, but for a constant
    P        distance of features, each pixel's normalised over its channels: sum over the layers of the mean over pixels of
             the squared difference (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual
             Metric", equation 1, with weights of 1)
    G, H     the discriminator's part: G = -mean D(x_hat), for which D's weights are constants, and the hinge loss
             H = mean (relu(1 - D(x)) + relu(1 + D(x_hat))) / 2 of D, for which x_hat is a constant. D learns from the
             first step; the autoencoder meets it after `discriminator_start` updates
    lambda   |grad (r + w_p P)| / (|grad G| + 1e-4) by the last layer of the decoder (Esser et al. 2021, "Taming
             Transformers for High-Resolution Image Synthesis", equation 7)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefield.models.networks.autoencoder import Seen, autoencoder_of, kl_of
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.processes import World
from scorefield.training.draws import Draws
from scorefield.training.objectives.objective import Batch, Memory, Objective

RECONSTRUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda error: error.abs().flatten(1).mean(1), "l2": lambda error: error.square().flatten(1).mean(1) / 2}
MOST = 1e4      # of lambda, as in the published code
LARGEST = 1e12      # of a weight, and of updates


class Updates:
    """How many updates there were."""

    number = 0


@dataclass(frozen=True)
class Autoencoding(Objective, Memory):
    """The training loss of an `Autoencoder`, whose latents have the shape `latent`.

    reconstruction       r: "l1" or "l2"
    kl_weight            w_kl
    perceptual           what gives the features of P: a run of a classifier, or a TorchScript file; "": no P
    perceptual_weight    w_p
    discriminator_weight w_d, of a network with a discriminator
    discriminator_start  updates after which the autoencoder meets the discriminator
    perceptual_model     what `perceptual` names: pictures (batch, *event) to one or several tensors (batch, channels, ...)
    codec                of the data

    Raises ArgumentError for an unknown word and for numbers out of range.
    """

    latent: tuple[int, ...]
    reconstruction: str = "l1"
    kl_weight: float = 1e-6
    perceptual: str = field(default="", kw_only=True)
    perceptual_weight: float = field(default=1.0, kw_only=True)
    discriminator_weight: float = field(default=0.5, kw_only=True)
    discriminator_start: int = field(default=0, kw_only=True)
    perceptual_model: Any = field(default=None, kw_only=True, repr=False, compare=False)
    codec: Any = field(default=None, kw_only=True, repr=False, compare=False)
    updates: Updates = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.reconstruction not in RECONSTRUCTIONS:
            raise ArgumentError(f"unknown reconstruction {self.reconstruction!r}; choose from {', '.join(RECONSTRUCTIONS)}",
                                "reconstruction")
        for name in ("kl_weight", "perceptual_weight", "discriminator_weight", "discriminator_start"):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise ArgumentError(f"{name} must lie in 0 .. {LARGEST:g}, got {getattr(self, name)}", name)
        if self.codec is not None and not hasattr(self.codec, "high"):
            raise ArgumentError("an autoencoder is for pictures of levels; this data set holds numbers, or latents",
                                "data.dataset")
        object.__setattr__(self, "updates", Updates())

    def draw(self, batch: Batch, draws: Draws) -> Tensor:
        """The noise of the latents."""
        return draws.normal(self.latent)

    def loss(self, model: Any, batch: Batch, draw: Tensor) -> Tensor:
        """(batch,). Without gradients, as of held-out examples, what the discriminator says is left out."""
        seen = _seen(model, batch.x, draw)
        fit = RECONSTRUCTIONS[self.reconstruction](seen.x_hat - batch.x) + self._perceived(batch.x, seen.x_hat)
        loss = fit + self.kl_weight * kl_of(seen.mean, seen.log_variance) / batch.x[0].numel()
        if not torch.is_grad_enabled() or seen.of_data is None or seen.of_constant is None or seen.of_x_hat is None:
            return loss
        hinge = (F.relu(1 - seen.of_data) + F.relu(1 + seen.of_constant)).flatten(1).mean(1) / 2
        if self.discriminator_weight and self.updates.number >= self.discriminator_start:
            fooled = -seen.of_x_hat.flatten(1).mean(1)
            loss = loss + self.discriminator_weight * _balance(model, fit, fooled) * fooled
        return loss + hinge

    def metrics(self, model: Any, batch: Batch, draw: Tensor) -> dict[str, Tensor]:
        """psnr: of x_hat, in dB; kl_bits: of KL(q || N(0, I)), a dimension of the data."""
        seen, width = _seen(model, batch.x, draw), 2.0 if self.codec is None else self.codec.high - self.codec.low
        square = (seen.x_hat - batch.x).double().square().flatten(1).mean(1)
        kl = kl_of(seen.mean.double(), seen.log_variance.double())
        return {"psnr": 10 * torch.log10(width**2 / square), "kl_bits": kl / (batch.x[0].numel() * math.log(2))}

    def _perceived(self, x: Tensor, x_hat: Tensor) -> Tensor:
        if self.perceptual_model is None or not self.perceptual_weight:
            return x.new_zeros(len(x))
        with torch.no_grad():
            of_x = _layers(self.perceptual_model(x))
        return self.perceptual_weight * sum(
            ((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).flatten(1).mean(1)
             for a, b in zip(of_x, _layers(self.perceptual_model(x_hat)), strict=True)), x.new_zeros(len(x)))

    def stepped(self, world: World) -> None:
        self.updates.number += 1

    def state(self) -> Mapping[str, Any]:
        return {"updates": self.updates.number}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        self.updates.number = 0 if state is None else int(state["updates"])


def _seen(model: Any, x: Tensor, noise: Tensor) -> Seen:
    seen = model.plain(x, None, noise)
    return Seen._make(part if part is None else part.to(x.dtype) for part in seen)


def _layers(features: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """Features of one or several layers, each (batch, channels, pixels)."""
    layers = [features] if isinstance(features, Tensor) else features
    return [layer.reshape(*layer.shape[:2], -1) for layer in layers]


def _balance(model: Any, fit: Tensor, fooled: Tensor) -> Tensor:
    """lambda."""
    autoencoder = autoencoder_of(model)
    assert autoencoder is not None
    last = autoencoder.decoder.conv_out.weight
    a, b = (torch.autograd.grad(part.mean(), last, retain_graph=True)[0].norm() for part in (fit, fooled))
    return (a / (b + 1e-4)).clamp(max=MOST).detach()
