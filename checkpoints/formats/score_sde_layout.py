"""The network of a score_sde_pytorch checkpoint: where it stores each of our parameters, and which network it is.

It is one list of modules without names, in the order in which the reference (score_sde_pytorch) runs them:

    [Fourier frequencies], two linear layers of time, first convolution,
    on the way down, a level:  (block, [attention]) num_blocks times, then [resampling, [progressive input]]
    in the middle:             block, attention, block
    on the way up, a level:    block num_blocks + 1 times, [attention], [norm, convolution to the picture], [resampling]

`reference_order` walks an NCSNpp in that order, which gives the name of each parameter in the file. Three things differ
besides names. The 1x1 convolutions of attention and of DDPM's shortcuts are matrices (in, out) there and kernels (out, in,
1, 1) here. q, k and v are three layers there and one here. Variance-exploding networks give sigma score = -eps there: the
sign goes into the weights of the last convolutions, and every imported network predicts eps.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.layers import ResidualBlock, SelfAttention
from scorefield.models.networks.ncsnpp import ConvDown, ConvUp, Head, InputSkip, NCSNpp

# ---- our parameters in the reference's order ---------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where a file stores one of our parameters: the tensors at `keys`, joined in order along the first axis.

    matrix   the file holds (in, out) for our (out, in, 1, 1)
    negated  the file holds its negative
    """

    keys: tuple[str, ...]
    matrix: bool = False
    negated: bool = False

    def read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        parts = [tensors[key] for key in self.keys]
        joined = torch.cat([part.T[:, :, None, None] for part in parts] if self.matrix else parts)
        return -joined if self.negated else joined

    def split(self, value: Tensor) -> dict[str, Tensor]:
        """The inverse of `read`."""
        parts = (-value if self.negated else value).chunk(len(self.keys))
        return {key: (part[:, :, 0, 0].T if self.matrix else part).contiguous()
                for key, part in zip(self.keys, parts, strict=True)}

    def shape(self, ours: torch.Size) -> tuple[int, ...]:
        """The shape that each key should have, from that of our parameter."""
        out = ours[0] // len(self.keys)
        return (ours[1], out) if self.matrix else (out, *ours[1:])


def _block_parts(block: ResidualBlock, shortcut: str) -> Iterator[tuple[str, str]]:
    yield from (("norm1", "GroupNorm_0"), ("conv1", "Conv_0"), ("time", "Dense_0"), ("norm2", "GroupNorm_1"),
                ("conv2", "Conv_1"))
    if isinstance(block.shortcut, nn.Conv2d):
        yield "shortcut", shortcut


def reference_order(network: NCSNpp) -> Iterator[tuple[str, nn.Module]]:
    """The named modules of a network in the reference's order; a Head is two modules there, norm and convolution."""
    def named(module: nn.Module | None, name: str) -> Iterator[tuple[str, nn.Module]]:
        if isinstance(module, Head):
            yield f"{name}.norm", module.norm
            yield f"{name}.conv", module.conv
        elif module is not None and not isinstance(module, nn.Identity):
            yield name, module

    yield "time.0", network.time[0]
    yield "time.2", network.time[2]
    yield "conv_in", network.conv_in
    for i, level in enumerate(network.down):
        for j, (block, attention) in enumerate(zip(level.blocks, level.attentions, strict=True)):
            yield from named(block, f"down.{i}.blocks.{j}")
            yield from named(attention, f"down.{i}.attentions.{j}")
        yield from named(level.resample, f"down.{i}.resample")
        yield from named(level.pyramid, f"down.{i}.pyramid")
    for i, module in enumerate(network.middle):
        yield f"middle.{i}", module
    for i, level in enumerate(network.up):
        for j, block in enumerate(level.blocks):
            yield f"up.{i}.blocks.{j}", block
        yield from named(level.attention, f"up.{i}.attention")
        yield from named(level.head, f"up.{i}.head")
        yield from named(level.resample, f"up.{i}.resample")


def sources(network: NCSNpp, negated: bool) -> dict[str, Source]:
    """For the name of each of our parameters, its place in a file.

    negated  whether the file's network gives -eps
    """
    plan: dict[str, Source] = {}
    first = 0
    if network.fourier is not None:
        plan["fourier.frequencies"], first = Source(("all_modules.0.W",)), 1
    shortcut = "Conv_2" if network.block == "biggan" else "NIN_0"
    for index, (name, module) in enumerate(reference_order(network), first):
        here = f"all_modules.{index}"
        if isinstance(module, ResidualBlock):
            for mine, theirs in _block_parts(module, shortcut):
                if theirs == "NIN_0":
                    plan[f"{name}.{mine}.weight"] = Source((f"{here}.NIN_0.W",), matrix=True)
                    plan[f"{name}.{mine}.bias"] = Source((f"{here}.NIN_0.b",))
                else:
                    plan |= {f"{name}.{mine}.{leaf}": Source((f"{here}.{theirs}.{leaf}",)) for leaf in ("weight", "bias")}
        elif isinstance(module, SelfAttention):
            plan |= {f"{name}.norm.{leaf}": Source((f"{here}.GroupNorm_0.{leaf}",)) for leaf in ("weight", "bias")}
            for mine, numbers in (("qkv", (0, 1, 2)), ("out", (3,))):
                plan[f"{name}.{mine}.weight"] = Source(tuple(f"{here}.NIN_{n}.W" for n in numbers), matrix=True)
                plan[f"{name}.{mine}.bias"] = Source(tuple(f"{here}.NIN_{n}.b" for n in numbers))
        elif isinstance(module, ConvDown | ConvUp | InputSkip):
            theirs = "Conv_0" if isinstance(module, InputSkip) or not module.fir else "Conv2d_0"
            plan |= {f"{name}.conv.{leaf}": Source((f"{here}.{theirs}.{leaf}",)) for leaf in ("weight", "bias")}
        else:
            last = name.endswith("head.conv")
            plan |= {f"{name}.{leaf}": Source((f"{here}.{leaf}",), negated=negated and last) for leaf in ("weight", "bias")}
    return plan


# ---- which network ------------------------------------------------------------------------------------------------


def infer_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of NCSNpp, inferred from the names and shapes of a file's tensors.

    Some settings cannot be inferred and are as published unless given: the image size (attention is assumed at 16 x 16;
    None without attention), skip_rescale (on except with DDPM blocks), groups, dropout, and fir if no filtered convolution
    shows it (on if input or output is progressive).
    Raises ValueError if the tensors are not those of an NCSNpp.
    """
    modules: dict[int, _Shapes] = {}
    try:
        for key, tensor in tensors.items():
            if key.startswith("all_modules."):
                _, index, leaf = key.split(".", 2)
                modules.setdefault(int(index), _Shapes(int(index)))[leaf] = tuple(tensor.shape)
        for i in range(len(modules)):
            if i not in modules:
                raise ValueError(f"all_modules.{i}.* is missing")
        return _parse([modules[i] for i in range(len(modules))])
    except (ArithmeticError, LookupError, ValueError) as error:
        raise ValueError(f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)) from None


class _Shapes(dict[str, tuple[int, ...]]):
    """The shapes of one module's tensors, by name; a missing name raises KeyError with the whole key."""

    def __init__(self, index: int):
        super().__init__()
        self.index = index

    def __missing__(self, leaf: str) -> tuple[int, ...]:
        raise KeyError(f"all_modules.{self.index}.{leaf}")

    def has(self, part: str) -> bool:
        return any(leaf.startswith(f"{part}.") for leaf in self)


@dataclass
class _Level:
    """The layers of one resolution on the way down."""

    width: int
    blocks: int = 0
    attention: bool = False


class _WayDown:
    """The settings inferred from the modules on the way down, one after the other."""

    def __init__(self, width: int, biggan: bool):
        self.levels, self.channels, self.biggan = [_Level(width)], width, biggan
        self.progressive_input, self.combine, self.fir = "none", "sum", False

    def follow(self, modules: list[_Shapes], start: int) -> int:
        """Follow the modules from `start` to the way up, which begins at the first block with more input channels than the
        block before it gives.

        Returns the index of that block; ValueError if there is none.
        """
        for i, module in enumerate(modules[start:], start):
            if module.has("Dense_0") or module.has("GroupNorm_1"):
                if module["Conv_0.weight"][1] != self.channels:
                    return i
                self._block(module)
            elif "NIN_3.W" in module or "NIN_0.W" in module:
                self.levels[-1].attention = bool(self.levels[-1].blocks)
            else:
                self._convolution(module, modules[i + 1:i + 2])
        raise ValueError("its blocks end before the way up")

    def _block(self, module: _Shapes) -> None:
        c_out, c_in = module["Conv_0.weight"][:2]
        if self.biggan and c_in == c_out and module.has("Conv_2"):      # it halves the picture
            self.levels.append(_Level(self.channels))
        else:
            self.levels[-1].blocks += 1
            self.channels = self.levels[-1].width = c_out

    def _convolution(self, module: _Shapes, following: list[_Shapes]) -> None:
        self.fir |= module.has("Conv2d_0")
        kernel = module["Conv2d_0.weight" if module.has("Conv2d_0") else "Conv_0.weight"]
        if kernel[2] == 1:
            self.progressive_input = "input_skip"
            if following[0]["Conv_0.weight"][1] == 2 * self.channels:
                self.combine, self.channels = "cat", 2 * self.channels
        elif self.levels[-1].blocks and not self.biggan:
            self.levels.append(_Level(self.channels))
        else:
            self.progressive_input = "residual"


def _parse(modules: list[_Shapes]) -> dict[str, Any]:
    """The settings of NCSNpp, inferred from a file's modules."""
    fourier = "W" in modules[0]
    start = 3 if fourier else 2
    width, channels = modules[start]["weight"][:2]
    way = _WayDown(width, biggan=any(module.has("Conv_2") for module in modules))
    up, levels = way.follow(modules, start + 1), way.levels
    levels[-1].blocks -= 2      # these belong to the middle, and so does the last attention
    attended = [i for i, level in enumerate(levels[:-1]) if level.attention]
    if "NIN_3.W" in modules[up - 4]:      # the last level's own attention, before the middle's
        attended.append(len(levels) - 1)
    heads = sum("weight" in module and len(module["weight"]) == 1 for module in modules[up:])
    progressive = "output_skip" if heads > 1 else "none"
    image_size = 16 << attended[0] if attended else None
    return {
        "image_size": image_size, "channels": channels, "width": width,
        "multipliers": tuple(level.width // width for level in levels), "num_blocks": levels[0].blocks,
        "attention_resolutions": tuple((image_size or 0) >> i for i in attended),
        "block": "biggan" if way.biggan else "ddpm",
        "embedding": "fourier" if fourier else "positional", "progressive_input": way.progressive_input,
        "progressive": progressive, "combine": way.combine, "skip_rescale": way.biggan, "groups": None if way.biggan else 32,
        "fir": way.fir or (way.biggan and (way.progressive_input, progressive) != ("none", "none")),
    }
