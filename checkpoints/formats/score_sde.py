"""Read and write checkpoints of score_sde_pytorch (Song et al. 2021): raw and averaged weights, and the training state.

A file is a pickle of {optimizer, model, ema, step}. score_sde_layout.py maps its keys to our parameters and infers the
network from names and shapes. Only tensors, plain values and NumPy scalars (as Python numbers) are unpickled.
"""

import math
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.checkpoints.checkpoint import (
    Checkpoint,
    Config,
    Weights,
    event_of,
    merged,
    outline,
    plain,
    require_agreement,
    require_dense,
    require_fit,
    unstored_units,
)
from scorefield.checkpoints.formats.pickles import read_pickle
from scorefield.checkpoints.formats.score_sde_layout import Source, infer_settings, sources
from scorefield.checkpoints.formats.score_sde_training import (
    EXPLODING,
    WARMUP,
    adams_settings,
    keyed_optimizer,
    loss_ratio,
    read_optimizer,
    rescaled,
)
from scorefield.models.build import build_sde, complete
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.numerics.files import write_atomically
from scorefield.sde_lib import VESDE

SUFFIX = ".pth"
CHAINS = ("ddpm", "smld")
FIXED = ("sigmas", "all_modules.0.W")      # never trained

# ---- reading the file --------------------------------------------------------------------------------------------


def _read_state(path: Path) -> dict[str, Any]:
    state = read_pickle(path)
    if not isinstance(state, dict) or not {"model", "ema", "step"} <= set(state):
        found = ", ".join(map(str, list(state)[:6])) if isinstance(state, dict) else type(state).__name__
        advice = "fetch it again" if isinstance(state, dict) and "model" in state else \
            "save a Lightning checkpoint or a bare state_dict in that layout first"
        raise ValueError(f"{path} is not a checkpoint of score_sde_pytorch: expected the keys optimizer, model, ema, step, "
                         f"found {found or 'none'}; {advice}")
    return state


def _model_tensors(state: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The tensors of the file's network in its own order, without DataParallel's prefix `module.`.

    Raises ValueError for the network of another program.
    """
    model = state["model"]
    require_dense(model, path)
    tensors = {key.removeprefix("module."): value for key, value in model.items()}
    if len(tensors) != len(model) or not any(key.startswith("all_modules.") for key in tensors):
        raise ValueError(f"{path} does not hold a network of score_sde_pytorch: expected keys such as "
                         f"module.all_modules.0.weight, found {', '.join(list(model)[:3]) or 'none'}; "
                         "remove any prefix but `module.`")
    return tensors


# ---- a configuration of the reference ----------------------------------------------------------------------------


def _field(config: Mapping[str, Any], section: str, name: str) -> Any:
    try:
        return config[section][name]
    except (KeyError, TypeError):
        raise ValueError(f"the configuration has no {section}.{name}; pass one of score_sde_pytorch") from None


def config_of_reference(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our config {sde, model, data, shape, reduce_mean} from a configuration of score_sde_pytorch {model, data, training}.

    Raises ValueError for a setting that no published network uses.
    """
    network = _field(config, "model", "name")
    if network not in ("ddpm", "ncsnpp"):
        raise ValueError(f"cannot import the network {network!r}; choose from ddpm, ncsnpp")
    ddpm, model = network == "ddpm", config["model"]      # the reference's ddpm reads fewer settings
    data, needed = partial(_field, config, "data"), partial(_field, config, "model")

    def of(name: str, default: Any) -> Any:
        return default if ddpm else model.get(name, default)

    for name, allowed in (("conditional", True), ("resamp_with_conv", True), ("nonlinearity", "swish")):
        if model.get(name, allowed) != allowed:
            raise ValueError(f"a network with {name} = {model[name]!r} cannot be imported, only {allowed!r}")
    if tuple(of("fir_kernel", (1, 3, 3, 1))) != (1, 3, 3, 1):
        raise ValueError(f"cannot import the fir_kernel {model['fir_kernel']!r}, only (1, 3, 3, 1)")
    settings: dict[str, Any] = {
        "width": needed("nf"), "multipliers": tuple(needed("ch_mult")), "num_blocks": needed("num_res_blocks"),
        "attention_resolutions": tuple(needed("attn_resolutions")), "dropout": needed("dropout"),
        "block": of("resblock_type", "ddpm"), "embedding": of("embedding_type", "positional"), "fir": of("fir", False),
        "fourier_scale": float(of("fourier_scale", 16)), "skip_rescale": of("skip_rescale", False),
        "progressive_input": of("progressive_input", "none"), "progressive": of("progressive", "none"),
        "combine": of("progressive_combine", "sum"), "groups": 32 if ddpm else None,
    }
    sde, shape = _sde_of_reference(config), [data("num_channels"), data("image_size"), data("image_size")]
    exploding = sde["name"] in EXPLODING
    if model.get("scale_by_sigma", exploding) != exploding:
        raise ValueError(f"a network with scale_by_sigma = {model['scale_by_sigma']!r} under {sde['name']!r} cannot be "
                         f"imported, only {exploding!r}")
    return {"sde": sde, "model": settings, "data": {"low": -1.0 if data("centered") else 0.0}, "shape": shape,
            "reduce_mean": bool(config["training"].get("reduce_mean", not exploding))}


def _sde_of_reference(config: Mapping[str, Any]) -> dict[str, Any]:
    of = partial(_field, config, "model")
    name = str(_field(config, "training", "sde")).lower()
    names = {"vpsde": "vp", "subvpsde": "subvp", "vesde": "ve"}
    if name not in names:
        raise ValueError(f"unknown SDE {name!r}; choose from {', '.join(names)}")
    ends = ("sigma_min", "sigma_max") if name == "vesde" else ("beta_min", "beta_max")
    settings = {"name": names[name]} | {end: float(of(end)) for end in ends}
    if not config["training"].get("continuous", True) and name != "subvpsde":
        settings |= {"name": "smld" if name == "vesde" else "ddpm", "steps": int(of("num_scales"))}
    return settings


# ---- the import and the export -----------------------------------------------------------------------------------


def recognises(path: Path) -> bool:
    """Whether `path` is a .pth."""
    return path.suffix == SUFFIX and path.is_file()


def _time_input(sde: str, embedding: str | None) -> str:
    return "log_sigma" if embedding == "fourier" else "index" if sde in CHAINS else "999t"


def _told(tensors: Mapping[str, Tensor], given: Config, path: Path) -> dict[str, Any]:
    """The config that the file implies, with published values for what neither the file nor `given` sets."""
    wanted = {k: v for k, v in given.get("model", {}).items() if v is not None}
    data = given.get("data", {})
    size: Any = given["shape"][-1] if "shape" in given else data.get("image_size")
    if size is not None and size < 1 or len({*given.get("shape", [1, 1, 1])[1:]}) != 1:
        raise ValueError(f"{path} takes square pictures, got the shape {given.get('shape', size)} "
                         "(data.image_size)")
    settings: dict[str, Any] = {}
    try:
        settings = infer_settings(tensors)
    except ValueError as error:
        if size is None or not {"width", "multipliers", "num_blocks"} <= set(wanted):
            raise ValueError(f"the network of {path} cannot be inferred ({error}); fetch it again, or give all settings and "
                             "the size of the pictures to see which keys differ (data.image_size)") from None
        shape = list(given.get("shape") or (data.get("channels") or 3, size, size))
    else:
        known = settings.pop("image_size")
        size = size or known
        if size is None:
            raise ValueError(f"{path} does not store the size of its pictures; give data.image_size")
        shape = [settings.pop("channels"), size, size]      # the file implies the level of attention, not its resolution
        settings["attention_resolutions"] = tuple(r * size // known for r in settings["attention_resolutions"])
    embedding = wanted.get("embedding", settings.get("embedding"))
    name = given.get("sde", {}).get("name") or ("ve" if embedding == "fourier" else "vp")
    if embedding == "fourier" and name not in EXPLODING:
        raise ValueError(f"{path}: a network with Fourier embedding can be imported only for the VE SDE, got {name!r} "
                         "(sde.name)")
    if embedding != "fourier" and name == "ve":
        raise ValueError(f"{path}: a variance-exploding network with positional embedding was trained at the indices of a "
                         "chain; set sde.name = smld")
    sigmas = tensors.get("sigmas", torch.empty(0))      # one for each step of the chain, under every SDE
    scales = len(sigmas) if sigmas.ndim == 1 else 0
    sde: dict[str, Any] = {"name": name} | ({"steps": scales} if name == "ddpm" and scales else {})
    if name in EXPLODING:
        sde |= _sigmas(sigmas, given.get("sde", {}), name, path)
    low = data["low"] if data.get("low") is not None else 0.0 if name in EXPLODING else -1.0
    settings |= {"network": "ncsnpp", "parametrization": "eps", "time_input": _time_input(name, embedding),
                 "centred": low < 0, "last_label": _last_label(sde, embedding), "dropout": 0.0 if size >= 256 else 0.1}
    return {"sde": sde, "model": settings, "data": {"low": low, "high": 1.0}, "shape": shape, "levels": 256,
            **({"num_scales": scales} if scales else {})}


def _last_label(sde: Config, embedding: str | None) -> int | None:
    """The last label of SMLD's chain, whose labels count down. A Fourier embedding takes sigma and has no labels."""
    return sde["steps"] - 1 if sde["name"] == "smld" and embedding != "fourier" else None


def _sigmas(sigmas: Tensor, given: Config, name: str, path: Path) -> dict[str, Any]:
    """The settings of a variance-exploding SDE from the file's sigmas, or from `given` if the file has none."""
    fields = ("sigma_min", "sigma_max", *(["steps"] if name == "smld" else []))
    if sigmas.ndim != 1 or len(sigmas) < 2:
        if missing := [field for field in fields if given.get(field) is None]:
            raise ValueError(f"{path} does not store its {' and '.join(missing)} (no key sigmas); give "
                             + " and ".join(f"sde.{field}" for field in missing))
        return {field: given[field] for field in fields}
    told: dict[str, Any] = {"steps": len(sigmas)} if name == "smld" else {}
    ends = sorted((float(sigmas[0]), float(sigmas[-1])))
    for field, end in zip(("sigma_min", "sigma_max"), ends, strict=True):
        value, wanted = float(f"{end:.7g}"), given.get(field)      # exp(log(50)) is not 50, and the file may hold float32
        told[field] = wanted if wanted is not None and math.isclose(wanted, value, rel_tol=1e-6) else value
    return told


def read(path: Path, config: Config | None = None) -> Checkpoint:
    """The checkpoint in a .pth, as a denoiser that predicts eps, with all that training needs to continue.

    config  what the file does not store: {"data": {"image_size"}}, "model" (see `infer_settings`) and "sde". Without "sde",
            a network with Fourier embedding has the VE SDE with the file's sigmas, any other the VP SDE; "ddpm" and "smld"
            are for networks trained in discrete time. Data lie in [0, 1] for "ve" and "smld", else in [-1, 1].
            "reduce_mean": True if the loss was the mean over a picture, False if it was half the sum, see `loss_ratio`

    Raises OSError if the file cannot be read, and a ValueError of one line if it is truncated, altered, of another program
    or would run code, or if keys and shapes do not fit.
    """
    path, given = Path(path), config or {}
    state = _read_state(path)
    tensors = _model_tensors(state, path)
    told = _told(tensors, given, path)
    fixed = {"model": ["network", "parametrization", "time_input", "input_std", "last_label"],
             "sde": [field for field in told["sde"] if field != "name"], "data": ["high"]}
    require_agreement(told, {section: {field: value for field, value in given.get(section, {}).items() if field in fields}
                             for section, fields in fixed.items()}, path)
    resolved = merged(told, {key: given[key] for key in ("sde", "model", "data") if key in given})
    try:
        network = outline(resolved)
    except ValueError as error:
        raise ValueError(f"{path}: no network has these settings: {error}") from None
    assert isinstance(network, NCSNpp)      # checked by require_agreement
    plan = sources(network, negated=resolved["sde"]["name"] in EXPLODING)
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    require_fit({key: source.shape(shapes[name]) for name, source in plan.items() for key in source.keys},
                {key: tensor for key, tensor in tensors.items() if key != "sigmas"}, path,
                f"{_own_settings(tensors, resolved['model'])}give the settings that it was trained with, or "
                "fetch the file again")
    trainable = [key for key in tensors if key not in FIXED]
    shadow = dict(zip(trainable, _shadow(state["ema"], [tensors[key] for key in trainable], path), strict=True))
    optimizer = read_optimizer(state.get("optimizer"), network, plan, [k for k in tensors if k != "sigmas"], trainable, path)
    if "reduce_mean" in given:
        resolved["reduce_mean"] = given["reduce_mean"]
    unit = 1 / loss_ratio(resolved)
    try:
        step, ema = int(state["step"]), state["ema"]
        decay, updates = float(ema["decay"]), int(step if ema.get("num_updates") is None else ema["num_updates"])
        optimizer = rescaled(optimizer, unit)
        adams = adams_settings(optimizer, step)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        raise ValueError(f"{path} is damaged: its step, ema decay, num_updates or Adam's settings are not numbers") from None
    if not (0 <= step < 2**53 and 0 <= updates < 2**53 and 0 <= decay < 1):
        raise ValueError(f"{path} is damaged: its step is {step:.3g}, the decay of its averages is {decay} after "
                         f"{updates:.3g} updates")
    training = {"ema_decay": decay, "grad_clip": unit} | adams | given.get("training", {})      # theirs is clipped at 1
    note = "the size of its pictures is guessed from the level of attention (data.image_size)"
    return Checkpoint(merged(resolved, {"training": training}), _named(plan, tensors | shadow), _named(plan, tensors), step,
                      updates, optimizer, str(path),
                      "" if "shape" in given or given.get("data", {}).get("image_size") else note)


def _own_settings(tensors: Mapping[str, Tensor], wanted: Config) -> str:
    """The inferred settings that differ from `wanted`, for a message; "" if none can be inferred."""
    try:
        told = infer_settings(tensors)
    except ValueError:
        return ""
    told = {field: told[field] for field in ("width", "multipliers", "num_blocks", "block", "embedding", "progressive_input",
                                             "progressive", "combine")}
    return "".join(f"model.{field} is {value!r} there, not {wanted[field]!r}; " for field, value in told.items()
                   if field in wanted and plain(wanted[field]) != plain(value))


def _named(plan: Mapping[str, Source], tensors: Mapping[str, Tensor]) -> Weights:
    return {name: source.read(tensors) for name, source in plan.items()}


def _shadow(ema: Any, weights: list[Tensor], path: Path) -> list[Tensor]:
    """The averages, in the order of the trainable parameters."""
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) and "decay" in ema else None
    if isinstance(shadow, list):
        require_dense({f"shadow_params[{i}]": tensor for i, tensor in enumerate(shadow)}, path)
    if not isinstance(shadow, list) or [getattr(s, "shape", None) for s in shadow] != [w.shape for w in weights]:
        number = f"{len(shadow)} tensors, some of other shapes" if isinstance(shadow, list) else "none"
        raise ValueError(f"{path} is damaged: its `ema` should have a decay and {len(weights)} averages of the model's "
                         f"shapes (shadow_params), found {number}")
    return shadow


def write(checkpoint: Checkpoint, path: Path, ema: bool | str = True) -> str:
    """Write a .pth that score_sde_pytorch restores: its names and order, both sets of weights and Adam's state.

    ema  whether its averages are the averaged weights; if False, the raw ones
    Returns the fields that must be given to read it back, such as sde.name=smld, or "".
    Raises ValueError for a network or an SDE that score_sde_pytorch does not have.
    """
    config = complete(checkpoint.config)
    _require_expressible(config)
    network, training = outline(config), config.get("training") or {}
    assert isinstance(network, NCSNpp)
    plan = sources(network, negated=config["sde"]["name"] in EXPLODING)
    tensors, shadow = _keyed(plan, checkpoint.weights(ema=False)), _keyed(plan, checkpoint.weights(ema))
    sde, ratio = build_sde(config), loss_ratio(config)
    ends = (sde.sigma_max, sde.sigma_min) if isinstance(sde, VESDE) else (50.0, 0.01)
    published = 2000 if event_of(config)[-1] >= 256 else 1000
    scales = sde.steps or config.get("num_scales") or published
    sigmas = torch.linspace(math.log(ends[0]), math.log(ends[1]), scales, dtype=torch.float64).exp()
    other = training.get("optimizer") or "adam"
    adams = checkpoint.optimizer if other == "adam" else None
    optimizer = keyed_optimizer(rescaled(adams, ratio), network, plan, list(tensors))
    state = {
        "optimizer": optimizer,
        "model": {f"module.{key}": tensor for key, tensor in {"sigmas": sigmas, **tensors}.items()},
        "ema": {"decay": float(training.get("ema_decay") or 0.9999),
                "num_updates": checkpoint.ema_updates,
                "shadow_params": [tensor for key, tensor in shadow.items() if key not in FIXED]},
        "step": checkpoint.step,
    }
    optimizer["param_groups"][0] |= {
        "lr": training.get("learning_rate", 2e-4), "betas": (training.get("beta1", 0.9), training.get("beta2", 0.999)),
        "eps": training.get("adam_eps", 1e-8 / ratio) * ratio}
    untold = _untold(config, {"sigmas": sigmas, **tensors}, checkpoint.step, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(state, file))
    lost = [] if other == "adam" else [f"it holds no state of {other}, since score_sde_pytorch has Adam alone"]
    return "; ".join([f"to read it back give {untold}"] * bool(untold) + unstored_units(config) + lost)


def _untold(config: Config, tensors: Mapping[str, Tensor], step: int, path: Path) -> str:
    """The fields of a complete config that a file does not store and that differ from the published ones, as text such as
    sde.name=smld.
    """
    size, name = event_of(config)[-1], config["sde"]["name"]
    alone = "ve" if config["model"]["embedding"] == "fourier" else "vp"
    told = complete(_told(tensors, {"data": {"image_size": size}, "sde": {"name": name}}, path))
    differing = {"data.image_size": size} if infer_settings(tensors)["image_size"] != size else {}
    differing |= {"sde.name": name} if name != alone else {}
    if step < WARMUP and (rate := (config.get("training") or {}).get("learning_rate", 2e-4)) != 2e-4:
        differing["training.learning_rate"] = rate
    for section in ("sde", "model"):
        for field in set(config[section]) - {"fourier_scale", "groups"}:
            value = config[section][field]
            if value is not None and plain(told[section].get(field)) != plain(value):
                differing[f"{section}.{field}"] = value
    if config.get("levels", 256) != 256:
        differing["data.dataset"] = config["data"].get("dataset", "digits")
    words = [shlex.quote(f"{field}={value}") for field, value in sorted(differing.items())]
    if loss_ratio(config) != loss_ratio({"sde": config["sde"], "shape": event_of(config)}):
        words.append(f"(only in Python: config={{'reduce_mean': {config['reduce_mean']}}})")
    return " ".join(words)


def _require_expressible(config: Config) -> None:
    """Raise ValueError for the first setting of a complete config that score_sde_pytorch does not have."""
    sde, model, name = config["sde"], config["model"], config["sde"]["name"]
    if model["network"] != "ncsnpp":
        raise ValueError(f"score_sde_pytorch has no network {model['network']!r}, only 'ncsnpp'; choose another format")
    if len({*event_of(config)[1:]}) != 1:
        raise ValueError(f"score_sde_pytorch has square pictures, the data of this model have the shape "
                         f"{event_of(config)}; choose another format")
    if name not in ("vp", "subvp", *EXPLODING, "ddpm") or sde.get("schedule") not in (None, "linear") or sde.get("betas"):
        schedule = sde.get("betas") or sde.get("schedule")
        raise ValueError(f"score_sde_pytorch has no SDE {name!r} with schedule {schedule!r:.60}; choose another format")
    if (model["embedding"] == "fourier") != (name == "ve") and name != "smld":
        raise ValueError(f"in score_sde_pytorch 've' has model.embedding 'fourier', and 'vp', 'subvp' and 'ddpm' have "
                         f"'positional'; here {name!r} has {model['embedding']!r}; choose another format")
    groups = 32 if model["block"] == "ddpm" else None      # both are 32 if every level has 128 channels or more
    expected = {
        "model.parametrization": "eps", "model.time_input": _time_input(name, model["embedding"]), "model.input_std": None,
        "model.last_label": _last_label(sde, model["embedding"]), "model.norm_eps": 1e-6, "model.freq_shift": 1,
        "model.attention_head_dim": None, "model.groups": groups, "data.low": 0.0 if name in EXPLODING else -1.0,
        "data.high": 1.0, "model.centred": name not in EXPLODING,
        "model.classes": None, "model.scale_shift": False, "model.middle_norm": True,
        "model.energy": False, "model.learned_variance": False, "model.dequantizer": 0,
    }
    for field, value in expected.items():
        section, word = field.split(".")
        found = config[section].get(word)
        alike = field == "model.groups" and found in (None, 32) and model["width"] >= 128
        if found != value and not alike:
            raise ValueError(f"in score_sde_pytorch {field} is {value!r}, here it is {found!r}; choose another format")


def _keyed(plan: Mapping[str, Source], values: Mapping[str, Tensor]) -> Weights:
    """The file's tensors from ours, in the order in which the reference registers them."""
    parts = {key: part for name, source in plan.items() for key, part in source.split(values[name]).items()}
    place: dict[str, int] = {}
    for key in parts:
        place.setdefault(key.rpartition(".")[0], len(place))
    return dict(sorted(parts.items(), key=lambda item: place[item[0].rpartition(".")[0]]))
