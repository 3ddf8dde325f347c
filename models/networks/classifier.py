"""A classifier of noisy pictures or series: the encoder half of the U-Net, pooled, with a logit for each class.

Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4.1 and appendix H: what is told of time
enters every residual block, so that the answer fits the noise. They pool by attention; here it is the mean over the pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from scorefield.models.layers import (
    CONVOLUTIONS,
    Downsample,
    ResidualBlock,
    SelfAttention,
    check_sizes,
    group_norm,
    resolution,
    sides_of,
    timestep_embedding,
    xavier_init,
    zero_init,
)
from scorefield.models.networks.unet import Level
from scorefield.numerics.errors import ArgumentError


class Classifier(nn.Module):
    """(batch, channels, height, width) or (batch, channels, length), and time (batch,) to logits (batch, classes), which
    start at zero.

    image_size             both sides of square pictures, (height, width), or (length,); divisible by 2 ** (levels - 1)
    channels               of the picture or series
    classes                how many there are
    width                  channels of the first level
    multipliers            width of each level as a multiple, from full resolution down
    num_blocks             residual blocks a level
    attention_resolutions  resolutions (longer sides) with self-attention
    dropout                inside residual blocks
    attention_head_dim     channels of a head of attention; None: one head of all
    scale_shift            residual blocks scale and shift their second norm by time, see `ResidualBlock`

    Raises ArgumentError if the sizes do not fit.
    """

    axes = (1, 2)      # that x may have beside the batch's and the channels'

    def __init__(self, image_size: int | Sequence[int] = 32, channels: int = 3, classes: int = 10, width: int = 64,
                 multipliers: Sequence[int] = (1, 2, 2), num_blocks: int = 2, attention_resolutions: Sequence[int] = (8,),
                 dropout: float = 0.1, attention_head_dim: int | None = None, scale_shift: bool = False):
        super().__init__()
        check_sizes(image_size, width, multipliers, num_blocks, dropout, 1e-6, self.axes)
        if classes < 2:
            raise ArgumentError(f"a classifier needs at least 2 classes, got {classes}", "classes")
        self.width, groups, time_dim, c = width, min(32, width // 4), 4 * width, width
        sides = sides_of(image_size)
        axes = len(sides)
        self.time = nn.Sequential(nn.Linear(width, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.conv_in = CONVOLUTIONS[axes](channels, width, 3, padding=1)
        self.down: Any = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            blocks = []
            for _ in range(num_blocks):
                blocks.append(ResidualBlock(c, width * multiplier, time_dim, groups, dropout, scale_shift=scale_shift,
                                            axes=axes))
                c = width * multiplier
            attend = resolution(sides, level) in attention_resolutions
            attentions: list[nn.Module] = [
                SelfAttention(c, groups, head_dim=attention_head_dim, axes=axes) if attend else nn.Identity()
                for _ in range(num_blocks)]
            self.down.append(Level(blocks, attentions, Downsample(c, axes=axes) if level < len(multipliers) - 1 else None))
        self.norm_out = group_norm(c, groups)
        xavier_init(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                zero_init(module.conv2)
            elif isinstance(module, SelfAttention):
                zero_init(module.out)
        self.logits = zero_init(nn.Linear(c, classes))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.logits(F.silu(self.norm_out(self.features(x, time)[-1])).mean(tuple(range(2, x.ndim))))

    def features(self, x: Tensor, time: Tensor) -> list[Tensor]:
        """What each level gives, (batch, channels, *sides), from full resolution down."""
        embedding = F.silu(self.time(timestep_embedding(time, self.width).to(self.conv_in.weight.dtype)))
        h, found = self.conv_in(x), list[Tensor]()
        for level in self.down:
            for block, attention in level.pairs():
                h = attention(block(h, embedding))
            found.append(h)
            if level.resample is not None:
                h = level.resample(h)
        return found
