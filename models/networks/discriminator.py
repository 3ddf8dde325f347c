"""A discriminator of patches, the second player of an autoencoder's training: Isola et al. 2017, "Image-to-Image Translation
with Conditional Adversarial Networks", section 3.2.2 (PatchGAN), as Rombach et al. 2022 use it.

Each of its answers sees one patch of the picture and is large where that looks like data. Its norms are GroupNorm where the
paper has BatchNorm: an answer then depends on its own picture alone, and no running statistics stand beside weights.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from scorefield.models.layers import group_norm
from scorefield.numerics.errors import ArgumentError

MOST = 3      # convolutions that halve the picture, as in the paper


class Discriminator(nn.Module):
    """Pictures (batch, channels, height, width) to a number for each patch, (batch, 1, rows, columns).

    sides     height and width, of at least 8 pixels; they are halved up to three times, and at least 2 x 2 patches remain
    channels  of the pictures
    width     channels after the first convolution, a multiple of 4; each further one has twice as many, up to 8 times

    Raises ArgumentError if the sizes do not fit. One use:

    >>> from scorefield.models import Discriminator
    >>> Discriminator((28, 28), channels=1, width=16)(torch.zeros(4, 1, 28, 28)).shape
    torch.Size([4, 1, 5, 5])
    """

    def __init__(self, sides: Sequence[int], channels: int, width: int = 64):
        super().__init__()
        if width < 4 or width % 4:
            raise ArgumentError(f"the width of a discriminator must be a multiple of 4, got {width}", "discriminator")
        if min(sides) < 8:
            raise ArgumentError(f"a discriminator needs pictures of at least 8 pixels a side, got {min(sides)}; set "
                                "discriminator to 0", "discriminator")
        halvings = 1
        while halvings < MOST and min(sides) >> (halvings + 1) >= 5:
            halvings += 1
        self.convs, self.norms, c = nn.ModuleList(), nn.ModuleList(), width
        self.enter = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        for i in range(halvings):
            wider = width * min(2 ** (i + 1), 8)
            last = i == halvings - 1
            self.convs.append(nn.Conv2d(c, wider, 4, stride=1 if last else 2, padding=1, bias=False))
            self.norms.append(group_norm(wider, None))
            c = wider
        self.out = nn.Conv2d(c, 1, 4, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.enter(x), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.leaky_relu(norm(conv(h)), 0.2)
        return self.out(h)
