"""The U-Net of DDPM: a time-conditional residual encoder and decoder joined by skip connections.

Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models", appendix B: two residual blocks a level,
GroupNorm and SiLU, self-attention where the picture is 16 x 16 and in the middle, a sinusoidal embedding of
time added in every residual block, and the last layer of every branch initialised to zero. With its defaults this
is their CIFAR-10 network of 35,746,307 parameters.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefield.models.conditions import Condition
from scorefield.models.layers import (
    CONVOLUTIONS,
    Downsample,
    MeanDown,
    NearestUp,
    ResidualBlock,
    SelfAttention,
    Upsample,
    check_sizes,
    check_switch,
    group_norm,
    resolution,
    sides_of,
    timestep_embedding,
    xavier_init,
    zero_init,
)
from scorefield.models.networks.dequantizer import dequantizer_for
from scorefield.models.networks.low_res import LowResNetwork
from scorefield.numerics.errors import ArgumentError

RESAMPLINGS = ("conv", "residual")


class Level(nn.Module):
    """The residual blocks of one resolution, each with its attention or none, and the resampling that follows."""

    def __init__(self, blocks: list[ResidualBlock], attentions: list[nn.Module], resample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample

    def pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """The residual blocks, each with the attention that follows it."""
        return zip(self.blocks, self.attentions, strict=True)


class UNet(LowResNetwork):
    """DDPM's U-Net: pictures (batch, channels, height, width), or series (batch, channels, length), and time (batch,) to a
    tensor of the first one's shape.

    image_size             both sides of square pictures, (height, width), or (length,) of series, whose convolutions are
                           over one axis; all divisible by 2 ** (levels - 1)
    channels               of the picture or series
    width                  channels of the first level
    multipliers            width of each level as a multiple, from full resolution down
    num_blocks             residual blocks a level (one more on the way up)
    attention_resolutions  resolutions (longer sides) with self-attention; the middle always has it
    dropout                inside residual blocks
    classes                if given, it takes a label too, {"label": integers (batch,)} from 0 to `classes`, the last of
                           which means "no label"; the label's embedding is added to that of time
    guidance               if given, LOW,HIGH: it takes the scale of guidance, too, {"guidance": numbers (batch,)} between
                           these
    scale_shift            residual blocks scale and shift their second norm by time, see `ResidualBlock`
    dequantizer            width of a `Dequantizer`, kept in the attribute of that name for likelihoods; 0: none
    low_res                channels of a picture that it takes, too, {"low_res": (batch, low_res, any height, any width)},
                           in the range of x; 0: none (low_res.py)
    low_res_noise          whether it is told the noise in that, {"low_res_noise": (batch,)}

    and, for networks trained elsewhere, which differ in details:

    groups                 of every GroupNorm; None: 32, or width / 4 if that is less
    norm_eps               of every GroupNorm
    attention_head_dim     channels of a head of attention; None: one head of all
    freq_shift             of the embedding of time, see `timestep_embedding`: 0 or 1
    downsample_padding     1: convolutions that halve the picture are padded on all sides; 0: below and to the right
    centred                False: data lie in [0, 1] and the network sees 2 x - 1
    class_embedding        "table": a row for each label; "timestep": the label's sinusoidal embedding, then two layers
    middle_norm            False: the attention in the middle has no GroupNorm
    attention_heads        number of heads of attention, in place of attention_head_dim
    attention_order        of the rows of qkv, see `SelfAttention`
    resample               "conv": a convolution, strided or of the doubled picture; "residual": a residual block around the
                           mean of 2 x 2 pixels or their repetition (Brock et al. 2019; Dhariwal and Nichol 2021, section 3)

    Raises ArgumentError (a ValueError) if the sizes do not fit. One use:

    >>> from scorefield.models import UNet
    >>> network = UNet(image_size=8, channels=1, width=16, multipliers=(1, 2), num_blocks=1, attention_resolutions=())
    >>> network(torch.zeros(4, 1, 8, 8), torch.full((4,), 500.0)).shape
    torch.Size([4, 1, 8, 8])
    """

    axes = (1, 2)      # that x may have beside the batch's and the channels'
    last_layers = ("conv_out",)

    def __init__(self, image_size: int | Sequence[int] = 32, channels: int = 3, width: int = 128,
                 multipliers: Sequence[int] = (1, 2, 2, 2), num_blocks: int = 2,
                 attention_resolutions: Sequence[int] = (16,), dropout: float = 0.1, groups: int | None = None,
                 norm_eps: float = 1e-6, attention_head_dim: int | None = None, freq_shift: int = 1,
                 downsample_padding: int = 0, centred: bool = True, classes: int | None = None,
                 class_embedding: str = "table", scale_shift: bool = False, middle_norm: bool = True,
                 attention_heads: int | None = None, attention_order: str = "qkv", resample: str = "conv",
                 dequantizer: int = 0, low_res: int = 0, low_res_noise: bool = False,
                 guidance: Sequence[float] | None = None):
        super().__init__()
        if resample not in RESAMPLINGS:
            raise ArgumentError(f"unknown resample {resample!r}; choose from {', '.join(RESAMPLINGS)}", "resample")
        check_sizes(image_size, width, multipliers, num_blocks, dropout, norm_eps, self.axes)
        check_switch("freq_shift", freq_shift)
        check_switch("downsample_padding", downsample_padding)
        if groups is None and width > 128 and width % 32:
            raise ArgumentError(f"the U-Net's width above 128 must be a multiple of 32, got {width}", "width")
        self.width, self.freq_shift, self.centred = width, freq_shift, centred
        groups, time_dim = groups or min(32, width // 4), 4 * width
        widths = [width * m for m in multipliers]
        last, sides = len(widths) - 1, sides_of(image_size)
        axes, conv = len(sides), CONVOLUTIONS[len(sides)]

        def residual(c_in: int, c_out: int, resample: nn.Module | None = None) -> ResidualBlock:
            return ResidualBlock(c_in, c_out, time_dim, groups, dropout, resample=resample, eps=norm_eps,
                                 scale_shift=scale_shift, axes=axes, projected=False)

        def attend(c: int, norm: bool = True) -> nn.Module:
            return SelfAttention(c, groups, eps=norm_eps, head_dim=attention_head_dim, norm=norm, axes=axes,
                                 heads=attention_heads, order=attention_order)

        def halve(c: int) -> nn.Module:
            return Downsample(c, downsample_padding, axes) if resample == "conv" else residual(c, c, MeanDown())

        def double(c: int) -> nn.Module:
            return Upsample(c, axes) if resample == "conv" else residual(c, c, NearestUp())

        def attention(c: int, size: int) -> nn.Module:
            return attend(c) if size in attention_resolutions else nn.Identity()

        self.time = nn.Sequential(nn.Linear(width, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.conv_in = conv(channels + low_res, width, 3, padding=1)
        self.down: Any = nn.ModuleList()
        skips, c = [width], width
        for level, w in enumerate(widths):
            size = resolution(sides, level)
            blocks = [residual(c if i == 0 else w, w) for i in range(num_blocks)]
            c = w
            skips += [w] * (num_blocks + (level < last))
            self.down.append(Level(blocks, [attention(w, size) for _ in blocks],
                                   halve(w) if level < last else None))
        self.middle = nn.ModuleList([residual(c, c), attend(c, middle_norm), residual(c, c)])
        self.up: Any = nn.ModuleList()
        for level, w in reversed(list(enumerate(widths))):
            size = resolution(sides, level)
            blocks = []
            for _ in range(num_blocks + 1):
                blocks.append(residual(c + skips.pop(), w))
                c = w
            self.up.append(Level(blocks, [attention(w, size) for _ in blocks], double(w) if level else None))
        self.norm_out = group_norm(c, groups, norm_eps)
        self.conv_out = conv(c, channels, 3, padding=1)
        self._initialise()
        self._take_labels(classes, time_dim, class_embedding, width, freq_shift, guidance)      # last, as it draws numbers
        self._take_low_res(low_res, low_res_noise, time_dim, width, freq_shift)
        self.dequantizer = dequantizer_for(channels, dequantizer, axes)

    def _initialise(self) -> None:
        xavier_init(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                zero_init(module.conv2)
            elif isinstance(module, SelfAttention):
                zero_init(module.out)
        zero_init(self.conv_out)

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        waves = timestep_embedding(time, self.width, self.freq_shift)
        embedding = self.time(waves.to(self.conv_in.weight.dtype))
        embedding = F.silu(self._with_condition(embedding, condition)).to(embedding.dtype)
        x = self._joined(x, condition)
        h = self.conv_in(x if self.centred else 2 * x - 1)
        skips = [h]
        for level in self.down:
            for block, attention in level.pairs():
                h = attention(block(h, embedding))
                skips.append(h)
            if level.resample is not None:
                h = _resampled(level.resample, h, embedding)
                skips.append(h)
        first, attention, second = self.middle
        h = second(attention(first(h, embedding)), embedding)
        for level in self.up:
            for block, attention in level.pairs():
                h = attention(block(torch.cat([h, skips.pop()], dim=1), embedding))
            if level.resample is not None:
                h = _resampled(level.resample, h, embedding)
        return self.conv_out(F.silu(self.norm_out(h)))


def _resampled(module: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    return module(h, embedding) if isinstance(module, ResidualBlock) else module(h)
