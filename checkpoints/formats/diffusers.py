"""Import and export of the folders of diffusers' UNet2DModel, such as google/ddpm-cifar10-32 and google/ncsnpp-*; those of
its DiTTransformer2DModel are in diffusers_dit.py.

That of an AutoencoderKL is read and written by diffusers_autoencoder.py.

A folder holds config.json, the weights (diffusers_weights.py) and scheduler_config.json (diffusers_process.py). In that of a
pipeline they are in unet/ and scheduler/. diffusers itself is never imported.

The network is a `UNet` if all blocks are DownBlock2D, AttnDownBlock2D, UpBlock2D and AttnUpBlock2D. It is an `NCSNpp` with
input_skip and output_skip if they are SkipDownBlock2D and so on. The modules correspond one to one. Besides their names,
they differ in this:

    to_q, to_k, to_v (query, key, value in old files) are one convolution here, and the attention's matrices are 1x1 kernels
    flip_sin_to_cos    puts cosines before sines: the two halves of the first time layer change places
    Fourier embedding  gives sigma score = -eps before it is divided by sigma: the sign goes into the last convolutions
    num_class_embeds   rows of labels. Here one more row means "no label". It is written as the last class if the network was
                       trained with label dropout (config.json then says so in _label_dropout), else it was never trained:
                       it is not written, and zero when a folder is read
    scale_shift        has no norm before the attention in the middle, unless attn_norm_num_groups is given
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from scorefield.checkpoints.checkpoint import (
    Checkpoint,
    Config,
    Weights,
    event_of,
    merged,
    other_types,
    outline_of,
    require_agreement,
    require_fit,
    unstored_units,
)
from scorefield.checkpoints.formats import diffusers_autoencoder, diffusers_dit
from scorefield.checkpoints.formats.diffusers_layout import keys_of, part_shape, turned
from scorefield.checkpoints.formats.diffusers_process import (
    NUMBER,
    WHOLE,
    refusal,
    require_one_of,
    told_process,
    write_process,
)
from scorefield.checkpoints.formats.diffusers_weights import read_weights, write_weights
from scorefield.models.build import complete
from scorefield.models.layers import resolution
from scorefield.numerics.files import new_folder, read_json

MAYBE = (int, type(None))
# The fields of UNet2DModel that a network here supports: the default if config.json lacks the field, and the types.
FIELDS: dict[str, tuple[Any, tuple[type, ...]]] = {
    "sample_size": (None, (int, list, type(None))), "in_channels": (3, WHOLE), "out_channels": (3, WHOLE),
    "center_input_sample": (False, (bool,)), "time_embedding_dim": (None, MAYBE), "flip_sin_to_cos": (True, (bool,)),
    "down_block_types": (["DownBlock2D", *3 * ["AttnDownBlock2D"]], (list,)),
    "up_block_types": ([*3 * ["AttnUpBlock2D"], "UpBlock2D"], (list,)), "layers_per_block": (2, WHOLE),
    "block_out_channels": ([224, 448, 672, 896], (list,)), "mid_block_scale_factor": (1, NUMBER), "dropout": (0.0, NUMBER),
    "attention_head_dim": (8, MAYBE), "norm_num_groups": (32, MAYBE), "attn_norm_num_groups": (None, MAYBE),
    "norm_eps": (1e-5, NUMBER), "num_train_timesteps": (None, MAYBE), "num_class_embeds": (None, MAYBE),
}
# The fields of which only some values are supported. The first is the default if config.json lacks the field.
CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier"), "freq_shift": (0, 1), "downsample_padding": (1, 0),
    "mid_block_type": ("UNetMidBlock2D",), "downsample_type": ("conv",), "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"), "resnet_time_scale_shift": ("default", "scale_shift"), "add_attention": (True,),
    "class_embed_type": (None, "timestep", "identity"),
}
# Our own field of config.json: the share of labels that training dropped, if the last class means "no label". diffusers
# ignores fields that begin with _.
DROPOUT = "_label_dropout"
# The settings that an NCSNpp needs to fit into a UNet2DModel.
SKIP = {"block": "biggan", "fir": True, "skip_rescale": True, "progressive_input": "input_skip",
        "progressive": "output_skip", "combine": "sum"}
NAMES = ("model_index.json", "unet/config.json", "transformer/config.json")      # of which a pipeline has one


def recognises(path: Path) -> bool:
    """Whether `path` is a folder of diffusers: a pipeline, or a model whose config names its class."""
    try:
        return any((path / name).is_file() for name in NAMES) or (
            (path / "config.json").is_file() and "_class_name" in _json(path / "config.json"))
    except ValueError:
        return False


# ---- import ------------------------------------------------------------------------------------------------------


def read(folder: Path, config: Config | None = None) -> Checkpoint:
    """The checkpoint in a folder of diffusers.

    config  what the folder does not store: "shape" if sample_size is missing; if there is no scheduler, "sde", and the
            time input and parametrization of "model"; for labels see `_labels`

    Raises FileNotFoundError if there is no config.json, and a ValueError of one line if a file is truncated, altered or
    would run code, if a setting is not supported, or if keys or shapes do not fit.
    """
    folder, given = Path(folder), config or {}
    if diffusers_autoencoder.recognises(folder):
        return diffusers_autoencoder.read(folder, given)
    if (transformer := diffusers_dit.place_of(folder)) is not None:
        return diffusers_dit.read(folder, transformer, given)
    place, scheduler = _places(folder)
    fields = _fields(place / "config.json")
    fourier = fields["time_embedding_type"] == "fourier"
    sides = _sides(fields, given, place)
    labels, training = _labels(fields, given, place / "config.json")
    model = _network(fields, sides, place / "config.json") | labels
    told: dict[str, Any] = {"model": model, "data": {"low": -1.0, "high": 1.0}, "levels": 256,
                            "shape": [fields["in_channels"], *sides],
                            **({"training": {"objective": "learned_variance"}} if model["learned_variance"] else {})}
    process, wanted = told_process(folder, scheduler, given, fourier, model["learned_variance"])
    told = merged(told, process)
    require_agreement(told, wanted, folder)
    resolved = merged(told, given)
    if training:      # what the weights have learned, not what training to come shall do
        resolved["training"] = {**(resolved.get("training") or {}), **training}
    network = outline_of(resolved, folder)
    tensors, path = read_weights(place)
    if "time_proj.W" in tensors and torch.equal(tensors["time_proj.W"], tensors.get("time_proj.weight", torch.empty(0))):
        del tensors["time_proj.W"]      # old files hold the frequencies twice
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    keys = keys_of(network, old=any(key.endswith(".proj_attn.weight") for key in tensors))
    expected = {key: part_shape(name, shapes[name], len(parts)) for name, parts in keys.items() for key in parts}
    unsaid = training.get("label_dropout") == 0 and "label.weight" in shapes      # the row of "no label" is not in the file
    if unsaid:
        rows, width = shapes["label.weight"]
        expected[keys["label.weight"][0]] = (rows - 1, width)
    require_fit(expected, tensors, path, "give only the settings of this model, or fetch it again "
                "with the config.json that belongs to it")
    if unsaid:
        tensors[keys["label.weight"][0]] = pad(tensors[keys["label.weight"][0]], (0, 0, 0, 1))
    kinds = other_types(tensors)
    joined = {name: torch.cat([tensors[key].float() for key in parts]).reshape(shapes[name]) for name, parts in keys.items()}
    flip = fields["flip_sin_to_cos"] and not fourier
    return Checkpoint(resolved, {name: turned(name, value, flip, fourier) for name, value in joined.items()},
                      note=f"the weights of {path.name} are {kinds}, read as float32" if kinds else "")


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, "; fetch it again")


def _places(folder: Path) -> tuple[Path, Path | None]:
    """The folder of config.json and the weights, and the path of the scheduler's config, if any."""
    index = _json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    parts = {name for name, value in index.items() if isinstance(value, list) and any(value)}
    if others := sorted(parts - {"unet", "scheduler"}):
        raise ValueError(f"{folder} is a pipeline with {', '.join(others)}; only a unet and a scheduler can be imported")
    place = folder / "unet" if (folder / "unet/config.json").is_file() else folder
    if not (place / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json of a UNet2DModel, and no folder unet with one")
    schedulers = folder / "scheduler_config.json", folder / "scheduler/scheduler_config.json"
    return place, next((path for path in schedulers if path.is_file()), None)


def _fields(path: Path) -> dict[str, Any]:
    """All fields of UNet2DModel from its config.json; ValueError for a value that is not supported."""
    config = _json(path)
    require_one_of(path, "_class_name", config.get("_class_name"), "UNet2DModel")
    for field, value in config.items():
        if field not in FIELDS | CHOICES and not field.startswith("_"):
            require_one_of(path, field, value, None)
    fields = {field: config.get(field, default) for field, (default, _) in FIELDS.items()}
    for field, value in fields.items():
        if type(value) not in FIELDS[field][1]:
            raise ValueError(f"{path} is damaged: {field} = {value!r:.100}; fetch it again")
    for field, allowed in CHOICES.items():
        fields[field] = config.get(field, allowed[0])
        require_one_of(path, field, fields[field], *allowed)
    fields[DROPOUT] = config.get(DROPOUT, 0.0)
    if type(fields[DROPOUT]) not in NUMBER or not 0 <= fields[DROPOUT] < 1:
        raise ValueError(f"{path} is damaged: {DROPOUT} = {fields[DROPOUT]!r:.100}; fetch it again")
    return fields


def _labels(fields: Config, given: Config, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the network for labels, and of "training", which is empty for a network without labels.

    given  may say model.classes if config.json has none (class_embed_type "timestep"), or, for a network trained elsewhere
           whose last class means "no label", that there is one class fewer and training.label_dropout above 0
    """
    kind, number, dropout = fields["class_embed_type"], fields["num_class_embeds"], float(fields[DROPOUT])
    asked = int((given.get("model") or {}).get("classes") or 0)
    drops = float((given.get("training") or {}).get("label_dropout") or 0)
    if kind == "identity":
        raise ValueError(f"{path}: class_embed_type = 'identity' cannot be imported, only None or 'timestep': its labels "
                         "are vectors, and labels here are integers")
    if kind is None and number is None:
        return {"classes": None}, {}
    if number is None and not asked:
        raise ValueError(f"{path}: num_class_embeds = None with class_embed_type = {kind!r} does not say how many classes "
                         "there are; give model.classes")
    if number is not None and not dropout and drops and asked == number - 1:
        dropout = drops
    classes = asked if number is None else number - (dropout > 0)
    if classes < 1:
        raise ValueError(f"{path}: num_class_embeds = {number} cannot be imported, only {1 + (dropout > 0)} or more")
    return {"classes": classes, "class_embedding": kind or "table"}, {"label_dropout": dropout}


def _sides(fields: Config, given: Config, place: Path) -> tuple[int, int]:
    """Height and width of the pictures: those of config.json if it has them, else those given."""
    size = fields["sample_size"]
    if size is None:
        size = list(given["shape"][1:]) if given.get("shape") else (given.get("data") or {}).get("image_size")
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{place / 'config.json'}: sample_size = {size!r:.100} is not the size of pictures; give "
                         "data.image_size")
    return sides[0], sides[1]


def _network(fields: Config, sides: tuple[int, int], path: Path) -> dict[str, Any]:
    """The settings of a UNet or NCSNpp for pictures of these sides."""
    down, up = ([str(kind).removeprefix("UNetRes") for kind in fields[f"{way}_block_types"]] for way in ("down", "up"))
    skip = "Skip" if any("Skip" in kind for kind in down) else ""
    kinds = [f"{'Attn' * ('Attn' in kind)}{skip}DownBlock2D" for kind in down]
    require_one_of(path, "down_block_types", down, kinds)
    require_one_of(path, "up_block_types", up, [kind.replace("Down", "Up") for kind in reversed(kinds)])
    widths, channels, groups = fields["block_out_channels"], fields["in_channels"], fields["norm_num_groups"]
    if not 0 < len(widths) == len(kinds) or not all(type(w) is int and w > 0 and w % widths[0] == 0 for w in widths):
        raise ValueError(f"{path}: block_out_channels = {widths!r:.100} cannot be imported, only {len(kinds)} multiples of "
                         "the first one")
    require_one_of(path, "out_channels", fields["out_channels"], channels, 2 * channels)
    require_one_of(path, "time_embedding_dim", fields["time_embedding_dim"], None, 4 * widths[0])
    common = {
        "width": widths[0], "multipliers": tuple(w // widths[0] for w in widths), "num_blocks": fields["layers_per_block"],
        "attention_resolutions": tuple(resolution(sides, i) for i, kind in enumerate(kinds) if "Attn" in kind),
        "dropout": float(fields["dropout"]), "norm_eps": float(fields["norm_eps"]), "freq_shift": fields["freq_shift"],
        "attention_head_dim": fields["attention_head_dim"], "centred": not fields["center_input_sample"],
        "scale_shift": (scaled := fields["resnet_time_scale_shift"] == "scale_shift"),
        "middle_norm": not scaled or fields["attn_norm_num_groups"] is not None,
        "learned_variance": fields["out_channels"] != channels,
    }
    if not skip:
        require_one_of(path, "time_embedding_type", fields["time_embedding_type"], "positional")
        require_one_of(path, "mid_block_scale_factor", fields["mid_block_scale_factor"], 1)
        require_one_of(path, "norm_num_groups", groups, groups or 32)
        require_one_of(path, "attn_norm_num_groups", fields["attn_norm_num_groups"], None, groups)
        return {"network": "unet", **common, "groups": groups, "downsample_padding": fields["downsample_padding"]}
    require_one_of(path, "in_channels", channels, 3)
    require_one_of(path, "out_channels", fields["out_channels"], 3)
    require_one_of(path, "mid_block_scale_factor", round(float(fields["mid_block_scale_factor"]), 6), round(math.sqrt(2), 6))
    norms = [("norm_num_groups", width) for width in (widths[0], widths[-1])]
    for field, width in [*norms, ("attn_norm_num_groups", widths[-1])]:
        require_one_of(path, field, fields[field], None, min(32, width // 4))      # other norms have this, whatever is set
    if few := [w for w, kind in zip(widths, kinds, strict=True) if "Attn" in kind and w < 128]:
        raise ValueError(f"{path}: block_out_channels = {few[0]} of an AttnSkipDownBlock2D cannot be imported, only 128 or "
                         "more, since only then its norms have 32 groups here as well")
    return {"network": "ncsnpp", **common, **SKIP, "embedding": fields["time_embedding_type"]}


# ---- export ------------------------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, folder: Path, ema: bool | str = True) -> str:
    """Write a folder laid out as google/ddpm-cifar10-32, for DDPMPipeline, or ScoreSdeVePipeline for the SDE "ve".

    It gets the averaged weights, or the raw ones if `ema` is False. The folder is written whole or not at all. Raises
    ValueError, before anything is written, if the folder exists and is not empty, and for settings that UNet2DModel or the
    schedulers cannot express. Returns what the folder does not store about the data, or "".
    """
    if checkpoint.config["model"]["network"] == "autoencoder":
        return diffusers_autoencoder.write(checkpoint, folder, ema)
    if checkpoint.config["model"]["network"] == "dit":
        return diffusers_dit.write(checkpoint, Path(folder), ema)
    folder, denoiser = Path(folder), checkpoint.denoiser(ema)
    fields = _exported_network(checkpoint.config)
    fourier = fields["time_embedding_type"] == "fourier"
    pipeline, scheduler = write_process(checkpoint.config, denoiser.sde, fourier)
    fields |= (labels := _exported_labels(checkpoint.config))
    tensors: Weights = {}
    keys, lost = keys_of(denoiser.network), []
    for name, value in denoiser.network.state_dict().items():
        if name == "label.weight" and DROPOUT not in labels:
            lost += ["it does not store the embedding of no label, which was never trained"] if value[-1].any() else []
            value = value[:-1]
        parts = turned(name, value, False, fourier).chunk(len(keys[name]))
        tensors |= {key: part.reshape(part_shape(name, value.shape, len(parts))).clone()
                    for key, part in zip(keys[name], parts, strict=True)}
    contents = {}
    classes = {"scheduler": scheduler["_class_name"], "unet": fields["_class_name"]}
    index = {"_class_name": pipeline, **{part: ["diffusers", kind] for part, kind in classes.items()}}
    for name, words in (("config", fields), ("scheduler_config", scheduler), ("model_index", index)):
        contents[f"{name}.json"] = f"{json.dumps({'_diffusers_version': '0.30.0'} | words, indent=2)}\n".encode()
    with new_folder(folder) as temporary:
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
        write_weights(tensors, temporary)
    if DROPOUT in labels:
        number = labels["num_class_embeds"]
        lost.append(f"the last of its {number} classes, {number - 1}, means no label")
    if (levels := checkpoint.config.get("levels", 256)) != 256:
        lost.append(f"it does not store that the data have {levels or 'no'} levels")
    lost += unstored_units(checkpoint.config)
    return "; ".join(lost)


def _exported_labels(config: Config) -> dict[str, Any]:
    """The fields of config.json about labels; none for a network without."""
    settings = complete(config)["model"]
    if settings["classes"] is None:
        return {}
    dropout = (config.get("training") or {}).get("label_dropout") or 0.0
    kind = settings["class_embedding"]
    return {"class_embed_type": None if kind == "table" else kind, "num_class_embeds": settings["classes"] + (dropout > 0),
            **({DROPOUT: dropout} if dropout else {})}


def _exported_network(config: Config) -> dict[str, Any]:
    """The content of the UNet2DModel's config.json."""
    kind = config["model"]["network"]
    if kind not in ("unet", "ncsnpp"):
        raise refusal("model", "network", kind, "a UNet2DModel can be unet, or ncsnpp with progressive_input=input_skip; "
                      "dit is written as a DiTTransformer2DModel")
    settings, skip = complete(config)["model"], kind == "ncsnpp"
    channels, *sides = event_of(config)
    if len(sides) != 2:
        raise ValueError(f"a UNet2DModel has pictures, and the data of this model have the shape {event_of(config)}")
    if settings["dequantizer"]:
        raise refusal("model", "dequantizer", settings["dequantizer"], "a UNet2DModel has none")
    widths = [settings["width"] * m for m in settings["multipliers"]]
    attended = [resolution(sides, level) in settings["attention_resolutions"] for level in range(len(widths))]
    if settings["multipliers"][0] != 1:
        raise refusal("model", "multipliers", settings["multipliers"], "those of a UNet2DModel begin with 1")
    for field, value in (SKIP | {"groups": None, "last_label": None}).items() if skip else ():
        if settings[field] != value:
            raise refusal("model", field, settings[field], f"a UNet2DModel has only {value!r}")
    for field, value in {} if skip else {"attention_heads": None, "attention_order": "qkv", "resample": "conv"}.items():
        if settings[field] != value:
            raise refusal("model", field, settings[field], f"a UNet2DModel is written with {value!r} only")
    if skip and settings["learned_variance"]:
        raise refusal("model", "learned_variance", True, "a UNet2DModel's progressive output has 3 channels")
    if skip and channels != 3:
        raise refusal("data", "channels", channels, "a UNet2DModel's progressive input and output have 3 channels")
    if skip and any(at and w < 128 for w, at in zip(widths, attended, strict=True)):
        raise refusal("model", "width", widths[0], "a UNet2DModel has other norms in attention with under 128 channels")
    if not settings["scale_shift"] and not settings["middle_norm"]:
        raise refusal("model", "middle_norm", False, "a UNet2DModel without scale_shift has a norm there")
    kinds = [f"{'Attn' * at}{'Skip' * skip}DownBlock2D" for at in attended]
    groups = None if skip else settings["groups"] or min(32, widths[0] // 4)
    middle = (groups or min(32, widths[-1] // 4)) if settings["middle_norm"] else None
    scaled = {"attn_norm_num_groups": middle, "resnet_time_scale_shift": "scale_shift"} if settings["scale_shift"] else {}
    return scaled | {
        "_class_name": "UNet2DModel", "act_fn": "silu", "attention_head_dim": settings["attention_head_dim"],
        "block_out_channels": widths, "center_input_sample": not settings["centred"], "down_block_types": kinds,
        "downsample_padding": settings.get("downsample_padding", 0), "dropout": settings["dropout"],
        "flip_sin_to_cos": False, "freq_shift": settings["freq_shift"], "in_channels": channels,
        "layers_per_block": settings["num_blocks"], "mid_block_scale_factor": math.sqrt(2) if skip else 1,
        "norm_eps": settings["norm_eps"],
        "out_channels": channels * (1 + settings["learned_variance"]),
        "sample_size": sides[0] if sides[0] == sides[1] else sides,
        "norm_num_groups": groups,
        "time_embedding_type": settings.get("embedding", "positional"),
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
    }
