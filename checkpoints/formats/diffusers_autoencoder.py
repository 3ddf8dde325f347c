"""Import and export of the folders of diffusers' AutoencoderKL, such as the folder vae of Stable Diffusion.

config.json and the weights (diffusers_weights.py) belong to an `Autoencoder`, module by module. Besides the names, what
differs is the attention, as in diffusers.py. A folder keeps scaling_factor and shift_factor (model.scaling, model.shift); it
has no discriminator. diffusers itself is never imported.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scorefield.checkpoints.checkpoint import (
    Checkpoint,
    Config,
    Weights,
    merged,
    other_types,
    outline_of,
    require_agreement,
    require_fit,
    unstored_units,
)
from scorefield.checkpoints.formats.diffusers_layout import part_shape, parts_of
from scorefield.checkpoints.formats.diffusers_process import NUMBER, WHOLE, refusal, require_one_of
from scorefield.checkpoints.formats.diffusers_weights import read_weights, write_weights
from scorefield.models.build import complete
from scorefield.numerics.files import new_folder, read_json

CLASS = "AutoencoderKL"
# The fields of AutoencoderKL that are read: the default if config.json lacks the field, and the types.
FIELDS: dict[str, tuple[Any, tuple[type, ...]]] = {
    "in_channels": (3, WHOLE), "out_channels": (3, WHOLE), "down_block_types": (["DownEncoderBlock2D"], (list,)),
    "up_block_types": (["UpDecoderBlock2D"], (list,)), "block_out_channels": ([64], (list,)), "layers_per_block": (1, WHOLE),
    "latent_channels": (4, WHOLE), "norm_num_groups": (32, WHOLE), "sample_size": (32, (int, list)),
    "scaling_factor": (0.18215, NUMBER), "shift_factor": (None, (*NUMBER, type(None))), "use_quant_conv": (True, (bool,)),
    "use_post_quant_conv": (True, (bool,)), "mid_block_add_attention": (True, (bool,)),
}
# The fields of which only some values are supported. The first is the default if config.json lacks the field.
CHOICES: dict[str, tuple[Any, ...]] = {"act_fn": ("silu", "swish"), "force_upcast": (True, False, 1.0, 0.0),
                                       "latents_mean": (None,), "latents_std": (None,)}
# From our names to theirs, one substitution after the other.
NAMES = [(re.compile(pattern), to) for pattern, to in (
    (r"\.(down|up)\.(\d+)\.blocks\.", r".\1_blocks.\2.resnets."),
    (r"\.(down|up)\.(\d+)\.resample\.", r".\1_blocks.\2.\1samplers.0."),
    (r"\.middle\.first\.", ".mid_block.resnets.0."), (r"\.middle\.last\.", ".mid_block.resnets.1."),
    (r"\.middle\.attention\.", ".mid_block.attentions.0."), (r"\.shortcut\.", ".conv_shortcut."),
    (r"(attentions\.0)\.norm\.", r"\1.group_norm."), (r"(attentions\.0)\.out\.", r"\1.to_out.0."),
    (r"\.norm_out\.", ".conv_norm_out."), (r"^after\.", "quant_conv."), (r"^before\.", "post_quant_conv."),
)]


def recognises(path: Path) -> bool:
    """Whether `path` is a folder of an AutoencoderKL."""
    try:
        return (path / "config.json").is_file() and read_json(path / "config.json").get("_class_name") == CLASS
    except ValueError:
        return False


def keys_of(network: nn.Module, old: bool = False) -> dict[str, list[str]]:
    """For the name of each of our parameters, the names of theirs that are joined in order to make it."""
    keys = {}
    for name in network.state_dict():
        if name.startswith("discriminator."):
            continue
        key = name
        for pattern, to in NAMES:
            key = pattern.sub(to, key)
        keys[name] = parts_of(key, old)
    return keys


def read(folder: Path, config: Config | None = None) -> Checkpoint:
    """The autoencoder in a folder of diffusers, as a checkpoint at step 0.

    config  what the folder does not store; "shape" or data.image_size in place of its sample_size, since it takes pictures
            of any size that its levels can halve

    Raises a ValueError of one line if a file is damaged, a setting is not supported, or keys or shapes do not fit.
    """
    folder, given = Path(folder), config or {}
    path = folder / "config.json"
    fields = _fields(path)
    shape = _shape(fields, given, path)
    told: dict[str, Any] = {"sde": {"name": "vp"}, "model": _network(fields, path), "data": {"low": -1.0, "high": 1.0},
                            "training": {"objective": "autoencoder"}, "levels": 256, "shape": shape}
    require_agreement(told, {key: value for key, value in given.items() if key != "sde"}, folder)
    resolved = merged(told, given)
    network = outline_of(resolved, folder, "autoencoder")
    tensors, file = read_weights(folder)
    keys = keys_of(network)
    if "encoder.mid_block.attentions.0.query.weight" in tensors:
        keys = keys_of(network, old=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if name in keys}
    expected = {key: part_shape(name, shapes[name], len(parts)) for name, parts in keys.items() for key in parts}
    require_fit(expected, tensors, file, "it is damaged, or config.json belongs to another autoencoder")
    joined = {name: torch.cat([tensors[key].float() for key in parts]).reshape(shapes[name]) for name, parts in keys.items()}
    kinds = other_types(tensors)
    return Checkpoint(resolved, joined, source=str(folder),
                      note=f"the weights of {file.name} are {kinds}, read as float32" if kinds else "")


def _fields(path: Path) -> dict[str, Any]:
    """All fields of AutoencoderKL from its config.json; ValueError for a value that is not supported."""
    config = read_json(path, "; fetch it again")
    require_one_of(path, "_class_name", config.get("_class_name"), CLASS)
    for field, value in config.items():
        if field not in FIELDS | CHOICES and not field.startswith("_"):
            require_one_of(path, field, value, None)
    for field, allowed in CHOICES.items():
        require_one_of(path, field, config.get(field, allowed[0]), *allowed)
    fields = {field: config.get(field, default) for field, (default, _) in FIELDS.items()}
    for field, value in fields.items():
        if type(value) not in FIELDS[field][1]:
            raise ValueError(f"{path} is damaged: {field} = {value!r:.100}; fetch it again")
    return fields


def _shape(fields: Config, given: Config, path: Path) -> list[int]:
    data = given.get("data") or {}
    size = list(given["shape"][1:]) if given.get("shape") else data.get("image_size") or fields["sample_size"]
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{path}: sample_size = {size!r:.100} is not the size of pictures; give data.image_size")
    return [fields["in_channels"], *sides]


def _network(fields: Config, path: Path) -> dict[str, Any]:
    """The settings of an Autoencoder."""
    widths = fields["block_out_channels"]
    n = len(widths)
    require_one_of(path, "down_block_types", fields["down_block_types"], n * ["DownEncoderBlock2D"])
    require_one_of(path, "up_block_types", fields["up_block_types"], n * ["UpDecoderBlock2D"])
    require_one_of(path, "out_channels", fields["out_channels"], fields["in_channels"])
    require_one_of(path, "use_post_quant_conv", fields["use_post_quant_conv"], fields["use_quant_conv"])
    if not n or not all(type(w) is int and w > 0 and w % widths[0] == 0 for w in widths):
        raise ValueError(f"{path}: block_out_channels = {widths!r:.100} cannot be imported, only multiples of the first one")
    if not 0 < fields["scaling_factor"] < math.inf:
        raise ValueError(f"{path}: scaling_factor = {fields['scaling_factor']!r} cannot be imported, only one above 0")
    shift = fields["shift_factor"]
    return {"network": "autoencoder", "width": widths[0], "multipliers": tuple(w // widths[0] for w in widths),
            "num_blocks": fields["layers_per_block"], "latent_channels": fields["latent_channels"],
            "groups": fields["norm_num_groups"], "attention": fields["mid_block_add_attention"],
            "quantisers": fields["use_quant_conv"], "scaling": float(fields["scaling_factor"]),
            "shift": None if shift is None else float(shift)}


def write(checkpoint: Checkpoint, folder: Path, ema: bool | str = True) -> str:
    """Write a folder for AutoencoderKL.from_pretrained, with the averaged weights, or the raw ones if `ema` is False. It is
    written whole or not at all.

    Raises ValueError, before anything is written, if the folder exists and is not empty, and for settings that AutoencoderKL
    cannot express. Returns what the folder does not store, or "".
    """
    folder, network = Path(folder), checkpoint.denoiser(ema).network
    fields = _exported(checkpoint.config)
    tensors: Weights = {}
    keys, weights = keys_of(network), network.state_dict()
    for name, parts in keys.items():
        tensors |= {key: part.reshape(part_shape(name, weights[name].shape, len(parts))).clone()
                    for key, part in zip(parts, weights[name].chunk(len(parts)), strict=True)}
    with new_folder(folder) as temporary:
        (temporary / "config.json").write_text(f"{json.dumps(fields, indent=2)}\n")
        write_weights(tensors, temporary)
    settings = complete(checkpoint.config)["model"]
    lost = ["it does not store the discriminator"] if settings["discriminator"] else []
    if settings["scaling"] is None:
        lost.append("its scaling_factor of 1 says nothing of the latents, which have no scaling until a model learns them")
    if (levels := checkpoint.config.get("levels", 256)) != 256:
        lost.append(f"it does not store that the data have {levels} levels")
    return "; ".join(lost + unstored_units(checkpoint.config))


def _exported(config: Config) -> dict[str, Any]:
    """The content of config.json."""
    settings = complete(config)["model"]
    channels, *sides = config["shape"]
    multipliers: Sequence[int] = settings["multipliers"]
    if multipliers[0] != 1:
        raise refusal("model", "multipliers", multipliers, f"those of an {CLASS} begin with 1")
    ends = [config["data"].get(end) for end in ("low", "high")]
    if ends != [-1.0, 1.0]:
        raise refusal("data", "low", ends[0], f"an {CLASS} takes pictures from -1 to 1")
    n = len(multipliers)
    return {
        "_class_name": CLASS, "_diffusers_version": "0.30.0", "act_fn": "silu",
        "block_out_channels": [settings["width"] * m for m in multipliers], "down_block_types": n * ["DownEncoderBlock2D"],
        "in_channels": channels, "latent_channels": settings["latent_channels"], "layers_per_block": settings["num_blocks"],
        "mid_block_add_attention": settings["attention"],
        "norm_num_groups": settings["groups"] or min(32, settings["width"] // 4), "out_channels": channels,
        "sample_size": sides[0] if sides[0] == sides[1] else sides, "scaling_factor": settings["scaling"] or 1.0,
        "shift_factor": settings["shift"], "up_block_types": n * ["UpDecoderBlock2D"],
        "use_post_quant_conv": settings["quantisers"], "use_quant_conv": settings["quantisers"],
    }
