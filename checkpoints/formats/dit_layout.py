"""Where each parameter of our `DiT` stands in the published .pt files and in diffusers' DiTTransformer2DModel, and how.

    first   our linear layer of flattened patches is their convolution of that stride
    time    they put cosines before sines: the two halves of the first layer of time change places
    last    their rows are (row, column, channel) of a patch, ours (channel, row, column), so that a learned variance stands
            behind the prediction
"""

import re
from collections.abc import Sequence

from torch import Tensor, nn

from scorefield.models.networks.dit import DiT

BLOCK_PARTS = {      # of a block: of the published code, of diffusers
    "told": ("adaLN_modulation.1", "norm1.linear"), "qkv": ("attn.qkv", "attn1.to_"), "out": ("attn.proj", "attn1.to_out.0"),
    "inner": ("mlp.fc1", "ff.net.0.proj"), "outer": ("mlp.fc2", "ff.net.2")}
PARTS = {      # of the network
    "first": ("x_embedder.proj", "pos_embed.proj"), "last_told": ("final_layer.adaLN_modulation.1", "proj_out_1"),
    "last": ("final_layer.linear", "proj_out_2"), "time.0": ("t_embedder.mlp.0", "linear_1"),
    "time.2": ("t_embedder.mlp.2", "linear_2"), "label": ("y_embedder.embedding_table", "")}
EMBEDDED = "transformer_blocks.{}.norm1.emb."


def published_keys(network: nn.Module) -> dict[str, str]:
    """For the name of each of our parameters the name of theirs in a .pt of the published code."""
    keys = {}
    for name in network.state_dict():
        part, _, kind = name.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(\w+)", part)
        keys[name] = f"blocks.{block[1]}.{BLOCK_PARTS[block[2]][0]}.{kind}" if block else f"{PARTS[part][0]}.{kind}"
    return keys


def diffusers_keys(network: nn.Module, layers: int) -> dict[str, list[str]]:
    """For the name of each of our parameters the names of theirs in diffusers: three that are joined for qkv, and those of
    all blocks, which are equal, for an embedding that ours share.
    """
    shared, keys = not len(network.block_times), {}      # type: ignore[arg-type]
    for name in network.state_dict():
        part, _, kind = name.rpartition(".")
        if block := re.fullmatch(r"blocks\.(\d+)\.(\w+)", part):
            place = f"transformer_blocks.{block[1]}.{BLOCK_PARTS[block[2]][1]}"
            keys[name] = [f"{place}{one}.{kind}" for one in "qkv"] if block[2] == "qkv" else [f"{place}.{kind}"]
        elif embedding := re.fullmatch(r"(?:block_)?(time|label)s?(?:\.(\d+))?(?:\.([02]))?", _numbered(part)):
            what = (f"timestep_embedder.{PARTS[f'time.{embedding[3]}'][1]}" if embedding[1] == "time"
                    else "class_embedder.embedding_table")
            own = int(embedding[2])
            places = range(layers) if shared else [own]
            keys[name] = [f"{EMBEDDED.format(i)}{what}.{kind}" for i in places]
        else:
            keys[name] = [f"{PARTS[part][1]}.{kind}"]
    return keys


def _numbered(part: str) -> str:
    """The name of an embedding with the number of its block: "time.0.2" for "time.2", "time.3.2" for "block_times.2.2"."""
    if found := re.fullmatch(r"block_(time|label)s\.(\d+)(.*)", part):
        return f"{found[1]}.{int(found[2]) + 1}{found[3]}"
    return re.sub(r"^(time|label)", r"\1.0", part)


def is_shared(name: str, parts: Sequence[str]) -> bool:
    """Whether the names of theirs are copies of one of our parameters, and not parts that are joined."""
    return len(parts) > 1 and ".qkv." not in name


def ours(name: str, value: Tensor, network: DiT) -> Tensor:
    """One of our parameters of theirs."""
    if name == "first.weight":
        return value.flatten(1)
    if name.startswith("last."):
        return value.unflatten(0, (network.patch ** len(network.sides), -1)).transpose(0, 1).flatten(0, 1)
    return _turned(name, value)


def theirs(name: str, value: Tensor, network: DiT) -> Tensor:
    """The inverse of `ours`."""
    if name == "first.weight":
        return value.unflatten(1, (-1, *[network.patch] * len(network.sides)))
    if name.startswith("last."):
        return value.unflatten(0, (-1, network.patch ** len(network.sides))).transpose(0, 1).flatten(0, 1)
    return _turned(name, value)


def _turned(name: str, value: Tensor) -> Tensor:
    first_of_time = re.fullmatch(r"(time|block_times\.\d+)\.0\.weight", name)
    return value.roll(value.shape[1] // 2, 1) if first_of_time else value
