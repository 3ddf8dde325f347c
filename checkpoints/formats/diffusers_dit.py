"""Import and export of the folders of diffusers' DiTTransformer2DModel and DiTPipeline, such as facebook/DiT-XL-2-256.

A folder holds config.json and the weights, and scheduler_config.json; in that of a pipeline they are in transformer/ and
scheduler/, and its autoencoder in vae/: the model is then one of latents. The network is a `DiT` with

    freq_shift 1       whatever the published code had
    norm_eps           of the norm before each MLP, 1e-5 in most folders
    block_embedding    if the blocks' embeddings of time and label differ: diffusers gives each block its own, which are
                       copies of one in converted checkpoints, and trains them apart
    classes            num_embeds_ada_norm; their table always has the row of "no label" behind

A network without labels is written as one of one class whose embedding is zero (config.json then says so in _unlabelled).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.checkpoints.checkpoint import (
    Checkpoint,
    Config,
    event_of,
    merged,
    other_types,
    outline_of,
    require_agreement,
    require_fit,
    unstored_units,
)
from scorefield.checkpoints.formats.diffusers_process import (
    NUMBER,
    WHOLE,
    refusal,
    require_one_of,
    told_process,
    write_process,
)
from scorefield.checkpoints.formats.diffusers_weights import read_weights, write_weights
from scorefield.checkpoints.formats.dit_layout import EMBEDDED, diffusers_keys, is_shared, ours, theirs
from scorefield.models.build import complete
from scorefield.models.networks.dit import sizes_of
from scorefield.numerics.files import new_folder, read_json

NEW, OLD = "DiTTransformer2DModel", "Transformer2DModel"      # the second is the class of all transformers in old folders
DROPOUT, UNLABELLED = "_label_dropout", "_unlabelled"      # our own fields; diffusers ignores those that begin with _
TABLE = f"{EMBEDDED}class_embedder.embedding_table.weight"
THEIR_DROPOUT = 0.1      # of labels, in networks that diffusers trains
# The fields that a network here supports: the default if config.json lacks the field, and the types.
FIELDS: dict[str, tuple[Any, tuple[type, ...]]] = {
    "num_attention_heads": (16, WHOLE), "attention_head_dim": (72, WHOLE), "in_channels": (4, WHOLE),
    "out_channels": (None, (int, type(None))), "num_layers": (28, WHOLE), "dropout": (0.0, NUMBER),
    "norm_num_groups": (32, (int, type(None))), "attention_bias": (True, (bool,)), "sample_size": (32, WHOLE),
    "patch_size": (2, WHOLE), "num_embeds_ada_norm": (1000, WHOLE), "upcast_attention": (False, (bool,)),
    "norm_eps": (1e-5, NUMBER), DROPOUT: (THEIR_DROPOUT, NUMBER), UNLABELLED: (False, (bool,)),
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "activation_fn": ("gelu-approximate",), "norm_type": ("ada_norm_zero",), "norm_elementwise_affine": (False,)}


def place_of(folder: Path) -> Path | None:
    """The folder of config.json in a folder of such a network or pipeline; None if it holds another model."""
    place = folder / "transformer" if (folder / "transformer/config.json").is_file() else folder
    path = place / "config.json"
    return place if path.is_file() and _json(path).get("_class_name") in (NEW, OLD) else None


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, "; fetch it again")


def read(folder: Path, place: Path, given: Config) -> Checkpoint:
    """The checkpoint in a folder, see `diffusers.read`, whose errors it has.

    place  the folder of config.json, as `place_of` found it
    """
    index = _json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    parts = {name for name, value in index.items() if isinstance(value, list) and any(value)}
    if others := sorted(parts - {"transformer", "scheduler", "vae"}):
        raise ValueError(f"{folder} is a pipeline with {', '.join(others)}; only a transformer, a scheduler and the "
                         "autoencoder of latents can be imported")
    path, latent = place / "config.json", "vae" in parts
    fields = _fields(path)
    tensors, file = read_weights(place)
    tensors.pop("pos_embed.pos_embed", None)      # of some old folders; always these sines and cosines
    channels, layers = fields["in_channels"], fields["num_layers"]
    require_one_of(path, "out_channels", fields["out_channels"], None, channels, 2 * channels)
    learned = fields["out_channels"] == 2 * channels
    labelled, dropout = not fields[UNLABELLED], float(fields[DROPOUT])
    model = {
        "network": "dit", "patch": fields["patch_size"], "layers": layers, "heads": fields["num_attention_heads"],
        "width": fields["num_attention_heads"] * fields["attention_head_dim"], "mlp_ratio": 4.0, "skips": False,
        "dropout": float(fields["dropout"]), "norm_eps": float(fields["norm_eps"]), "freq_shift": 1,
        "block_embedding": not _copied(tensors, layers), "classes": fields["num_embeds_ada_norm"] if labelled else None,
        "learned_variance": learned}
    training: dict[str, Any] = {"objective": "learned_variance"} if learned else {}
    if labelled:
        training["label_dropout"] = dropout
    told = {"model": model, "data": {"low": -1.0, "high": 1.0}, "levels": None if latent else 256, "training": training,
            "shape": [channels, fields["sample_size"], fields["sample_size"]]}
    schedulers = [above / "scheduler_config.json" for above in (place, folder, folder / "scheduler")]
    process, wanted = told_process(folder, next((p for p in schedulers if p.is_file()), None), given, False, learned, False)
    told = merged(told, process)
    if labelled and (names := _names(index, model["classes"])):
        told["class_names"] = names
    require_agreement(told, wanted, folder)
    resolved = merged(told, given)
    if labelled:      # what the weights have learned, not what training to come shall do
        resolved["training"] = {**resolved["training"], "label_dropout": dropout}
    network = outline_of(resolved, folder)
    note = []
    if latent and not resolved["data"].get("autoencoder"):
        vae = folder / "vae"
        if (vae / "config.json").is_file():
            resolved["data"] = {**resolved["data"], "autoencoder": str(vae)}
        else:
            note = [f"its data are latents, and their autoencoder {vae} is not there; name one as data.autoencoder"]
    kinds = other_types(tensors)
    note += [f"the weights of {file.name} are {kinds}, read as float32"] if kinds else []
    weights = _weights(network, tensors, layers, fields["attention_bias"], file)
    return Checkpoint(resolved, weights, note="; ".join(note))


def _fields(path: Path) -> dict[str, Any]:
    """All fields from config.json; ValueError for a value that is not supported."""
    config = _json(path)
    for field, value in config.items():
        if field not in FIELDS | CHOICES and not field.startswith("_") and value not in (None, False, "default"):
            require_one_of(path, field, value, None)
    if config["_class_name"] == OLD:      # which has other defaults
        for field in [*CHOICES, *FIELDS]:
            if field not in config and field not in ("norm_eps", "norm_num_groups", DROPOUT, UNLABELLED):
                raise ValueError(f"{path}: a {OLD} without {field} cannot be imported, only one that says it, as DiT's do")
    for field, allowed in CHOICES.items():
        require_one_of(path, field, config.get(field, allowed[0]), *allowed)
    fields = {field: config.get(field, default) for field, (default, _) in FIELDS.items()}
    for field, value in fields.items():
        least = 1 if FIELDS[field][1] == WHOLE else 0
        if type(value) not in FIELDS[field][1] or (type(value) is int and value < least):
            raise ValueError(f"{path} is damaged: {field} = {value!r:.100}; fetch it again")
    if fields[DROPOUT] >= 1:
        raise ValueError(f"{path} is damaged: {DROPOUT} = {fields[DROPOUT]!r:.100}; fetch it again")
    return fields


def _copied(tensors: dict[str, Tensor], layers: int) -> bool:
    """Whether the embeddings of all blocks are copies of the first one's."""
    first = EMBEDDED.format(0)
    names = [name.removeprefix(first) for name in tensors if name.startswith(first)]
    return all(torch.equal(tensors[first + name], other) for name in names for i in range(1, min(layers, 1000))
               if (other := tensors.get(EMBEDDED.format(i) + name)) is not None)


def _names(index: dict[str, Any], classes: int) -> list[str]:
    """The names of the labels that a pipeline has, each its first synonym; none if they are not all there."""
    names = index.get("id2label")
    found = [names.get(str(i)) for i in range(classes)] if isinstance(names, dict) else []
    words = [name.partition(",")[0] for name in found if isinstance(name, str)]
    return words if len(words) == classes else []


def _weights(network: Any, tensors: dict[str, Tensor], layers: int, bias: bool, file: Path) -> dict[str, Tensor]:
    """Our parameters of their tensors; ValueError unless these fit."""
    keys = diffusers_keys(network, layers)
    state, expected = network.state_dict(), dict[str, Sequence[int]]()
    for name, parts in keys.items():
        shape = list(theirs(name, state[name], network).shape)
        shape[0] //= 1 if is_shared(name, parts) else len(parts)
        expected |= dict.fromkeys(parts, shape)
    if network.classes is None:
        width = state["first.bias"].shape[0]
        expected |= {TABLE.format(i): [2, width] for i in range(layers)}
    if not bias:
        for name in [name for name in expected if name.endswith((".to_q.bias", ".to_k.bias", ".to_v.bias"))]:
            tensors.setdefault(name, torch.zeros(expected[name]))
    require_fit(expected, tensors, file, "give only the settings of this model, or fetch it again with the config.json that "
                "belongs to it")
    weights = {}
    for name, parts in keys.items():
        one = tensors[parts[0]] if is_shared(name, parts) else torch.cat([tensors[key].float() for key in parts])
        weights[name] = ours(name, one.float(), network).contiguous()
    return weights


# ---- export ------------------------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, folder: Path, ema: bool | str = True) -> str:
    """Write a folder laid out as facebook/DiT-XL-2-256, without an autoencoder, see `diffusers.write`:

        DiTPipeline.from_pretrained(folder, vae=AutoencoderKL(...))
        DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    """
    config = checkpoint.config
    fields, denoiser = _exported(config), checkpoint.denoiser(ema)
    pipeline, scheduler = write_process(config, denoiser.sde, False)
    if pipeline != "DDPMPipeline":
        raise refusal("sde", "name", config["sde"]["name"], "a DiTPipeline has a chain's scheduler")
    network: Any = denoiser.network
    tensors: dict[str, Tensor] = {}
    state, layers = network.state_dict(), fields["num_layers"]
    for name, parts in diffusers_keys(network, layers).items():
        value = theirs(name, state[name], network)
        values = [value] * len(parts) if is_shared(name, parts) else value.chunk(len(parts))
        tensors |= {key: part.clone() for key, part in zip(parts, values, strict=True)}
    if fields.get(UNLABELLED):
        width = state["first.bias"].shape[0]
        tensors |= {TABLE.format(i): torch.zeros(2, width) for i in range(layers)}
    index: dict[str, Any] = {"_class_name": "DiTPipeline", "scheduler": ["diffusers", scheduler["_class_name"]],
                             "transformer": ["diffusers", NEW], "vae": [None, None]}
    if names := config.get("class_names"):
        index["id2label"] = {str(i): name for i, name in enumerate(names)}
    contents = {"transformer/config": fields, "scheduler/scheduler_config": scheduler, "model_index": index}
    with new_folder(folder) as temporary:
        for name, words in contents.items():
            path = temporary / f"{name}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{json.dumps({'_diffusers_version': '0.30.0'} | words, indent=2)}\n")
        write_weights(tensors, temporary / "transformer")
    lost = ["it has no autoencoder, which DiTPipeline.from_pretrained needs as vae"]
    lost += ["it takes the label 0 always, whose embedding is zero"] if fields.get(UNLABELLED) else []
    lost += [f"its label {fields['num_embeds_ada_norm']} means no label"
             + ("" if fields[DROPOUT] else ", which was never trained")] if not fields.get(UNLABELLED) else []
    if (levels := config.get("levels", 256)) != 256:
        lost.append(f"it does not store that the data have {levels or 'no'} levels")
    return "; ".join(lost + unstored_units(config))


def _exported(config: Config) -> dict[str, Any]:
    """The content of the DiTTransformer2DModel's config.json."""
    settings = complete(config)["model"]
    channels, *sides = event_of(config)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"a {NEW} has square pictures, and the data of this model have the shape {event_of(config)}")
    only = {"mlp_ratio": 4.0, "skips": False, "freq_shift": 1, "dequantizer": 0, "low_res": 0, "low_res_noise": False,
            "guidance": None}
    for field, value in only.items():
        if settings[field] != value:
            raise refusal("model", field, settings[field], f"a {NEW} has only {value!r}")
    width, layers, heads = sizes_of(settings["size"], settings["width"], settings["layers"], settings["heads"])
    dropout, labelled = (config.get("training") or {}).get("label_dropout") or 0.0, settings["classes"] is not None
    return {
        "_class_name": NEW, "num_attention_heads": heads, "attention_head_dim": width // heads, "in_channels": channels,
        "out_channels": channels * (1 + settings["learned_variance"]), "num_layers": layers, "dropout": settings["dropout"],
        "norm_num_groups": 32, "attention_bias": True, "sample_size": sides[0], "patch_size": settings["patch"],
        "activation_fn": "gelu-approximate", "num_embeds_ada_norm": settings["classes"] or 1, "upcast_attention": False,
        "norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "norm_eps": settings["norm_eps"],
        **({DROPOUT: dropout} if labelled else {UNLABELLED: True})}
