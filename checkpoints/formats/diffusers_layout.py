"""Where each of our parameters stands in a file of diffusers' UNet2DModel."""

import re
from collections.abc import Sequence

from torch import Tensor, nn

# From our names to theirs, one substitution after the other.
NAMES = [(re.compile(pattern), to) for pattern, to in (
    (r"^time\.0", "time_embedding.linear_1"), (r"^time\.2", "time_embedding.linear_2"), (r"^norm_out", "conv_norm_out"),
    (r"^label\.0", "class_embedding.linear_1"), (r"^label\.2", "class_embedding.linear_2"),
    (r"^label\.weight", "class_embedding.weight"),
    (r"^fourier\.frequencies", "time_proj.weight"), (r"^middle\.1", "mid_block.attentions.0"),
    (r"^middle\.0", "mid_block.resnets.0"), (r"^middle\.2", "mid_block.resnets.1"),
    (r"^(down|up)\.(\d+)", r"\1_blocks.\2"), (r"\.blocks\.", ".resnets."), (r"\.attention\.", ".attentions.0."),
    (r"^(down|up)(.*)\.resample\.conv\.", r"\1\2.\1samplers.0.conv."), (r"^(down|up)(.*)\.resample\.", r"\1\2.resnet_\1."),
    (r"\.pyramid\.conv", ".skip_conv"), (r"\.head\.(norm|conv)", r".skip_\1"), (r"\.time\.", ".time_emb_proj."),
    (r"\.shortcut\.", ".conv_shortcut."), (r"\.norm\.", ".group_norm."), (r"\.out\.", ".to_out.0."),
)]
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}      # of attention, until 2023


def keys_of(network: nn.Module, old: bool = False) -> dict[str, list[str]]:
    """For the name of each of our parameters, the names of theirs that are joined in order to make it."""
    last, keys = len(getattr(network, "up", ())) - 1, {}
    for name in network.state_dict():
        key = name.replace(f"up.{last}.head.norm", "norm_out").replace(f"up.{last}.head.conv", "conv_out")
        for pattern, to in NAMES:
            key = pattern.sub(to, key)
        keys[name] = parts_of(key, old)
    return keys


def parts_of(key: str, old: bool) -> list[str]:
    """The names of what is joined under a name of theirs: queries, keys and values of attention, else itself."""
    parts = [key.replace(".qkv.", f".{part}.") for part in ("to_q", "to_k", "to_v")] if ".qkv." in key else [key]
    for new, word in OLD.items() if old else ():
        parts = [part.replace(f".{new}.", f".{word}.") for part in parts]
    return parts


def part_shape(name: str, ours: Sequence[int], parts: int) -> tuple[int, ...]:
    """The shape of each part of one of our parameters in their file."""
    matrix = name.endswith((".qkv.weight", ".out.weight"))
    return (ours[0] // parts, *ours[1:2 if matrix else None])


def turned(name: str, value: Tensor, flip: bool, negated: bool) -> Tensor:
    """Exchange the halves of the embedding of time, and of labels as numbers, and change the sign of the output; the inverse
    is the same function.
    """
    if flip and name in ("time.0.weight", "label.0.weight"):
        return value.roll(value.shape[1] // 2, 1)
    return -value if negated and ".head.conv." in name else value
