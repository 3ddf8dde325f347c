"""Read checkpoints of openai's improved-diffusion and guided-diffusion: a .pt with the state dict of their UNetModel.

    time_embed.0, .2            linear layers of the embedding of time: cosines, then sines; our halves change places
    label_emb                   a row for each label
    input_blocks.0.0            the first convolution; after it num_blocks blocks a level, and one that halves the picture
    input_blocks.N.0, .1        a residual block (in_layers, emb_layers, out_layers, skip_connection), attention (norm, qkv,
                                proj_out) if the level has it; or .0.op, the strided convolution
    middle_block.0, .1, .2      residual block, attention, residual block
    output_blocks.N.0, .1, .2   the same on the way up, and last in a level .conv of the doubled picture, or a residual block
    out.0, out.2                norm and last convolution, of twice the channels if the variance is learned

The network is a `UNet` with groups 32, norm_eps 1e-5, freq_shift 0 and downsample_padding 1. Its settings are read off the
names and shapes. What a file does not tell has the default of their programs, unless the config says otherwise:

    sde                         ddpm with schedule linear and steps 1000
    model.time_input            index; index1000 for another number of steps (their rescale_timesteps)
    model.attention_heads       4 (num_heads); model.attention_head_dim (num_head_channels) replaces it
    model.attention_order       heads; qkv is their use_new_attention_order
    model.parametrization       eps; x0 is their predict_xstart
    data.image_size             that of the published networks with these multipliers
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from scorefield.checkpoints.checkpoint import (
    Checkpoint,
    Config,
    merged,
    other_types,
    outline_of,
    require_dense,
    require_fit,
    require_network,
)
from scorefield.checkpoints.formats.pickles import read_pickle
from scorefield.models.layers import SelfAttention, resolution

SUFFIX = ".pt"
SIZES = {(1, 2, 2, 2): 32, (1, 2, 3, 4): 64, (1, 1, 2, 3, 4): 128, (1, 1, 2, 2, 4, 4): 256}      # of published networks
HEADS = 4
KEYS = {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"}
# What a config may say beside a file, since that does not tell it, or since it is of training.
ASSUMED = ("attention_heads", "attention_head_dim", "attention_order", "time_input", "parametrization", "dropout",
           "attention_resolutions")
PARTS = (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time", "emb_layers.1"), ("norm2", "out_layers.0"),
         ("conv2", "out_layers.3"), ("shortcut", "skip_connection"), ("out", "proj_out"))


def recognises(path: Path) -> bool:
    """Whether `path` is a .pt."""
    return path.suffix == SUFFIX and path.is_file()


def read(path: Path, config: Config | None = None) -> Checkpoint:
    """The checkpoint in a .pt, whose weights are averaged or not as the program that wrote it named the file.

    config  what the file does not store, see above

    Raises OSError if the file cannot be read, and ValueError of one line if it is truncated, altered, of another program or
    would run code, if it holds another network of these programs, or if keys and shapes do not fit.
    """
    path, given = Path(path), config or {}
    tensors = read_pickle(path)
    if not isinstance(tensors, dict) or not KEYS <= set(tensors):
        found = ", ".join(map(str, list(tensors)[:4])) if isinstance(tensors, dict) else type(tensors).__name__
        raise ValueError(f"{path} is not a UNetModel of improved-diffusion or guided-diffusion, nor a DiT: expected keys "
                         f"such as input_blocks.0.0.weight, time_embed.0.weight and out.2.weight, found {found or 'none'}; "
                         "give the state dict of the network alone (a classifier cannot be read)")
    require_dense(tensors, path)
    told, note = _told(tensors, given, path)
    require_network(told, given, ASSUMED, path)
    resolved = merged(told, given)
    network = outline_of(resolved, path)
    shapes, keys = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}, keys_of(network)
    expected = {keys[name]: _theirs(name, shape) for name, shape in shapes.items()}
    require_fit(expected, tensors, path, "fetch it again, or give the settings of this network")
    weights = {name: _ours(name, tensors[keys[name]].float()).reshape(shape) for name, shape in shapes.items()}
    kinds = other_types(tensors)
    notes = [note] if note else []
    notes += [f"weights in {kinds} are read as float32"] if kinds else []
    return Checkpoint(resolved, weights, source=str(path), note="; ".join(notes))


def _told(tensors: Mapping[str, Tensor], given: Config, path: Path) -> tuple[dict[str, Any], str]:
    """The config that the file implies, with their defaults for what neither it nor `given` says; and what was assumed."""
    settings = infer_settings(tensors, path)
    levels = settings.pop("levels")
    channels, sides, guessed = tensors["input_blocks.0.0.weight"].shape[1], None, False
    if given.get("shape"):
        sides = list(given["shape"][1:])
    elif (size := given.get("data", {}).get("image_size") or SIZES.get(settings["multipliers"])) is not None:
        guessed = not given.get("data", {}).get("image_size")
        sides = [size] * (tensors["input_blocks.0.0.weight"].ndim - 2)
    if sides is None:
        raise ValueError(f"{path} does not store the size of its pictures; give data.image_size")
    outputs = tensors["out.2.weight"].shape[0]
    if outputs not in (channels, 2 * channels) or (channels == 6 and not given.get("shape")):
        raise ValueError(f"{path} takes {channels} channels and gives {outputs}: networks of super-resolution, which see "
                         "a small picture beside x, cannot be read")
    said = {field: value for field, value in given.get("model", {}).items() if value is not None}
    chain = given.get("sde", {})
    steps = chain.get("steps") or 1000
    model = settings | {
        "network": "unet", "groups": 32, "norm_eps": 1e-5, "freq_shift": 0, "downsample_padding": 1, "centred": True,
        "middle_norm": True, "dropout": 0.0, "parametrization": "eps", "learned_variance": outputs == 2 * channels,
        "time_input": "index" if steps == 1000 else "index1000", "attention_order": "heads",
        "attention_resolutions": tuple(resolution(sides, level) for level in levels),
        "attention_heads": None if "attention_head_dim" in said else HEADS}
    training: dict[str, Any] = {"objective": "learned_variance"} if model["learned_variance"] else {}
    if model["classes"] is not None:
        training["label_dropout"] = 0.0
    sde = {"name": "ddpm", "schedule": "linear", "steps": steps}
    told = {"sde": sde, "model": model, "data": {"low": -1.0, "high": 1.0}, "shape": [channels, *sides], "levels": 256,
            "training": training}
    unsaid = [] if "attention_heads" in said or "attention_head_dim" in said else [f"{HEADS} heads of attention"]
    unsaid += [] if "attention_order" in said else ["qkv in the order of heads"]
    unsaid += [] if chain.get("name") or chain.get("schedule") else ["the linear schedule"]
    unsaid += [f"pictures of {sides[0]} pixels a side"] if guessed else []
    return told, f"assumed, since the file does not tell: {', '.join(unsaid)}" if unsaid else ""


def infer_settings(tensors: Mapping[str, Tensor], path: str | Path = "the checkpoint") -> dict[str, Any]:
    """The settings of the UNet that names and shapes tell, and "levels", those that have attention.

    ValueError of one line for a network that a UNet cannot be.
    """
    ups = [key for key in tensors if re.fullmatch(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.0)\.weight", key)]
    count = len({key.split(".")[1] for key in tensors if key.startswith("output_blocks.")})
    number = len(ups) + 1
    blocks = count // number - 1
    width = tensors["time_embed.0.weight"].shape[1]
    try:
        firsts = [1 + level * (blocks + 1) for level in range(number)]
        widths = [tensors[f"input_blocks.{n}.0.out_layers.3.weight"].shape[0] for n in firsts]
        scaled = tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * widths[0]
        if blocks < 1 or count % number:
            raise KeyError(f"{number} levels of {count} output_blocks")
    except KeyError as error:
        raise ValueError(f"{path} has blocks in an order that UNetModel does not have ({error}), or resamples without "
                         "convolutions (conv_resample); fetch it again") from None
    if any(w % width for w in widths) or tensors["input_blocks.0.0.weight"].shape[0] != width:
        raise ValueError(f"{path} has levels of {', '.join(map(str, widths))} channels with a base of {width}, and only "
                         "multiples of it can be read")
    label = tensors.get("label_emb.weight")
    return {"width": width, "multipliers": tuple(w // width for w in widths), "num_blocks": blocks, "scale_shift": scaled,
            "resample": "residual" if any("in_layers" in key for key in ups) else "conv",
            "classes": None if label is None else len(label),
            "levels": [level for level, n in enumerate(firsts) if f"input_blocks.{n}.1.qkv.weight" in tensors]}


def keys_of(network: nn.Module) -> dict[str, str]:
    """For the name of each of our parameters the name of theirs."""
    places = {"time.0": "time_embed.0", "time.2": "time_embed.2", "label": "label_emb", "conv_in": "input_blocks.0.0",
              "norm_out": "out.0", "conv_out": "out.2"} | {f"middle.{i}": f"middle_block.{i}" for i in range(3)}
    for way, theirs, n in (("down", "input_blocks", 1), ("up", "output_blocks", 0)):
        for i, level in enumerate(getattr(network, way)):
            for j, attention in enumerate(level.attentions):
                attends = isinstance(attention, SelfAttention)
                places |= {f"{way}.{i}.blocks.{j}": f"{theirs}.{n}.0", f"{way}.{i}.attentions.{j}": f"{theirs}.{n}.1"}
                n += 1
            if level.resample is not None:
                place, layer = (f"{theirs}.{n}.0", ".op") if way == "down" else (f"{theirs}.{n - 1}.{1 + attends}", ".conv")
                convolves = hasattr(level.resample, "conv")
                places[f"{way}.{i}.resample" + ".conv" * convolves] = place + layer * convolves
                n += way == "down"
    keys = {}
    for name in network.state_dict():
        place = max((place for place in places if name.startswith(f"{place}.")), key=len)
        rest = name.removeprefix(f"{place}.")
        for ours, theirs in PARTS:
            rest = re.sub(rf"^{ours}\.", f"{theirs}.", rest)
        keys[name] = f"{places[place]}.{rest}"
    return keys


def _theirs(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one of our parameters in their file."""
    if name == "label.weight":
        return shape[0] - 1, shape[1]      # which has no row of "no label"
    return (*shape[:2], 1) if name.endswith(("qkv.weight", ".out.weight")) else shape


def _ours(name: str, value: Tensor) -> Tensor:
    if name == "label.weight":
        return pad(value, (0, 0, 0, 1))
    return torch.roll(value, value.shape[1] // 2, 1) if name == "time.0.weight" else value
