"""An autoencoder of pictures whose latents a diffusion model can learn: q(z given x) and the mean of p(x given z).

    q(z given x) = N(mean(x), diag exp(log_variance(x)))        the encoder
    x_hat(z)                                                    the decoder

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.1 and appendix G: convolutions
with residual blocks, self-attention in the middle, and a small weight of KL(q || N(0, I)) that keeps latents from spreading.
A picture of f times 2^k pixels has latents of f pixels. It is the network of diffusers' AutoencoderKL, block by block.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from scorefield.models.layers import (
    Downsample,
    ResidualBlock,
    SelfAttention,
    Upsample,
    check_sizes,
    group_norm,
    sides_of,
    xavier_init,
)
from scorefield.models.networks.discriminator import Discriminator
from scorefield.numerics.errors import ArgumentError

LOG_VARIANCES = (-30.0, 20.0)      # what the encoder's are clamped to, as in the published code


class Seen(NamedTuple):
    """What training sees of a batch: x_hat of a z drawn from q, the mean and the log-variance of q (batch, *latent), and
    what the discriminator says of the data, of x_hat as a constant, and of x_hat by constant weights; None without one.
    """

    x_hat: Tensor
    mean: Tensor
    log_variance: Tensor
    of_data: Tensor | None
    of_constant: Tensor | None
    of_x_hat: Tensor | None


class Middle(nn.Module):
    """A residual block, self-attention if asked for, and another block."""

    def __init__(self, c: int, groups: int | None, dropout: float, attention: bool):
        super().__init__()
        self.first, self.last = (ResidualBlock(c, c, None, groups, dropout) for _ in range(2))
        self.attention = SelfAttention(c, groups) if attention else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        return self.last(self.attention(self.first(h)))


class Encoder(nn.Module):
    """Pictures (batch, channels, height, width) to 2 * latent_channels numbers for each pixel of the latents."""

    def __init__(self, channels: int, widths: Sequence[int], num_blocks: int, latent_channels: int, groups: int | None,
                 dropout: float, attention: bool):
        super().__init__()
        c = widths[0]
        self.conv_in = nn.Conv2d(channels, c, 3, padding=1)
        self.down: Any = nn.ModuleList()
        for i, width in enumerate(widths):
            level: Any = nn.Module()
            level.blocks = nn.ModuleList()
            for _ in range(num_blocks):
                level.blocks.append(ResidualBlock(c, width, None, groups, dropout))
                c = width
            level.resample = Downsample(c) if i < len(widths) - 1 else None
            self.down.append(level)
        self.middle = Middle(c, groups, dropout, attention)
        self.norm_out = group_norm(c, groups)
        self.conv_out = nn.Conv2d(c, 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(self.middle(_through(self.down, self.conv_in(x))))))


class Decoder(nn.Module):
    """Latents (batch, latent_channels, rows, columns) to pictures."""

    def __init__(self, channels: int, widths: Sequence[int], num_blocks: int, latent_channels: int, groups: int | None,
                 dropout: float, attention: bool):
        super().__init__()
        c = widths[-1]
        self.conv_in = nn.Conv2d(latent_channels, c, 3, padding=1)
        self.middle = Middle(c, groups, dropout, attention)
        self.up: Any = nn.ModuleList()
        for i, width in enumerate(reversed(widths)):
            level: Any = nn.Module()
            level.blocks = nn.ModuleList()
            for _ in range(num_blocks + 1):
                level.blocks.append(ResidualBlock(c, width, None, groups, dropout))
                c = width
            level.resample = Upsample(c) if i < len(widths) - 1 else None
            self.up.append(level)
        self.norm_out = group_norm(c, groups)
        self.conv_out = nn.Conv2d(c, channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(_through(self.up, self.middle(self.conv_in(z))))))


def _through(levels: Any, h: Tensor) -> Tensor:
    for level in levels:
        for block in level.blocks:
            h = block(h)
        h = h if level.resample is None else level.resample(h)
    return h


class Autoencoder(nn.Module):
    """Pictures (batch, channels, height, width) to latents (batch, latent_channels, rows, columns) and back.

    image_size       both sides of square pictures, or (height, width); divisible by 2 ** (levels - 1)
    channels         of the pictures
    latent_channels  of the latents
    width            channels of the first level
    multipliers      width of each level as a multiple, from full resolution down; between two levels the sides are halved
    num_blocks       residual blocks a level (one more on the way up)
    dropout          inside residual blocks
    attention        whether the middle has self-attention
    groups           of every GroupNorm; None: 32, or width / 4 if that is less
    quantisers       whether a 1x1 convolution follows the encoder, and one goes before the decoder
    discriminator    width of a `Discriminator`, which is trained beside it and used for nothing else; 0: none
    scaling          a model of latents sees scaling (z - shift); None: latents that are standardised by their training
                     examples, which its run keeps
    shift            see scaling

    Raises ArgumentError if the sizes do not fit. One use:

    >>> from scorefield.models import Autoencoder
    >>> network = Autoencoder(image_size=28, channels=1, width=16, multipliers=(1, 2, 2), num_blocks=1)
    >>> mean, log_variance = network.encode(torch.zeros(2, 1, 28, 28))
    >>> mean.shape, network.decode(mean).shape
    (torch.Size([2, 4, 7, 7]), torch.Size([2, 1, 28, 28]))
    """

    axes = (2,)                      # that x may have beside the batch's and the channels'
    no_score = "an autoencoder"      # what it is, since it is not the network of a score model

    def __init__(self, image_size: int | Sequence[int] = 32, channels: int = 3, latent_channels: int = 4, width: int = 64,
                 multipliers: Sequence[int] = (1, 2, 4), num_blocks: int = 2, dropout: float = 0.0, attention: bool = True,
                 groups: int | None = None, quantisers: bool = True, discriminator: int = 0, scaling: float | None = None,
                 shift: float | None = None):
        super().__init__()
        check_sizes(image_size, width, multipliers, num_blocks, dropout, 1e-6, self.axes)
        if latent_channels < 1:
            raise ArgumentError(f"latent_channels must be at least 1, got {latent_channels}", "latent_channels")
        if discriminator < 0:
            raise ArgumentError(f"discriminator must be a width, or 0 for none, got {discriminator}", "discriminator")
        if scaling is not None and not 0 < scaling < math.inf:
            raise ArgumentError(f"scaling must be above 0 and finite, got {scaling}", "scaling")
        if shift is not None and (scaling is None or not math.isfinite(shift)):
            raise ArgumentError("shift goes with a scaling; give both, or neither", "shift", "scaling")
        sides, halvings = sides_of(image_size), len(multipliers) - 1
        self.channels, self.scaling, self.shift = channels, scaling, shift
        self.latent = (latent_channels, *(side >> halvings for side in sides))
        norms = groups or min(32, width // 4)      # one number for all layers
        rest = ([width * m for m in multipliers], num_blocks, latent_channels, norms, dropout, attention)
        self.encoder, self.decoder = Encoder(channels, *rest), Decoder(channels, *rest)
        self.after = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1) if quantisers else nn.Identity()
        self.before = nn.Conv2d(latent_channels, latent_channels, 1) if quantisers else nn.Identity()
        xavier_init(self)
        self.discriminator = Discriminator(sides, channels, discriminator) if discriminator else None

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the log-variance of q(z given x), (batch, *latent) each."""
        mean, log_variance = self.after(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def decode(self, z: Tensor) -> Tensor:
        """x_hat of latents z (batch, *latent)."""
        return self.decoder(self.before(z))

    def forward(self, x: Tensor, time: Tensor | None = None, noise: Tensor | None = None) -> Any:
        """x_hat of the mean of q. With noise (batch, *latent), what training sees (`Seen`) of z = mean + std noise.

        time  means nothing here; a denoiser tells every network one
        """
        mean, log_variance = self.encode(x)
        if noise is None:
            return self.decode(mean)
        x_hat = self.decode(mean + (0.5 * log_variance).exp() * noise)
        return Seen(x_hat, mean, log_variance, *self._judged(x, x_hat))

    def _judged(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        judge = self.discriminator
        if judge is None:
            return None, None, None
        constant = {name: weight.detach() for name, weight in judge.named_parameters()}
        return judge(x), judge(x_hat.detach()), functional_call(judge, constant, (x_hat,))


def autoencoder_of(model: nn.Module) -> Autoencoder | None:
    """The autoencoder in a model, however it is wrapped, or None."""
    return next((module for module in model.modules() if isinstance(module, Autoencoder)), None)


def kl_of(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_variance)) || N(0, I)) in nats, (batch,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)


def log_posterior_of(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log q(z given x) in nats, (batch,)."""
    squares = (z - mean).square() * (-log_variance).exp()
    return -0.5 * (squares + log_variance + math.log(2 * math.pi)).flatten(1).sum(1)

