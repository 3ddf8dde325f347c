"""The diffusion transformer: patches of a picture as tokens, told of time and label by the scale and shift of every norm.

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers" (DiT), with adaLN-Zero:

    h  = x + gate_1 Attention(scale_1 LayerNorm(x) + shift_1)
    x' = h + gate_2 MLP(scale_2 LayerNorm(h) + shift_2)

where c, the sum of the embeddings of time and label, gives shifts, 1 - scales and gates of each block by SiLU and a linear
layer that starts at zero: every block starts as the identity, and the network at 0. Positions are fixed sines and cosines
(Vaswani et al. 2017), half of them of the column and half of the row. Bao et al. 2023, "All are Worth Words" (U-ViT, section
3.1), join blocks of the first half to those of the second by long skips: [x, skip] and a linear layer.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefield.models.conditions import LABEL, Condition
from scorefield.models.layers import Block, attended, check_switch, sides_of, timestep_embedding, xavier_init, zero_init
from scorefield.models.networks.dequantizer import dequantizer_for
from scorefield.models.networks.low_res import LowResNetwork
from scorefield.numerics.errors import ArgumentError

WAVES = 256      # of the embedding of time
# Width, layers and heads of the published networks (Peebles and Xie 2023, table 1).
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
MOST_PATCHES = 2**20


class TransformerBlock(Block):
    """(batch, tokens, width) and what it is told, (batch, width), to the tokens' next state; see the module.

    skip  whether a long skip ends here: it takes a third argument, an earlier state of the tokens
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, norm_eps: float, skip: bool):
        super().__init__()
        self.heads, self.norm_eps = heads, norm_eps
        self.told = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.skip = nn.Linear(2 * width, width) if skip else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, told: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip is not None:
            assert skip is not None
            x = self.skip(torch.cat([x, skip], dim=2))
        told = self.told(told)[:, None]
        shift, scale, gate, shift_2, scale_2, gate_2 = told.chunk(6, dim=2)
        x = torch.addcmul(x, gate, self._attention(_modulated(x, shift, scale, 1e-6)))
        h = F.gelu(self.inner(_modulated(x, shift_2, scale_2, self.norm_eps)), approximate="tanh")
        return torch.addcmul(x, gate_2, self.outer(self.dropout(h)))

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.dropout(self.out(attended(q, k, v).transpose(1, 2).flatten(2)))


class DiT(LowResNetwork):
    """Pictures (batch, channels, height, width), or series (batch, channels, length), and time (batch,) to a tensor of the
    first one's shape.

    image_size       both sides of square pictures, (height, width), or (length,) of series; all divisible by `patch`
    channels         of the picture or series
    patch            side of the square (length of the piece) that is one token
    size             "S", "B", "L" or "XL": the published network that gives width, layers and heads where these are None
    width            of a token; a multiple of 4 and of `heads`
    layers           transformer blocks
    heads            of attention
    mlp_ratio        width of the hidden layer of each block's MLP as a multiple
    dropout          of what attention gives and within the MLP
    skips            whether the first half of the blocks is joined to the second by long skips (U-ViT); they start as none
    freq_shift       of the embedding of time, see `timestep_embedding`: 1 as in diffusers, 0 as in the published code
    norm_eps         of the norm before each MLP; the other norms have 1e-6
    block_embedding  whether each block embeds time and label by weights of its own, as networks trained in diffusers do; the
                     first block's serve the last layer, too

    classes, guidance, dequantizer, low_res and low_res_noise are those of UNet. An example of DiT-XL/2, whose published
    675,129,632 parameters include the fixed positions (256 tokens of 1152 numbers), which are a buffer here:

    >>> from scorefield.models import DiT
    >>> with torch.device("meta"):
    ...     network = DiT(32, 4, size="XL", classes=1000)
    >>> sum(p.numel() for p in network.parameters()) + network.positions.numel()
    675111184
    >>> DiT(8, 1, patch=2, width=32, layers=2, heads=2)(torch.zeros(4, 1, 8, 8), torch.full((4,), 500.0)).shape
    torch.Size([4, 1, 8, 8])

    (The other 18,448 are of the last layer's second half, which `model.learned_variance` gives it.) Raises ArgumentError (a
    ValueError) if the sizes do not fit, and for an x of other sides.
    """

    axes = (1, 2)      # that x may have beside the batch's and the channels'
    last_layers = ("last",)

    def __init__(self, image_size: int | Sequence[int] = 32, channels: int = 4, patch: int = 2, size: str = "S",
                 width: int | None = None, layers: int | None = None, heads: int | None = None, mlp_ratio: float = 4.0,
                 dropout: float = 0.0, skips: bool = False, freq_shift: int = 1, norm_eps: float = 1e-6,
                 block_embedding: bool = False,
                 classes: int | None = None, guidance: Sequence[float] | None = None, dequantizer: int = 0,
                 low_res: int = 0, low_res_noise: bool = False):
        super().__init__()
        width, layers, heads = sizes_of(size, width, layers, heads)
        self.sides, self.patch, self.freq_shift = sides_of(image_size), patch, freq_shift
        _check(self.sides, patch, width, layers, heads, mlp_ratio, dropout, norm_eps)
        check_switch("freq_shift", freq_shift)
        if block_embedding and (guidance is not None or low_res_noise):
            raise ArgumentError("block_embedding is of networks of diffusers, which are told of time and label alone; leave "
                                "out guidance and low_res_noise", "block_embedding", "guidance", "low_res_noise")
        area, hidden = patch ** len(self.sides), max(1, round(mlp_ratio * width))
        self.time = _embedding_of_time(width)
        self.first = nn.Linear((channels + low_res) * area, width)
        pairs = (layers - 1) // 2 if skips else 0
        self.blocks: Any = nn.ModuleList(
            TransformerBlock(width, heads, hidden, dropout, norm_eps, skip=i >= layers - pairs) for i in range(layers))
        self.pairs = pairs
        self.last_told, self.last = nn.Linear(width, 2 * width), nn.Linear(width, channels * area)
        self.block_times: Any = nn.ModuleList(_embedding_of_time(width) for _ in range(layers - 1) if block_embedding)
        self.register_buffer("positions", positions([side // patch for side in self.sides], width), persistent=False)
        self.positions: Tensor
        self._initialise()
        self._take_labels(classes, width, guidance=guidance, waves=WAVES)      # these draw numbers, so they come last
        self.block_labels: Any = nn.ModuleList(
            nn.Embedding(self.classes + 1, width) for _ in self.block_times if self.classes is not None)
        for table in (self.label, *self.block_labels):
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=0.02)
        self._take_low_res(low_res, low_res_noise, width, WAVES, freq_shift)
        self.dequantizer = dequantizer_for(channels, dequantizer, len(self.sides))

    def _initialise(self) -> None:
        """As the published code: uniform by Glorot, the embedding of time normal, zero at the end of every branch."""
        xavier_init(self)
        for module in (*self.time, *(layer for time in self.block_times for layer in time)):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, TransformerBlock):
                zero_init(module.told)
                if module.skip is not None:
                    nn.init.eye_(module.skip.weight)      # (width, 2 width): what comes, and nothing of the skip
        zero_init(self.last_told)
        zero_init(self.last)

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        if tuple(x.shape[2:]) != self.sides:
            raise ArgumentError(f"this DiT was made for sides of {_shown(self.sides)}, got x of shape {tuple(x.shape)}", "x")
        told = self._told(time, condition)
        h = self.first(self._patches(self._joined(x, condition))) + self.positions
        kept = []
        for i, block in enumerate(self.blocks):
            if i < len(self.blocks) - self.pairs:
                h = block(h, told[i % len(told)])
                kept += [h] * (i < self.pairs)
            else:
                h = block(h, told[i % len(told)], kept.pop())
        shift, scale = self.last_told(told[0])[:, None].chunk(2, dim=2)
        return self._picture(self.last(_modulated(h, shift, scale, 1e-6)))

    def _told(self, time: Tensor, condition: Condition | None) -> list[Tensor]:
        """What all blocks are told, (batch, width); or what each of them is, where they have embeddings of their own."""
        waves = timestep_embedding(time, WAVES, self.freq_shift).to(self.first.weight.dtype)
        told = [self._with_condition(self.time(waves), condition)]
        for i, block_time in enumerate(self.block_times):
            of_time = block_time(waves)
            told.append(of_time if condition is None or self.classes is None else
                        of_time + self.block_labels[i](condition[LABEL]))
        return [F.silu(embedding) for embedding in told]

    def _patches(self, x: Tensor) -> Tensor:
        """(batch, channels, *sides) to (batch, tokens, channels and places of a patch)."""
        if x.ndim == 3:
            return x.unflatten(2, (-1, self.patch)).transpose(1, 2).flatten(2)
        x = x.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))      # (batch, channels, rows, p, columns, p)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _picture(self, h: Tensor) -> Tensor:
        """The inverse of `_patches`, of however many channels h has."""
        counts = [side // self.patch for side in self.sides]
        if len(counts) == 1:
            return h.unflatten(2, (-1, self.patch)).transpose(1, 2).flatten(2)
        h = h.unflatten(2, (-1, self.patch, self.patch)).unflatten(1, counts)
        return h.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def sizes_of(size: str, width: int | None = None, layers: int | None = None, heads: int | None = None
             ) -> tuple[int, int, int]:
    """Width, layers and heads: those given, else those of the published network `size`. ArgumentError for an unknown one."""
    if size not in SIZES:
        raise ArgumentError(f"unknown size {size!r}; choose from {', '.join(SIZES)}", "size")
    given = width, layers, heads
    first, second, third = (own if own is not None else published for own, published in zip(given, SIZES[size], strict=True))
    return first, second, third


def positions(counts: Sequence[int], width: int) -> Tensor:
    """The fixed positions of tokens, float32 (tokens, width): of a series of so many, or of (rows, columns).

    Sines and cosines of the place times frequencies that fall geometrically from 1, towards 1/10000; in pictures of the
    column, and then of the row (as the published code, whose first half is of the column).
    """
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in counts), indexing="ij")
    each = width // len(counts)
    frequencies = 10_000.0 ** (-torch.arange(each // 2, dtype=torch.float64) / (each / 2))
    waves = []
    for place in reversed(places):
        angles = place.flatten()[:, None] * frequencies
        waves += [angles.sin(), angles.cos()]
    return torch.cat(waves, dim=1).float()


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)      # one pass over memory


def _embedding_of_time(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))


def _shown(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


def _check(sides: Sequence[int], patch: int, width: int, layers: int, heads: int, mlp_ratio: float, dropout: float,
           norm_eps: float) -> None:
    """ArgumentError unless a DiT can have these."""
    if len(sides) not in DiT.axes:
        raise ArgumentError(f"a DiT takes 1 or 2 sides, got {_shown(sides)}", "image_size")
    if patch < 1:
        raise ArgumentError(f"patch must be at least 1, got {patch}", "patch")
    if min(sides) < 1:
        raise ArgumentError(f"a DiT needs sides of at least 1, got {_shown(sides)}", "image_size")
    if any(side % patch for side in sides):
        divisors = [n for n in range(1, 1 + min(64, *sides)) if not any(side % n for side in sides)]
        raise ArgumentError(f"a DiT with patch {patch} needs sides that {patch} divides, got {_shown(sides)}; choose a "
                            f"patch of {' or '.join(map(str, divisors[:8]))}", "image_size", "patch")
    if (patches := math.prod(side // patch for side in sides)) > MOST_PATCHES:
        raise ArgumentError(f"{_shown(sides)} with patch {patch} are {patches:,} patches, and a DiT takes at most "
                            f"{MOST_PATCHES:,}; choose a larger patch", "patch", "image_size")
    if width < 4 or width % 4 or heads < 1 or width % heads:
        raise ArgumentError(f"a DiT's width must be a multiple of 4 and of heads, got {width} with {heads} heads", "width",
                            "heads")
    if not 1 <= layers <= 1000 or not 0 < mlp_ratio <= 1000 or not 0 <= dropout < 1:
        raise ArgumentError(f"a DiT needs 1 <= layers <= 1000, 0 < mlp_ratio <= 1000 and 0 <= dropout < 1, got {layers}, "
                            f"{mlp_ratio} and {dropout}", "layers", "mlp_ratio", "dropout")
    if not 0 < norm_eps < 1:
        raise ArgumentError(f"a DiT's norm_eps must lie between 0 and 1, got {norm_eps}", "norm_eps")
