"""Import of checkpoints that score_sde_pytorch wrote (Song et al. 2021), raw or averaged weights, with their training state.

Such a file is a pickle of {optimizer, model, ema, step}. Its network is one list of modules without names, in the order
in which the reference runs them:

    [Fourier frequencies], two linear layers of time, first convolution,
    on the way down, a level:  (block, [attention]) num_blocks times, then [resampling, [progressive input]]
    in the middle:             block, attention, block
    on the way up, a level:    block num_blocks + 1 times, [attention], [norm, convolution to the picture], [resampling]

`reference_order` walks an NCSNpp in that order, which gives each of its parameters the names under which the file has it.
Three things differ besides names. The reference's 1x1 convolutions of attention and of DDPM's shortcuts are matrices (in,
out), ours kernels (out, in, 1, 1), and q, k and v are one here. Its variance-exploding networks give sigma score = -eps:
the sign is taken into the weights of the last convolutions, so that every network imported predicts eps.

Nothing but tensors and plain values is unpickled; of NumPy a scalar number only, which becomes a Python float.
"""

import pickle
import re
import textwrap
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.denoiser import Denoiser
from models.ncsnpp import ConvDown, ConvUp, Head, InputSkip, NCSNpp
from models.unet import ResidualBlock, SelfAttention
from sde_lib import SDE, VESDE, VPSDE, SubVPSDE

# ---- reading the file --------------------------------------------------------------------------------------------


class _NumberType:
    """Stands for numpy.dtype in a pickle: the type of one number, "f8" say."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        self.type = np.dtype(code if code[:1] in ("f", "i", "u", "b") else "V")
        if self.type.kind not in "fiub":
            raise ValueError(f"a NumPy scalar of type {code!r:.20}")

    def __setstate__(self, state: tuple) -> None:      # the byte order; the rest is None for numbers
        if state[1] in ("<", ">"):
            self.type = self.type.newbyteorder(state[1])


def _number(kind: Any, data: bytes) -> float | int | bool:
    """Stands for numpy's `scalar`: a Python number from its type and bytes."""
    if not isinstance(kind, _NumberType) or not isinstance(data, bytes) or len(data) != kind.type.itemsize:
        raise ValueError("a damaged NumPy scalar")
    return np.frombuffer(data, kind.type)[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for codecs.encode, by which a pickle of protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r:.20}")
    return text.encode("latin1")


# The only names besides torch's own that a file may use, and what is called in their place.
_ALLOWED: list[Any] = [
    (_number, "numpy.core.multiarray.scalar"), (_number, "numpy._core.multiarray.scalar"), (_NumberType, "numpy.dtype"),
    (_latin1, "_codecs.encode"),
]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a file of score_sde_pytorch holds, on the CPU: {optimizer, model, ema, step}; no code of it runs.

    Raises OSError where it cannot be read; ValueError for a truncated, altered or foreign file, or one that would run
    code or asks for anything besides tensors and plain values.
    """
    path = Path(path)
    with open(path, "rb") as file:
        try:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    if (damaged := archive.testzip()) is not None:
                        raise ValueError(f"the checksum of {damaged} does not match")
            file.seek(0)
            with torch.serialization.safe_globals(_ALLOWED):
                state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:      # the reader of damaged archives raises errors of every type
            text = " ".join(str(error).split()).partition("WeightsUnpickler error: ")
            reason = (text[2] or text[0]).partition(" Please ")[0]
            asked = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.[\w.]+)", reason)
            if isinstance(error, pickle.UnpicklingError) and asked:
                raise ValueError(f"{path} is refused, and nothing of it was run: its pickle asks for {asked[1]}, and only "
                                 "tensors, plain values and NumPy numbers are read; ask its author for one of those alone"
                                 ) from None
            raise ValueError(f"{path} is truncated, altered or no checkpoint "
                             f"({textwrap.shorten(reason, 100) or type(error).__name__}); fetch it again") from None
    if not isinstance(state, dict) or not {"model", "ema", "step"} <= set(state):
        found = ", ".join(map(str, list(state)[:6])) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is no checkpoint of score_sde_pytorch: expected the keys optimizer, model, ema, step, "
                         f"found {found or 'none'}")
    return state


def model_tensors(state: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The tensors of the file's network in its own order, less DataParallel's `module.`; ValueError for another one."""
    model = state["model"]
    if not isinstance(model, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in model.items()):
        raise ValueError(f"{path} is damaged: its `model` is no mapping of names to tensors")
    tensors = {key.removeprefix("module."): value for key, value in model.items()}
    if len(tensors) != len(model) or not any(key.startswith("all_modules.") for key in tensors):
        raise ValueError(f"{path} holds another network than score_sde_pytorch's: expected keys such as "
                         f"module.all_modules.0.weight, found {', '.join(list(model)[:3]) or 'none'}; "
                         "take off any prefix but `module.`")
    return tensors


# ---- our parameters in the reference's order ---------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where one of our parameters stands in a file: the keys joined in order along the first axis.

    matrix   the file has (in, out) for our (out, in, 1, 1)
    negated  the file has its negative
    """

    keys: tuple[str, ...]
    matrix: bool = False
    negated: bool = False

    def read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        parts = [tensors[key] for key in self.keys]
        joined = torch.cat([part.T[:, :, None, None] for part in parts] if self.matrix else parts)
        return -joined if self.negated else joined

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
    """The named modules of a network as the reference lists them; a Head counts as two there, norm and convolution."""
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
    """For the name of each of our parameters its place in a file.

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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_fit(network: NCSNpp, plan: Mapping[str, Source], tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """ValueError with the keys that are missing, extra or of another shape, unless the file fits the network."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    expected = {key: source.shape(shapes[name]) for name, source in plan.items() for key in source.keys}
    missing = [key for key in expected if key not in tensors]
    extra = [key for key in tensors if key not in expected and key != "sigmas"]
    wrong = [f"{key} is {tuple(tensors[key].shape)} instead of {shape}" for key, shape in expected.items()
             if key in tensors and tuple(tensors[key].shape) != shape]
    found = [f"{len(names)} {word} ({_listed(names)})" for word, names in
             (("missing", missing), ("extra", extra), ("of another shape", wrong)) if names]
    if found:
        raise ValueError(f"{path} does not fit the network: keys {'; '.join(found)}; pass the settings that it was trained "
                         "with (settings=...) or fetch the file again")


# ---- which network, which SDE ------------------------------------------------------------------------------------


def infer_settings(tensors: Mapping[str, Tensor], path: str | Path = "the file") -> dict[str, Any]:
    """The settings of NCSNpp that the names and shapes of a file's tensors tell.

    Not told, and as published unless given: the image size (attention is taken to be at 16 x 16), skip_rescale (on but
    for DDPM blocks), groups, fir where no filtered convolution shows it (on where anything is progressive), dropout.
    Raises ValueError for tensors that are no such network.
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
    except (LookupError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} does not tell its network ({reason}); fetch the file again, or pass all settings "
                         "(settings=...) to see which keys differ") from None


class _Shapes(dict[str, tuple[int, ...]]):
    """The shapes of one module's tensors, by name; KeyError with the whole key."""

    def __init__(self, index: int):
        super().__init__()
        self.index = index

    def __missing__(self, leaf: str) -> tuple[int, ...]:
        raise KeyError(f"all_modules.{self.index}.{leaf}")

    def has(self, part: str) -> bool:
        return any(leaf.startswith(f"{part}.") for leaf in self)


def _parse(modules: list[_Shapes]) -> dict[str, Any]:
    """Follows the channels down to where a block takes more than there are: there the way up begins."""
    fourier = "W" in modules[0]
    start = 3 if fourier else 2
    width, channels = modules[start]["weight"][:2]
    biggan = any(module.has("Conv_2") for module in modules)
    levels: list[dict[str, Any]] = [{"blocks": 0, "attention": False, "width": width}]
    c, progressive_input, combine, fir, up = width, "none", "sum", False, 0
    for i, module in enumerate(modules[start + 1:], start + 1):
        level = levels[-1]
        if module.has("Dense_0") or module.has("GroupNorm_1"):
            c_out, c_in = module["Conv_0.weight"][:2]
            if c_in != c:
                up = i
                break
            if biggan and c_in == c_out and module.has("Conv_2"):
                levels.append({"blocks": 0, "attention": False, "width": c})
            else:
                level["blocks"] += 1
                c = level["width"] = c_out
        elif "NIN_3.W" in module or "NIN_0.W" in module:
            level["attention"] = level["blocks"]
        else:
            fir |= module.has("Conv2d_0")
            kernel = module["Conv2d_0.weight" if module.has("Conv2d_0") else "Conv_0.weight"]
            if kernel[2] == 1:
                progressive_input = "input_skip"
                if modules[i + 1]["Conv_0.weight"][1] == 2 * c:
                    combine, c = "cat", 2 * c
            elif level["blocks"] and not biggan:
                levels.append({"blocks": 0, "attention": False, "width": c})
            else:
                progressive_input = "residual"
    if not up:
        raise ValueError("its blocks end before the way up")
    levels[-1]["blocks"] -= 2      # of the middle, as its attention
    num_blocks = levels[0]["blocks"]
    attended = [i for i, level in enumerate(levels[:-1]) if level["attention"]]
    if "NIN_3.W" in modules[up - 4]:      # the last level's own attention, before the middle's
        attended.append(len(levels) - 1)
    heads = sum("weight" in module and len(module["weight"]) == 1 for module in modules[up:])
    progressive = "output_skip" if heads > 1 else "none"
    image_size = 16 << attended[0] if attended else 8 << (len(levels) - 1)
    return {
        "image_size": image_size, "channels": channels, "width": width,
        "multipliers": tuple(level["width"] // width for level in levels), "num_blocks": num_blocks,
        "attention_resolutions": tuple(image_size >> i for i in attended), "block": "biggan" if biggan else "ddpm",
        "embedding": "fourier" if fourier else "positional", "progressive_input": progressive_input,
        "progressive": progressive, "combine": combine, "skip_rescale": biggan, "groups": None if biggan else 32,
        "fir": fir or (biggan and (progressive_input, progressive) != ("none", "none")),
    }


def _field(config: Mapping[str, Any], section: str, name: str) -> Any:
    try:
        return config[section][name]
    except (KeyError, TypeError):
        raise ValueError(f"the configuration has no {section}.{name}; pass one of score_sde_pytorch") from None


def settings_of_reference(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of NCSNpp from a configuration of score_sde_pytorch as nested mappings {model, data}.

    Raises ValueError where it asks for what no published network uses.
    """
    network = _field(config, "model", "name")
    if network not in ("ddpm", "ncsnpp"):
        raise ValueError(f"cannot import the network {network!r}; choose from ddpm, ncsnpp")
    plain, model = network == "ddpm", config["model"]      # "ddpm" reads fewer settings there
    data, needed = partial(_field, config, "data"), partial(_field, config, "model")

    def of(name: str, default: Any) -> Any:
        return default if plain else model.get(name, default)

    for name, allowed in (("conditional", True), ("resamp_with_conv", True), ("nonlinearity", "swish")):
        if model.get(name, allowed) != allowed:
            raise ValueError(f"a network with {name} = {model[name]!r} cannot be imported, only {allowed!r}")
    if tuple(of("fir_kernel", (1, 3, 3, 1))) != (1, 3, 3, 1):
        raise ValueError(f"cannot import the fir_kernel {model['fir_kernel']!r}, only (1, 3, 3, 1)")
    return {
        "image_size": data("image_size"), "channels": data("num_channels"), "centred": data("centered"),
        "width": needed("nf"), "multipliers": tuple(needed("ch_mult")), "num_blocks": needed("num_res_blocks"),
        "attention_resolutions": tuple(needed("attn_resolutions")), "dropout": needed("dropout"),
        "block": of("resblock_type", "ddpm"), "embedding": of("embedding_type", "positional"), "fir": of("fir", False),
        "fourier_scale": float(of("fourier_scale", 16)), "skip_rescale": of("skip_rescale", False),
        "progressive_input": of("progressive_input", "none"), "progressive": of("progressive", "none"),
        "combine": of("progressive_combine", "sum"), "groups": 32 if plain else None,
    }


def sde_of_reference(config: Mapping[str, Any]) -> SDE:
    """The SDE in continuous time of a configuration of score_sde_pytorch {model, training}; ValueError for another."""
    of = partial(_field, config, "model")
    name = str(_field(config, "training", "sde")).lower()
    if name == "vesde":
        return VESDE(float(of("sigma_min")), float(of("sigma_max")))
    if name in ("vpsde", "subvpsde"):
        return (VPSDE if name == "vpsde" else SubVPSDE)(float(of("beta_min")), float(of("beta_max")))
    raise ValueError(f"unknown SDE {name!r}; choose from vpsde, subvpsde, vesde")


# ---- the import --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """An imported checkpoint.

    denoiser     in evaluation mode and without gradients, with the averaged or the raw weights as asked
    settings     of its network, an NCSNpp
    raw, averaged    both sets of weights, for its load_state_dict
    step         updates done
    ema_decay    of the average, and
    ema_updates  the number of its updates
    optimizer    state of torch.optim.Adam over network.parameters(), for its load_state_dict; None if the file has none
    """

    denoiser: Denoiser
    settings: dict[str, Any]
    raw: dict[str, Tensor]
    averaged: dict[str, Tensor]
    step: int
    ema_decay: float
    ema_updates: int
    optimizer: dict[str, Any] | None


def load_score_sde(path: str | Path, ema: bool = True, settings: Mapping[str, Any] | None = None,
                   sde: SDE | None = None) -> Imported:
    """A checkpoint of score_sde_pytorch as a denoiser that predicts eps, with all that training needs to go on.

    path      its .pth file
    ema       the averaged weights, or else the raw ones
    settings  of NCSNpp, where the file does not tell them (see `infer_settings`); they go before what it tells
    sde       that it was trained for. None: VE with the file's sigmas for a network with Fourier embedding, else VP. A
              chain's SDE (DDPM's or SMLD's, by its own indices) for one trained in discrete time

    Data lie in [0, 1] for a variance-exploding SDE, else in [-1, 1], unless settings["centred"] says otherwise.
    Raises OSError, or ValueError of one line: a file that is truncated, altered, foreign or would run code, or keys and
    shapes that do not fit.
    """
    path = Path(path)
    state = read_checkpoint(path)
    tensors = model_tensors(state, path)
    given = dict(settings or {})
    told = infer_settings(tensors, path) if not {"width", "multipliers", "num_blocks"} <= set(given) else {}
    if "image_size" in given and "attention_resolutions" in told:      # the file tells the level, not the resolution
        told["attention_resolutions"] = tuple(r * given["image_size"] // told["image_size"]
                                              for r in told["attention_resolutions"])
    fourier = (told | given).get("embedding") == "fourier"
    if sde is None:
        sde = _exploding(tensors, path) if fourier else VPSDE()
    exploding = isinstance(sde, VESDE)
    if fourier and not exploding:
        raise ValueError(f"{path}: a network with Fourier embedding is imported for the VE SDE only, got {sde}")
    discrete = hasattr(sde, "steps")
    if exploding and not fourier and not discrete:
        raise ValueError(f"{path}: a variance-exploding network with positional embedding was trained at the indices of a "
                         "chain; pass sde=sde_lib.smld(...)")
    known = {"centred": not exploding} | told | given
    if exploding and discrete and not fourier:
        known = {"last_label": sde.steps - 1} | known      # type: ignore[attr-defined]
    try:
        network = NCSNpp(**known)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: no network has these settings: {error}") from None
    plan = sources(network, negated=exploding)
    check_fit(network, plan, tensors, path)
    trainable = [key for key in tensors if key != "sigmas" and key != "all_modules.0.W"]
    shadow = dict(zip(trainable, _shadow(state["ema"], [tensors[key] for key in trainable], path), strict=True))
    raw = {name: plan[name].read(tensors) for name, _ in network.named_parameters()}
    averaged = {name: plan[name].read(tensors | shadow) for name, _ in network.named_parameters()}
    network.load_state_dict(averaged if ema else raw)
    time_input = "log_sigma" if fourier else "index" if discrete else "999t"
    denoiser = Denoiser(network, sde, "eps", time_input).eval().requires_grad_(False)
    optimizer = _optimizer(state.get("optimizer"), network, plan, [k for k in tensors if k != "sigmas"], trainable, path)
    try:
        step, decay, updates = int(state["step"]), float(state["ema"]["decay"]), int(state["ema"].get("num_updates") or 0)
    except (TypeError, ValueError):
        raise ValueError(f"{path} is damaged: its step, ema decay or num_updates is no number") from None
    return Imported(denoiser, known, raw, averaged, step, decay, updates, optimizer)


def _exploding(tensors: Mapping[str, Tensor], path: Path) -> VESDE:
    sigmas = tensors.get("sigmas")
    if sigmas is None or sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"{path} does not tell its sigma_min and sigma_max (no key sigmas); pass sde=VESDE(...)")
    low, high = sorted((float(sigmas[0]), float(sigmas[-1])))
    return VESDE(float(f"{low:.9g}"), float(f"{high:.9g}"))      # exp(log(50)) is not quite 50


def _shadow(ema: Any, weights: list[Tensor], path: Path) -> list[Tensor]:
    """The averages, in the order of the trainable parameters."""
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) and "decay" in ema else None
    if not isinstance(shadow, list) or [getattr(s, "shape", None) for s in shadow] != [w.shape for w in weights]:
        number = f"{len(shadow)} tensors, some of other shapes" if isinstance(shadow, list) else "none"
        raise ValueError(f"{path} is damaged: its `ema` should have a decay and {len(weights)} averages of the model's "
                         f"shapes (shadow_params), found {number}")
    return shadow


def _optimizer(state: Any, network: NCSNpp, plan: Mapping[str, Source], every: list[str], trainable: list[str],
               path: Path) -> dict[str, Any] | None:
    """Adam's state for our parameters, from that for the file's: means joined and turned as the weights are."""
    if state is None:
        return None
    converted: dict[int, dict[str, Any]] = {}
    try:
        group, = state["param_groups"]
        keys = every if len(group["params"]) == len(every) else trainable
        held = {key: state["state"][i] for key, i in zip(keys, group["params"], strict=True) if i in state["state"]}
        for number, (name, parameter) in enumerate(network.named_parameters()):
            parts = {key: held[key] for key in plan[name].keys if key in held}
            if len(parts) < len(plan[name].keys):      # not updated yet, or never trained
                continue
            first = next(iter(parts.values()))
            converted[number] = {"step": torch.as_tensor(float(first["step"]))}
            for moment in [m for m in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if m in first]:
                value = plan[name].read({key: part[moment] for key, part in parts.items()})
                if value.shape != parameter.shape:
                    raise ValueError
                converted[number][moment] = value if moment == "exp_avg" else value.abs()
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        raise ValueError(f"{path} is damaged: its `optimizer` is not Adam's over the {len(trainable)} parameters of the "
                         "network; drop that key to import the weights alone") from None
    return {"state": converted, "param_groups": [{**group, "params": list(range(len(plan)))}]}
