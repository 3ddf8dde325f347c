"""Import and export of the folders of diffusers' UNet2DModel, such as google/ddpm-cifar10-32 and google/ncsnpp-*.

A folder holds config.json, the weights (diffusion_pytorch_model.safetensors or .bin) and scheduler_config.json. In the
folder of a pipeline they are in unet/ and scheduler/. diffusers itself is never imported.

The network is a `UNet` if all blocks are DownBlock2D, AttnDownBlock2D, UpBlock2D and AttnUpBlock2D. It is an `NCSNpp` with
input_skip and output_skip if they are SkipDownBlock2D and so on. The modules correspond one to one. Besides their names,
they differ in this:

    to_q, to_k, to_v (query, key, value in old files) are one convolution here, and the attention's matrices are 1x1 kernels
    flip_sin_to_cos    puts cosines before sines: the two halves of the first time layer change places
    Fourier embedding  gives sigma score = -eps before it is divided by sigma: the sign goes into the last convolutions

The scheduler's betas are the chain "ddpm"; its indices are the network's time input, and prediction_type is the
parametrization. A ScoreSdeVeScheduler is the SDE "ve": the network's time input is sigma, of which a Fourier embedding
takes the logarithm, and the data lie in [0, 1].
"""

import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from scorefield.checkpoints.checkpoint import Checkpoint, Config, Weights, merged, outline, require_agreement, require_fit
from scorefield.checkpoints.formats.diffusers_layout import keys_of, part_shape, turned
from scorefield.checkpoints.formats.pickles import read_pickle
from scorefield.checkpoints.formats.tensors import read_safetensors
from scorefield.models.build import complete
from scorefield.numerics.files import new_folder, read_json
from scorefield.sde_lib.sde import SDE

WEIGHTS = "diffusion_pytorch_model"
WHOLE, MAYBE, NUMBER = (int,), (int, type(None)), (int, float)
# The fields of UNet2DModel that a network here supports: the default if config.json lacks the field, and the types.
FIELDS: dict[str, tuple[Any, tuple[type, ...]]] = {
    "sample_size": (None, (int, list, type(None))), "in_channels": (3, WHOLE), "out_channels": (3, WHOLE),
    "center_input_sample": (False, (bool,)), "time_embedding_dim": (None, MAYBE), "flip_sin_to_cos": (True, (bool,)),
    "down_block_types": (["DownBlock2D", *3 * ["AttnDownBlock2D"]], (list,)),
    "up_block_types": ([*3 * ["AttnUpBlock2D"], "UpBlock2D"], (list,)), "layers_per_block": (2, WHOLE),
    "block_out_channels": ([224, 448, 672, 896], (list,)), "mid_block_scale_factor": (1, NUMBER), "dropout": (0.0, NUMBER),
    "attention_head_dim": (8, MAYBE), "norm_num_groups": (32, MAYBE), "attn_norm_num_groups": (None, MAYBE),
    "norm_eps": (1e-5, NUMBER), "num_train_timesteps": (None, MAYBE),
}
# The fields of which only some values are supported. The first is the default if config.json lacks the field.
CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier"), "freq_shift": (0, 1), "downsample_padding": (1, 0),
    "mid_block_type": ("UNetMidBlock2D",), "downsample_type": ("conv",), "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"), "resnet_time_scale_shift": ("default",), "add_attention": (True,),
    "class_embed_type": (None,), "num_class_embeds": (None,),
}
# Fields of schedulers that can change the process that the betas define, and the value with which they do not.
PLAIN = {"rescale_betas_zero_snr": False, "use_flow_sigmas": False, "timestep_type": "discrete", "snr_shift_scale": 1.0}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# The SDEs that a scheduler can express, each with the network's time input.
CHAINS = {("ddpm", "index"), ("vp", "999t"), ("cosine", "999t"), ("sigmoid", "999t")}
# For the SDE "ve": time input, parametrization, and whether the embedding is Fourier's.
VE_READINGS = {("log_sigma", "eps", True), ("sigma", "score", False)}
# The settings that an NCSNpp needs to fit into a UNet2DModel.
SKIP = {"block": "biggan", "fir": True, "skip_rescale": True, "progressive_input": "input_skip",
        "progressive": "output_skip", "combine": "sum"}


def recognises(path: Path) -> bool:
    """Whether `path` is a folder of diffusers: a pipeline, or a model whose config names its class."""
    try:
        return (path / "model_index.json").is_file() or (path / "unet/config.json").is_file() or (
            (path / "config.json").is_file() and "_class_name" in _json(path / "config.json"))
    except ValueError:
        return False


# ---- the weights -------------------------------------------------------------------------------------------------


def _read_weights(folder: Path) -> tuple[Weights, Path]:
    """The tensors of a folder by name, and the file that holds them; raises ValueError as `read`."""
    path = folder / f"{WEIGHTS}.safetensors"
    if path.is_file():
        return read_safetensors(path)[0], path
    path = folder / f"{WEIGHTS}.bin"
    if not path.is_file():
        found = ", ".join(sorted(file.name for file in folder.glob(f"{WEIGHTS}*")))
        others = f", but {found}; save shards and variants as one file (UNet2DModel's save_pretrained)"
        raise ValueError(f"{folder} has neither {WEIGHTS}.safetensors nor {WEIGHTS}.bin{others if found else ''}")
    state = read_pickle(path)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        found = ", ".join(map(str, list(state)[:3])) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is not a mapping of names to tensors, as diffusers writes it, but holds "
                         f"{found or 'nothing'}; give the weights alone (a Lightning checkpoint has them under state_dict)")
    return state, path


# ---- import ------------------------------------------------------------------------------------------------------


def read(folder: Path, config: Config | None = None) -> Checkpoint:
    """The checkpoint in a folder of diffusers.

    config  what the folder does not store: "shape" if sample_size is missing; if there is no scheduler, "sde", and the
            time input and parametrization of "model"

    Raises FileNotFoundError if there is no config.json, and a ValueError of one line if a file is truncated, altered or
    would run code, if a setting is not supported, or if keys or shapes do not fit.
    """
    folder, given = Path(folder), config or {}
    place, scheduler = _places(folder)
    fields = _fields(place / "config.json")
    fourier = fields["time_embedding_type"] == "fourier"
    size = _size(fields, given, place)
    told = {"model": _network(fields, size, place / "config.json"), "data": {"low": -1.0, "high": 1.0},
            "shape": [fields["in_channels"], size, size], "levels": 256}
    sde, wanted = (given.get("sde") or {}).get("name"), given
    if scheduler is not None:
        process = _process(scheduler, fourier)
    elif sde is not None:
        time_input = "log_sigma" if fourier else "index"
        process = {"sde": {"name": sde}, "model": {"parametrization": "eps", "time_input": time_input},
                   "data": {"low": 0.0 if fourier else -1.0}}
        untold = ("parametrization", "time_input", "input_std")
        wanted = {"model": {k: v for k, v in (given.get("model") or {}).items() if k not in untold}}
    else:
        raise ValueError(f"{folder} has no scheduler_config.json, which defines the chain; put it beside config.json, or "
                         "set the chain, such as sde.name=ddpm, sde.schedule=linear and sde.steps=1000")
    told = merged(told, process)
    require_agreement(told, wanted, folder)
    resolved = merged(told, given)
    try:
        network = outline(resolved)
    except ValueError as error:
        raise ValueError(f"{folder}: no denoiser has these settings: {error}") from None
    tensors, path = _read_weights(place)
    if "time_proj.W" in tensors and torch.equal(tensors["time_proj.W"], tensors.get("time_proj.weight", torch.empty(0))):
        del tensors["time_proj.W"]      # old files hold the frequencies twice
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    keys = keys_of(network, old=any(key.endswith(".proj_attn.weight") for key in tensors))
    expected = {key: part_shape(name, shapes[name], len(parts)) for name, parts in keys.items() for key in parts}
    require_fit(expected, tensors, path, "give only the settings of this model, or fetch it again "
                "with the config.json that belongs to it")
    joined = {name: torch.cat([tensors[key].float() for key in parts]).reshape(shapes[name]) for name, parts in keys.items()}
    flip = fields["flip_sin_to_cos"] and not fourier
    return Checkpoint(resolved, {name: turned(name, value, flip, fourier) for name, value in joined.items()})


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


def _require(path: Path, field: str, value: Any, *allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(f"{path}: {field} = {value!r:.200} cannot be imported, only {' or '.join(map(repr, allowed))}")


def _fields(path: Path) -> dict[str, Any]:
    """All fields of UNet2DModel from its config.json; ValueError for a value that is not supported."""
    config = _json(path)
    _require(path, "_class_name", config.get("_class_name"), "UNet2DModel")
    for field, value in config.items():
        if field not in FIELDS | CHOICES and not field.startswith("_"):
            _require(path, field, value, None)
    fields = {field: config.get(field, default) for field, (default, _) in FIELDS.items()}
    for field, value in fields.items():
        if type(value) not in FIELDS[field][1]:
            raise ValueError(f"{path} is damaged: {field} = {value!r:.100}; fetch it again")
    for field, allowed in CHOICES.items():
        fields[field] = config.get(field, allowed[0])
        _require(path, field, fields[field], *allowed)
    return fields


def _size(fields: Config, given: Config, place: Path) -> int:
    """Height and width of the pictures: those of config.json if it has them, else those given."""
    size = fields["sample_size"]
    size = size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size
    if size is None:
        size = given["shape"][-1] if given.get("shape") else (given.get("data") or {}).get("image_size")
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{place / 'config.json'}: sample_size = {size!r:.100} is not the size of square pictures; give "
                         "data.image_size")
    return size


def _network(fields: Config, size: int, path: Path) -> dict[str, Any]:
    """The settings of a UNet or NCSNpp for pictures of `size`."""
    down, up = ([str(kind).removeprefix("UNetRes") for kind in fields[f"{way}_block_types"]] for way in ("down", "up"))
    skip = "Skip" if any("Skip" in kind for kind in down) else ""
    kinds = [f"{'Attn' * ('Attn' in kind)}{skip}DownBlock2D" for kind in down]
    _require(path, "down_block_types", down, kinds)
    _require(path, "up_block_types", up, [kind.replace("Down", "Up") for kind in reversed(kinds)])
    widths, channels, groups = fields["block_out_channels"], fields["in_channels"], fields["norm_num_groups"]
    if not 0 < len(widths) == len(kinds) or not all(type(w) is int and w > 0 and w % widths[0] == 0 for w in widths):
        raise ValueError(f"{path}: block_out_channels = {widths!r:.100} cannot be imported, only {len(kinds)} multiples of "
                         "the first one")
    _require(path, "out_channels", fields["out_channels"], channels)
    _require(path, "time_embedding_dim", fields["time_embedding_dim"], None, 4 * widths[0])
    common = {
        "width": widths[0], "multipliers": tuple(w // widths[0] for w in widths), "num_blocks": fields["layers_per_block"],
        "attention_resolutions": tuple(size >> i for i, kind in enumerate(kinds) if "Attn" in kind),
        "dropout": float(fields["dropout"]), "norm_eps": float(fields["norm_eps"]), "freq_shift": fields["freq_shift"],
        "attention_head_dim": fields["attention_head_dim"], "centred": not fields["center_input_sample"],
    }
    if not skip:
        _require(path, "time_embedding_type", fields["time_embedding_type"], "positional")
        _require(path, "mid_block_scale_factor", fields["mid_block_scale_factor"], 1)
        _require(path, "norm_num_groups", groups, groups or 32)
        _require(path, "attn_norm_num_groups", fields["attn_norm_num_groups"], None, groups)
        return {"network": "unet", **common, "groups": groups, "downsample_padding": fields["downsample_padding"]}
    _require(path, "in_channels", channels, 3)
    _require(path, "mid_block_scale_factor", round(float(fields["mid_block_scale_factor"]), 6), round(math.sqrt(2), 6))
    norms = [("norm_num_groups", width) for width in (widths[0], widths[-1])]
    for field, width in [*norms, ("attn_norm_num_groups", widths[-1])]:
        _require(path, field, fields[field], None, min(32, width // 4))      # its other norms have this, whatever is set
    if few := [w for w, kind in zip(widths, kinds, strict=True) if "Attn" in kind and w < 128]:
        raise ValueError(f"{path}: block_out_channels = {few[0]} of an AttnSkipDownBlock2D cannot be imported, only 128 or "
                         "more, since only then its norms have 32 groups here as well")
    return {"network": "ncsnpp", **common, **SKIP, "embedding": fields["time_embedding_type"]}


def _process(path: Path, fourier: bool) -> dict[str, Any]:
    """The SDE, and the network's time input and parametrization, from a scheduler's config."""
    config = _json(path)

    def number(field: str, kinds: tuple[type, ...] = NUMBER) -> float:
        if type(value := config.get(field)) not in kinds:
            raise ValueError(f"{path}: {field} = {value!r:.100} is not a number; the file is damaged, or its scheduler has "
                             "no betas: put the file of a DDPMScheduler there")
        try:
            return float(config[field])
        except OverflowError:
            raise ValueError(f"{path} is damaged: {field} is too large a number; fetch it again") from None

    if config.get("_class_name") == "ScoreSdeVeScheduler":
        time_input, parametrization, _ = next(way for way in VE_READINGS if way[2] == fourier)
        return {"sde": {"name": "ve", "sigma_min": number("sigma_min"), "sigma_max": number("sigma_max")},
                "model": {"parametrization": parametrization, "time_input": time_input}, "data": {"low": 0.0, "high": 1.0}}
    if fourier:      # UNet2DModel divides its output by its time input
        _require(path, "_class_name", config.get("_class_name"), "ScoreSdeVeScheduler")
    for field, value in PLAIN.items():
        _require(path, field, config.get(field, value), value)
    _require(path, "prediction_type", prediction := config.get("prediction_type", "epsilon"), *PREDICTIONS)
    steps, betas = int(number("num_train_timesteps", WHOLE)), config.get("trained_betas")
    if betas is None:
        _require(path, "beta_schedule", schedule := config.get("beta_schedule"), *SCHEDULES)
        sde = {"name": "ddpm", "schedule": SCHEDULES[str(schedule)], "steps": steps}
        if schedule != "squaredcos_cap_v2":
            sde |= {"beta_min": steps * number("beta_start"), "beta_max": steps * number("beta_end")}
    elif isinstance(betas, list) and len(betas) == steps and all(type(beta) in NUMBER for beta in betas):
        sde = {"name": "ddpm", "betas": tuple(map(float, betas))}
    else:
        raise ValueError(f"{path} is damaged: trained_betas are not {steps} numbers (num_train_timesteps); fetch it again")
    return {"sde": sde, "model": {"parametrization": PREDICTIONS[prediction], "time_input": "index"}}


# ---- export ------------------------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, folder: Path, ema: bool = True) -> str:
    """Write a folder laid out as google/ddpm-cifar10-32, for DDPMPipeline, or ScoreSdeVePipeline for the SDE "ve".

    It gets the averaged weights, or the raw ones if `ema` is False. The folder is written whole or not at all. Raises
    ValueError, before anything is written, if the folder exists and is not empty, and for settings that UNet2DModel or the
    schedulers cannot express. Returns what the folder does not store about the data, or "".
    """
    folder, denoiser = Path(folder), checkpoint.denoiser(ema)
    fields = _exported_network(checkpoint.config)
    fourier = fields["time_embedding_type"] == "fourier"
    pipeline, scheduler = _exported_process(checkpoint.config, denoiser.sde, fourier)
    tensors: Weights = {}
    keys = keys_of(denoiser.network)
    for name, value in denoiser.network.state_dict().items():
        parts = turned(name, value, False, fourier).chunk(len(keys[name]))
        tensors |= {key: part.reshape(part_shape(name, value.shape, len(parts))).clone()
                    for key, part in zip(keys[name], parts, strict=True)}
    contents = {f"{WEIGHTS}.safetensors": safetensors.torch.save(tensors, {"format": "pt"})}
    classes = {"scheduler": scheduler["_class_name"], "unet": fields["_class_name"]}
    index = {"_class_name": pipeline, **{part: ["diffusers", kind] for part, kind in classes.items()}}
    for name, words in (("config", fields), ("scheduler_config", scheduler), ("model_index", index)):
        contents[f"{name}.json"] = f"{json.dumps({'_diffusers_version': '0.30.0'} | words, indent=2)}\n".encode()
    with new_folder(folder) as temporary:
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
    levels = checkpoint.config.get("levels", 256)
    return f"it does not store that the data have {levels} levels" if levels != 256 else ""


def _refusal(section: str, field: str, value: Any, reason: str) -> ValueError:
    return ValueError(f"cannot export to diffusers with {section}.{field} = {value!r:.100}: {reason}")


def _exported_network(config: Config) -> dict[str, Any]:
    """The content of the UNet2DModel's config.json."""
    kind = config["model"]["network"]
    if kind not in ("unet", "ncsnpp"):
        raise _refusal("model", "network", kind, "a UNet2DModel can be unet, or ncsnpp with progressive_input=input_skip")
    settings, skip = complete(config)["model"], kind == "ncsnpp"
    channels, size, _ = config["shape"]
    widths = [settings["width"] * m for m in settings["multipliers"]]
    attended = [size >> level in settings["attention_resolutions"] for level in range(len(widths))]
    if settings["multipliers"][0] != 1:
        raise _refusal("model", "multipliers", settings["multipliers"], "those of a UNet2DModel begin with 1")
    for field, value in (SKIP | {"groups": None, "last_label": None}).items() if skip else ():
        if settings[field] != value:
            raise _refusal("model", field, settings[field], f"a UNet2DModel has only {value!r}")
    if skip and channels != 3:
        raise _refusal("data", "channels", channels, "a UNet2DModel's progressive input and output have 3 channels")
    if skip and any(at and w < 128 for w, at in zip(widths, attended, strict=True)):
        raise _refusal("model", "width", widths[0], "a UNet2DModel has other norms in attention with under 128 channels")
    kinds = [f"{'Attn' * at}{'Skip' * skip}DownBlock2D" for at in attended]
    return {
        "_class_name": "UNet2DModel", "act_fn": "silu", "attention_head_dim": settings["attention_head_dim"],
        "block_out_channels": widths, "center_input_sample": not settings["centred"], "down_block_types": kinds,
        "downsample_padding": settings.get("downsample_padding", 0), "dropout": settings["dropout"],
        "flip_sin_to_cos": False, "freq_shift": settings["freq_shift"], "in_channels": channels,
        "layers_per_block": settings["num_blocks"], "mid_block_scale_factor": math.sqrt(2) if skip else 1,
        "norm_eps": settings["norm_eps"], "out_channels": channels, "sample_size": size,
        "norm_num_groups": None if skip else settings["groups"] or min(32, widths[0] // 4),
        "time_embedding_type": settings.get("embedding", "positional"),
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
    }


def _exported_process(config: Config, sde: SDE, fourier: bool) -> tuple[str, dict[str, Any]]:
    """The pipeline's class, and the content of scheduler_config.json."""
    model, data, name = config["model"], config.get("data") or {}, config["sde"]["name"]
    time_input, parametrization = model["time_input"], model["parametrization"]
    exploding = name == "ve" and (time_input, parametrization, fourier) in VE_READINGS
    chain = (name, time_input) in CHAINS and parametrization in PREDICTIONS.values() and not fourier
    if not exploding and not chain:
        place = ("sde", "name", name) if name in ("subvp", "smld") else ("model", "time_input", time_input)
        raise _refusal(*place, f"no scheduler can express {name} with {time_input}, {parametrization} and "
                       f"{'Fourier' if fourier else 'positional'} embedding; they can express ddpm with index, and vp, "
                       "cosine and sigmoid with 999t, each with eps, x0 or v, positional; and ve with log_sigma, eps, "
                       "Fourier, or with sigma, score, positional")
    if model.get("input_std") is not None:
        raise _refusal("model", "input_std", model["input_std"], "diffusers' pipelines give x to the network unscaled")
    ends = data.get("low", -1.0), data.get("high", 1.0)
    if ends != (0.0 if exploding else -1.0, 1.0):
        raise _refusal("data", "low, data.high", ends, "diffusers' pipeline assumes that the data lie in "
                       f"[{0 if exploding else -1}, 1]")
    settings = {field: value for field, value in complete(config)["sde"].items() if field != "name"}
    if exploding:
        return "ScoreSdeVePipeline", {"_class_name": "ScoreSdeVeScheduler", "correct_steps": 1, "num_train_timesteps": 2000,
                                      "sampling_eps": 1e-5, "snr": 0.15, **settings}
    scheduler = {"_class_name": "DDPMScheduler", "clip_sample": True, "variance_type": "fixed_large",
                 "prediction_type": next(theirs for theirs, ours in PREDICTIONS.items() if ours == parametrization)}
    betas = settings["betas"] if name == "ddpm" else _betas_of_labels(sde)
    if betas is not None:
        return "DDPMPipeline", scheduler | {"num_train_timesteps": len(betas), "trained_betas": list(betas)}
    schedule, steps = settings["schedule"], settings["steps"]
    return "DDPMPipeline", scheduler | {
        "num_train_timesteps": steps, "beta_start": (settings["beta_min"] or 0.1) / steps,
        "beta_end": (settings["beta_max"] or 20.0) / steps,
        "beta_schedule": next(theirs for theirs, ours in SCHEDULES.items() if ours == schedule)}


def _betas_of_labels(sde: SDE) -> list[float]:
    """The betas of the chain whose index i is the label 999 t of the network: t = i / 999, and t_min for i = 0.

    The chain is exact except at i = 0, where the network gets the label 0 instead of 999 t_min = 0.01.
    """
    log_alpha = sde.log_alpha((torch.arange(1000, dtype=torch.float64) / 999).clamp(min=sde.t_min))
    return (-torch.expm1(2 * torch.diff(log_alpha, prepend=log_alpha.new_zeros(1)))).tolist()
