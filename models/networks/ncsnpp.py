"""The networks of Score SDE: DDPM as published there, DDPM++ and NCSN++, and their deep variants.

Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 4.4 and appendix H. All are one U-Net whose
parts are chosen by name:

                  block   embedding   fir    skip_rescale  progressive_input  progressive   num_blocks  parameters
    DDPM          ddpm    positional  no     no            none               none          2           35,218,947
    DDPM++        biggan  positional  no     yes           none               none          4           61,804,419
    DDPM++ deep   biggan  positional  no     yes           none               none          8           106,632,579
    NCSN++ (VP)   biggan  positional  yes    yes           residual           none          4           62,693,251
    NCSN++ (VE)   biggan  fourier     yes    yes           residual           none          4           62,758,915
      deep        biggan  fourier     yes    yes           residual           none          8           107,587,075
    256 x 256     biggan  fourier     yes    yes           input_skip         output_skip   2           65,574,549

at width 128 and multipliers (1, 2, 2, 2) or, for 256 x 256, (1, 1, 2, 2, 2, 2, 2). Unlike the U-Net of Ho et al.
(unet.py) they attend once a level on the way up, after its last block.

What surrounds the network is the Denoiser's: parametrization "eps" throughout (the paper's VE networks give
-eps = sigma score; the network does not divide by sigma), time_input "log_sigma" for the Fourier embedding,
"999t" for the positional one, "index" for chains. Data in [0, 1] need `centred=False`, data in [-1, 1] `centred=True`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefield.models.conditions import Condition
from scorefield.models.layers import (
    MeanDown,
    NearestUp,
    ResidualBlock,
    SelfAttention,
    check_sizes,
    check_switch,
    conv_of_doubled,
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

BLOCKS = ("biggan", "ddpm")
EMBEDDINGS = ("positional", "fourier")
PROGRESSIVE = ("none", "output_skip")
PROGRESSIVE_INPUT = ("none", "input_skip", "residual")
COMBINE = ("sum", "cat")


# ---- resampling --------------------------------------------------------------------------------------------------


def binomial_kernel() -> Tensor:
    """(1, 3, 3, 1) times itself, summing to one, as (1, 1, 4, 4): the low-pass filter of FIR resampling."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return row.outer(row)[None, None]


def _each_channel(kernel: Tensor, x: Tensor) -> dict[str, Any]:
    """The kernel (1, 1, 4, 4) as the arguments of a convolution that filters each channel of x separately."""
    return {"weight": kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4), "groups": x.shape[1]}


class FIRDown(nn.Module):
    """Halves height and width by a low-pass filter (Zhang 2019; Karras et al. 2020): y_o = sum_j k_j x_(2 o + j - 1)."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", binomial_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, stride=2, padding=1, **_each_channel(self.kernel, x))


class FIRUp(nn.Module):
    """Doubles height and width: zeros in between, then the low-pass filter times 4, the transpose of 4 FIRDown."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", 4 * binomial_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, stride=2, padding=1, **_each_channel(self.kernel, x))


def shrink(fir: bool) -> nn.Module:
    """Halving without parameters."""
    return FIRDown() if fir else MeanDown()


def grow(fir: bool) -> nn.Module:
    """Doubling without parameters."""
    return FIRUp() if fir else NearestUp()


class ConvDown(nn.Module):
    """A strided 3x3 convolution: after the low-pass filter, or padded below and to the right as TensorFlow's SAME."""

    def __init__(self, c_in: int, c_out: int, fir: bool):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride=2)
        self.fir = fir
        self.kernel: Tensor
        self.register_buffer("kernel", binomial_kernel() if fir else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fir:
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(F.conv2d(x, padding=2, **_each_channel(self.kernel, x)))


class ConvUp(nn.Module):
    """Doubling, then a 3x3 convolution; with `fir` zeros in between, the convolution, then the filter times 4."""

    def __init__(self, c_in: int, c_out: int, fir: bool):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.fir = fir
        self.kernel: Tensor
        self.register_buffer("kernel", 4 * binomial_kernel() if fir else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fir:
            return conv_of_doubled(x, self.conv)
        weight = self.conv.weight.flip(2, 3).transpose(0, 1)      # a correlation, written as a transposed convolution
        h = F.conv_transpose2d(x, weight, stride=2)
        h = F.conv2d(h, padding=1, **_each_channel(self.kernel, h))
        return h if self.conv.bias is None else h + self.conv.bias[:, None, None]


# ---- blocks ------------------------------------------------------------------------------------------------------


class FourierFeatures(nn.Module):
    """Sines, then cosines of 2 pi f time at `number` fixed f ~ N(0, scale^2) (Tancik et al. 2020); always in float32.

    f is a parameter, since the published networks count it among theirs, but never trained.
    """

    def __init__(self, number: int, scale: float):
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(number) * scale, requires_grad=False)

    def _apply(self, fn: Any, recurse: bool = True) -> "FourierFeatures":
        kept = self.frequencies.data      # in bfloat16 they would be other frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype != kept.dtype:
            self.frequencies.data = kept.to(self.frequencies.device)
        return self

    def forward(self, time: Tensor) -> Tensor:
        angles = time.float()[:, None] * self.frequencies * (2 * math.pi)      # in this order, rounded as published
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Head(nn.Module):
    """GroupNorm, SiLU and a 3x3 convolution to a picture."""

    def __init__(self, c_in: int, channels: int, groups: int | None, eps: float = 1e-6):
        super().__init__()
        self.norm = group_norm(c_in, groups, eps)
        self.conv = nn.Conv2d(c_in, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(h)))


class InputSkip(nn.Module):
    """Joins the shrunk input to the features: a 1x1 convolution of it, added to them or beside them."""

    def __init__(self, channels: int, c: int, combine: str):
        super().__init__()
        self.conv = nn.Conv2d(channels, c, 1)
        self.combine = combine

    def forward(self, pyramid: Tensor, h: Tensor) -> Tensor:
        skip = self.conv(pyramid)
        return torch.cat([skip, h], dim=1) if self.combine == "cat" else skip + h


class DownLevel(nn.Module):
    """The blocks of one resolution, an attention or none after each, then the way to the next resolution.

    resample  to the next resolution; None at the last
    pyramid   ConvDown ("residual") or InputSkip ("input_skip") of the progressive input there, or None
    """

    def __init__(self, blocks: list[nn.Module], attentions: list[nn.Module], resample: nn.Module | None,
                 pyramid: nn.Module | None):
        super().__init__()
        self.blocks, self.attentions = nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.resample, self.pyramid = resample, pyramid


class UpLevel(nn.Module):
    """The blocks of one resolution, one attention or none after the last, then the way to the next resolution.

    head      this resolution's part of the picture ("output_skip"), or None
    resample  to the next resolution; None at the last
    """

    def __init__(self, blocks: list[nn.Module], attention: nn.Module, head: nn.Module | None,
                 resample: nn.Module | None):
        super().__init__()
        self.blocks, self.attention = nn.ModuleList(blocks), attention
        self.head, self.resample = head, resample


def _resampled(block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    return block(h, embedding) if isinstance(block, ResidualBlock) else block(h)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ArgumentError(f"unknown {name} {value!r}; choose from {', '.join(allowed)}", name)


class NCSNpp(LowResNetwork):
    """Pictures (batch, channels, height, width) and time (batch,) to a tensor of the first one's shape; see the module.

    image_size, channels, width, multipliers, num_blocks, attention_resolutions, dropout, norm_eps, attention_head_dim,
    freq_shift, classes, class_embedding ("timestep" only with positional embedding of time), scale_shift, middle_norm,
    dequantizer, low_res and low_res_noise are those of UNet, and

    block                  "biggan": residual blocks resample, too; "ddpm": strided convolutions do
    embedding              of time: "positional" or "fourier" (random fixed frequencies, of what is best log sigma)
    fourier_scale          standard deviation of those frequencies
    fir                    resample with the low-pass filter (1, 3, 3, 1)
    skip_rescale           divide every sum of two branches by sqrt 2
    progressive_input      "none", "input_skip" or "residual": the shrunk input joins the way down at each level
    progressive            "none" or "output_skip": the picture is a sum of each level's, enlarged
    combine                "sum" or "cat", for "input_skip"
    groups                 of every GroupNorm; None: a quarter of its channels, at most 32
    centred                False: data lie in [0, 1] and the network sees 2 x - 1
    last_label             if given, positional time counts down from it, as the published SMLD networks do

    Raises ValueError for an unknown word or if the sizes do not fit.
    """

    def __init__(self, image_size: int | Sequence[int] = 32, channels: int = 3, width: int = 128,
                 multipliers: Sequence[int] = (1, 2, 2, 2), num_blocks: int = 4,
                 attention_resolutions: Sequence[int] = (16,), dropout: float = 0.1, block: str = "biggan",
                 embedding: str = "positional", fourier_scale: float = 16.0, fir: bool = False,
                 skip_rescale: bool = True, progressive_input: str = "none", progressive: str = "none",
                 combine: str = "sum", groups: int | None = None, centred: bool = True, last_label: int | None = None,
                 norm_eps: float = 1e-6, attention_head_dim: int | None = None, freq_shift: int = 1,
                 classes: int | None = None, class_embedding: str = "table", scale_shift: bool = False,
                 middle_norm: bool = True, dequantizer: int = 0, low_res: int = 0, low_res_noise: bool = False,
                 guidance: Sequence[float] | None = None):
        super().__init__()
        for name, value, allowed in (("block", block, BLOCKS), ("embedding", embedding, EMBEDDINGS),
                                     ("progressive_input", progressive_input, PROGRESSIVE_INPUT),
                                     ("progressive", progressive, PROGRESSIVE), ("combine", combine, COMBINE)):
            _one_of(name, value, allowed)
        check_sizes(image_size, width, multipliers, num_blocks, dropout, norm_eps)
        check_switch("freq_shift", freq_shift)
        if class_embedding == "timestep" and embedding == "fourier":
            raise ArgumentError("class_embedding 'timestep' needs embedding 'positional', got 'fourier', whose features are "
                                "of log sigma; choose class_embedding 'table'", "class_embedding", "embedding")
        self.width, self.centred, self.last_label, self.freq_shift = width, centred, last_label, freq_shift
        self.progressive_input = progressive_input
        self.scale = math.sqrt(0.5) if skip_rescale else 1.0
        self.block, self.fir = block, fir
        widths, time_dim = [width * m for m in multipliers], 4 * width
        last, sides = len(widths) - 1, sides_of(image_size)

        def residual(c_in: int, c_out: int, resample: nn.Module | None = None) -> ResidualBlock:
            return ResidualBlock(c_in, c_out, time_dim, groups, dropout, self.scale, resample, norm_eps, scale_shift)

        def attend(c: int, norm: bool = True) -> nn.Module:
            return SelfAttention(c, groups, self.scale, norm_eps, attention_head_dim, norm)

        def attention(c: int, size: int) -> nn.Module:
            return attend(c) if size in attention_resolutions else nn.Identity()

        def down(c: int) -> nn.Module:
            return residual(c, c, shrink(fir)) if block == "biggan" else ConvDown(c, c, fir)

        def up(c: int) -> nn.Module:
            return residual(c, c, grow(fir)) if block == "biggan" else ConvUp(c, c, fir)

        self.time = nn.Sequential(nn.Linear(2 * width if embedding == "fourier" else width, time_dim), nn.SiLU(),
                                  nn.Linear(time_dim, time_dim))
        self.conv_in = nn.Conv2d(channels + low_res, width, 3, padding=1)
        self.shrink, self.grow = shrink(fir), grow(fir)      # of the progressive input and output
        self.down: Any = nn.ModuleList()
        skips, c, c_pyramid = [width], width, channels
        for level, w in enumerate(widths):
            blocks: list[nn.Module] = []
            for _ in range(num_blocks):
                blocks.append(residual(c, w))
                skips.append(w)
                c = w
            attentions = [attention(c, resolution(sides, level)) for _ in blocks]
            resample: nn.Module | None = None
            pyramid: nn.Module | None = None
            if level < last:
                resample = down(c)
                if progressive_input == "input_skip":
                    pyramid = InputSkip(channels, c, combine)
                    c = 2 * c if combine == "cat" else c
                elif progressive_input == "residual":
                    pyramid, c_pyramid = ConvDown(c_pyramid, c, fir), c
                skips.append(c)
            self.down.append(DownLevel(blocks, attentions, resample, pyramid))
        self.middle = nn.ModuleList([residual(c, c), attend(c, middle_norm), residual(c, c)])
        self.up: Any = nn.ModuleList()
        for level, w in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(num_blocks + 1):
                blocks.append(residual(c + skips.pop(), w))
                c = w
            head = Head(c, channels, groups, norm_eps) if progressive == "output_skip" or level == 0 else None
            self.up.append(UpLevel(blocks, attention(c, resolution(sides, level)), head, up(c) if level else None))
        self.fourier = FourierFeatures(width, fourier_scale) if embedding == "fourier" else None
        self.last_layers = tuple(f"up.{i}.head.conv" for i, level in enumerate(self.up) if level.head is not None)
        self._initialise()
        self._take_labels(classes, time_dim, class_embedding, width, freq_shift, guidance)      # last, as it draws numbers
        self._take_low_res(low_res, low_res_noise, time_dim, width, freq_shift)
        self.dequantizer = dequantizer_for(channels, dequantizer)

    def _initialise(self) -> None:
        """Variance scaling over the mean fan: scale 1, 0.1 in attention, 0 at the end of every branch."""
        xavier_init(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                zero_init(module.conv2)
                if self.block == "ddpm" and isinstance(module.shortcut, nn.Conv2d):
                    nn.init.xavier_uniform_(module.shortcut.weight, math.sqrt(0.1))
            elif isinstance(module, SelfAttention):
                q_k_v = module.qkv.weight.data.chunk(3)      # each by its own fans
                for weight in q_k_v:
                    nn.init.xavier_uniform_(weight, math.sqrt(0.1))
                zero_init(module.out)
            elif isinstance(module, Head):
                zero_init(module.conv)

    def embed(self, time: Tensor, condition: Condition | None = None) -> Tensor:
        """The embedding of time (batch,), and of the label if it takes one, that every residual block sees."""
        if self.fourier is not None:
            waves = self.fourier(time)
        else:
            label = time if self.last_label is None else self.last_label - time
            waves = timestep_embedding(label, self.width, self.freq_shift)
        embedding = self.time(waves.to(self.conv_in.weight.dtype))
        return F.silu(self._with_condition(embedding, condition)).to(embedding.dtype)

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        embedding = self.embed(time, condition)
        pyramid, x = x, self._joined(x, condition)
        pyramid, x = (pyramid, x) if self.centred else (2 * pyramid - 1, 2 * x - 1)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                h = attention(block(h, embedding))
                skips.append(h)
            if level.resample is not None:
                h = _resampled(level.resample, h, embedding)
                if self.progressive_input == "residual":
                    h = pyramid = (level.pyramid(pyramid) + h) * self.scale
                elif self.progressive_input == "input_skip":
                    pyramid = self.shrink(pyramid)
                    h = level.pyramid(pyramid, h)
                skips.append(h)
        first, attention, second = self.middle
        h = second(attention(first(h, embedding)), embedding)
        picture = None
        for level in self.up:
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            h = level.attention(h)
            if level.head is not None:
                picture = level.head(h) if picture is None else self.grow(picture) + level.head(h)
            if level.resample is not None:
                h = _resampled(level.resample, h, embedding)
        assert picture is not None      # the last level always has a head
        return picture
