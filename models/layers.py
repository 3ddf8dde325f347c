"""Parts that the networks share: the embedding of time, residual blocks, attention, and resampling.

Their x is a picture (batch, channels, height, width), or a series (batch, channels, length) where they are made with
`axes` 1: a 3x3 convolution is then one over 3 places, and what is said of height and width holds for the length.

Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models", appendix B.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.utils.checkpoint import checkpoint

from scorefield.numerics.errors import ArgumentError

ATTENTION_ORDERS = ("qkv", "heads")
CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}      # by the number of axes


def timestep_embedding(time: Tensor, dim: int, freq_shift: int = 1) -> Tensor:
    """Sinusoidal embedding of `time` (batch,), in the network's units (0 to about 1000), as float32 (batch, dim).

    Frequencies fall geometrically from 1 to 1/10000 (Vaswani et al. 2017, as used by Ho et al. 2020), which with
    `freq_shift` 0 the next one would be; sines first, then cosines.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) / (half - freq_shift) * torch.arange(half, device=time.device))
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def zero_init(module: nn.Module) -> nn.Module:
    """The same module with all its parameters zero, so that its branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def xavier_init(network: nn.Module) -> None:
    """Every convolution and linear layer uniform over the mean fan, at scale 1; biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class GroupNorm(nn.GroupNorm):
    """GroupNorm; without gradients by way of float32 where PyTorch's kernel for bf16 takes five times as long. In
    forward-mode differentiation its input is made contiguous: PyTorch 2.13 has no derivative of it in channels_last.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous() and unpack_dual(x).tangent is not None:
            x = x.contiguous()
        if torch.is_grad_enabled() or not self._slow(x):
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)

    def _slow(self, x: Tensor) -> bool:      # in PyTorch 2.13, aten/src/ATen/native/cpu/group_norm_kernel.cpp
        return (x.ndim == 4 and x.device.type == "cpu" and x.dtype == torch.bfloat16
                and self.num_channels < 16 * self.num_groups and x.shape[2] * x.shape[3] < 1024
                and x.is_contiguous(memory_format=torch.channels_last))


def group_norm(channels: int, groups: int | None, eps: float = 1e-6) -> GroupNorm:
    """GroupNorm of `groups` groups, or of min(32, channels / 4); ValueError if that does not divide `channels`."""
    number = groups or min(32, channels // 4)
    if number < 1 or channels % number:
        advice = f"groups that divide {channels}" if groups else "a width that is a multiple of 4, above 128 of 32"
        raise ArgumentError(f"GroupNorm with {number} groups does not fit {channels} channels; choose {advice}",
                            *(("groups",) if groups else ("width", "multipliers")))
    return GroupNorm(number, channels, eps=eps)


def sides_of(image_size: int | Sequence[int]) -> tuple[int, ...]:
    """The sides of a picture or a series: (32, 32) for 32, and (height, width) or (length,) as they are."""
    return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


def resolution(sides: Sequence[int], level: int) -> int:
    """The resolution of a level, by which attention is chosen: its longer side, so that its square bounds the cost."""
    return max(sides) >> level


def check_sizes(image_size: int | Sequence[int], width: int, multipliers: Sequence[int], num_blocks: int, dropout: float,
                norm_eps: float, axes: Sequence[int] = (2,)) -> None:
    """ValueError unless a U-Net can have these; `axes` are the numbers of sides that it can have."""
    levels, sides = max(1, len(multipliers)), sides_of(image_size)
    factor, shown = 2 ** (levels - 1), " x ".join(map(str, sides if len({*sides}) > 1 else sides[:1]))
    if len(sides) not in axes:
        raise ArgumentError(f"this network takes {' or '.join(map(str, axes))} sides, got image_size {image_size}",
                            "image_size")
    if not all(1 <= side <= 2**16 for side in sides):
        raise ArgumentError(f"a U-Net needs pictures of 1 to {2**16:,} pixels a side, got {shown}", "image_size")
    if bad := [side for side in sides if side % factor]:
        below, fewest = bad[0] - bad[0] % factor, min(_halvings(side) for side in sides) + 1
        near = f"{below} or {below + factor}" if below else f"{factor}"
        what = "a length" if len(sides) == 1 else "an image_size"
        raise ArgumentError(f"a U-Net of {levels} levels needs {what} divisible by {factor}, "
                            f"got {shown}; instead of {bad[0]} it takes {near}, and with {shown} it can have at most "
                            f"{fewest} {'levels' if fewest > 1 else 'level'}, such as multipliers of "
                            f"{tuple(multipliers[:fewest])}", *(["image_size"] if len(sides) > 1 else []), "multipliers")
    if width < 4 or width % 4:
        raise ArgumentError(f"the U-Net's width must be a multiple of 4, got {width}", "width")
    if not 1 <= num_blocks <= 1000 or not multipliers or min(multipliers) < 1 or not 0 <= dropout < 1:
        raise ArgumentError(f"the U-Net needs 1 <= num_blocks <= 1000, multipliers >= 1 and 0 <= dropout < 1, got "
                            f"{num_blocks}, {tuple(multipliers)} and {dropout}", "num_blocks", "multipliers", "dropout")
    if not 0 < norm_eps < 1:
        raise ArgumentError(f"the U-Net's norm_eps must lie between 0 and 1, got {norm_eps}", "norm_eps")


def _halvings(side: int) -> int:
    """How often a side can be halved."""
    return (side & -side).bit_length() - 1


def check_switch(name: str, value: int) -> None:
    """ValueError unless `value` is 0 or 1."""
    if value not in (0, 1):
        raise ArgumentError(f"the U-Net's {name} is 0 or 1, got {value}", name)


class Block(nn.Module):
    """A part of a network whose activations can be computed again, and whose weights are gathered together."""


class ResidualBlock(Block):
    """GroupNorm, SiLU, 3x3 convolution, twice, with the time embedding in between, plus a shortcut, times `scale`.

    time_dim     of the embedding of time; None: the block is told no time
    groups, eps  of both norms, see `group_norm`
    resample     as in BigGAN, halves or doubles both branches: the main one after its first SiLU, and the shortcut
    projected    whether the shortcut of a block that resamples has a convolution
    scale_shift  time enters as (1 + s) GroupNorm(h) + b of the second norm, (s, b) its linear map (Dhariwal and Nichol 2021,
                 equation 1, adaptive group normalization), instead of being added to h
    """

    def __init__(self, c_in: int, c_out: int, time_dim: int | None, groups: int | None, dropout: float, scale: float = 1.0,
                 resample: nn.Module | None = None, eps: float = 1e-6, scale_shift: bool = False, axes: int = 2,
                 projected: bool = True):
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.norm1 = group_norm(c_in, groups, eps)
        self.conv1 = conv(c_in, c_out, 3, padding=1)
        self.time = None if time_dim is None else nn.Linear(time_dim, 2 * c_out if scale_shift else c_out)
        self.norm2 = group_norm(c_out, groups, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(c_out, c_out, 3, padding=1)
        plain = c_in == c_out and (resample is None or not projected)
        self.shortcut = nn.Identity() if plain else conv(c_in, c_out, 1)
        self.resample = nn.Identity() if resample is None else resample
        self.scale, self.scale_shift = scale, scale_shift

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        told = None if self.time is None else self.time(time)[(..., *[None] * (x.ndim - 2))]
        if self.scale_shift and told is not None:
            s, b = told.chunk(2, dim=1)
            h = torch.addcmul(b, self.norm2(h), 1 + s)      # one pass over memory
        else:
            h = self.norm2(h if told is None else h + told)
        h = self.conv2(self.dropout(F.silu(h)))
        return _scaled(self.shortcut(self.resample(x)) + h, self.scale)


class SelfAttention(Block):
    """Self-attention over all pixels (places of a series) in heads of `head_dim` channels, or one; added to its input, times
    `scale`.

    groups, eps  of the norm of its input, see `group_norm`; there is none if `norm` is False
    heads        their number, in place of their size
    order        of the rows of qkv: "qkv", those of all heads for q, then k, then v; "heads", those of each head together
    """

    def __init__(self, channels: int, groups: int | None, scale: float = 1.0, eps: float = 1e-6,
                 head_dim: int | None = None, norm: bool = True, axes: int = 2, heads: int | None = None,
                 order: str = "qkv"):
        super().__init__()
        if heads is not None:
            if head_dim is not None or heads < 1 or channels % heads:
                raise ArgumentError(f"attention to {channels} channels cannot have {heads} heads; attention_heads must "
                                    f"divide {channels}, and stands in place of attention_head_dim", "attention_heads")
            head_dim = channels // heads
        if order not in ATTENTION_ORDERS:
            raise ArgumentError(f"unknown attention_order {order!r}; choose from {', '.join(ATTENTION_ORDERS)}",
                                "attention_order")
        if head_dim is not None and (head_dim < 1 or channels % head_dim):
            raise ArgumentError(f"attention to {channels} channels cannot have heads of {head_dim} channels; "
                                f"attention_head_dim must divide {channels}", "attention_head_dim")
        self.heads = channels // (head_dim or channels)
        self.norm = group_norm(channels, groups, eps) if norm else nn.Identity()
        self.qkv = CONVOLUTIONS[axes](channels, 3 * channels, 1)
        self.out = CONVOLUTIONS[axes](channels, channels, 1)
        self.scale, self.order = scale, order

    def forward(self, x: Tensor) -> Tensor:
        rows = self.qkv(self.norm(x)).flatten(2)
        q, k, v = (rows.unflatten(1, (3, self.heads, -1)).unbind(1) if self.order == "qkv"
                   else rows.unflatten(1, (self.heads, 3, -1)).unbind(2))
        return _scaled(x + self.out(_attended(q, k, v).reshape(x.shape)), self.scale)


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """v softmax(q^T k / sqrt d)^T, for q, k and v (batch, heads, d, tokens).

    CPUs multiply matrices in bf16 3 times faster than PyTorch's fused attention there; the weights are kept for the
    backward pass, so only where they are no larger than q.
    """
    if q.device.type == "cpu" and q.shape[3] <= q.shape[2]:
        return v @ torch.softmax((q * q.shape[2] ** -0.5).mT @ k, dim=-1).mT
    q, k, v = (x.mT if x.stride(2) == 1 else x.mT.contiguous() for x in (q, k, v))      # as fused attention needs them
    return attended(q, k, v).mT


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt d) v, for q, k and v (batch, heads, tokens, d), by PyTorch's fused attention.

    By its formula on CPUs for few tokens, as `_attended`, and in forward-mode differentiation: the fused kernels have no
    such derivative. For second derivatives see numerics/attention.py.
    """
    few = q.device.type == "cpu" and q.shape[2] <= q.shape[3]
    if few or (not torch.compiler.is_compiling() and unpack_dual(q).tangent is not None):
        return torch.softmax((q * q.shape[3] ** -0.5) @ k.mT, dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x * scale      # a pass over memory saved


class MeanDown(nn.Module):
    """Halves height and width by the mean over 2 x 2 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if x.ndim == 4 else F.avg_pool1d(x, 2)


class NearestUp(nn.Module):
    """Doubles height and width by repetition."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Downsample(nn.Module):
    """Halves height and width by a strided convolution, padded by `padding` on all sides, or with 0 below and to the
    right as TensorFlow's SAME.
    """

    def __init__(self, channels: int, padding: int = 0, axes: int = 2):
        super().__init__()
        self.conv = CONVOLUTIONS[axes](channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if any(self.conv.padding) else F.pad(x, (0, 1) * (x.ndim - 2)))


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int, axes: int = 2):
        super().__init__()
        self.conv = CONVOLUTIONS[axes](channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return conv_of_doubled(x, self.conv)


def conv_of_doubled(x: Tensor, conv: nn.Conv1d | nn.Conv2d) -> Tensor:
    """The 3x3 convolution of x at twice its height and width, nearest neighbour.

    On CPUs as a transposed convolution of x itself, whose 4x4 kernel sums the weights that meet the same pixel: 4/9 of
    the multiplications. Where there are few pixels, its larger weights cost more than that saves; so in a series.
    """
    if x.ndim != 4 or x.device.type != "cpu" or x.shape[2] * x.shape[3] < 64:
        return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    meets = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]], dtype=conv.weight.dtype, device=x.device)
    weight = conv.weight.transpose(0, 1).flatten(2) @ torch.kron(meets, meets)
    return F.conv_transpose2d(x, weight.unflatten(2, (4, 4)), conv.bias, stride=2, padding=1)


def recompute_activations(network: nn.Module) -> None:
    """Activation checkpointing (Chen et al. 2016): from now on, in training, each `Block` of the network keeps only its
    input, and the backward pass computes the rest again, with the same dropout.

    Raises ValueError if the network has none.
    """
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    if not blocks:
        raise ArgumentError(f"the network {type(network).__name__} has no blocks whose activations could be computed "
                            "again; activation_checkpointing must be off", "activation_checkpointing")
    for block in blocks:
        block.forward = partial(_recomputed, block, block.forward)


def _recomputed(block: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return checkpoint(forward, *inputs, use_reentrant=False) if block.training else forward(*inputs)
