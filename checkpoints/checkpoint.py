"""A trained model, whatever its file format: the config that builds its denoiser, its weights, its training state."""

import dataclasses
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.data.codec import Points
from scorefield.data.latents import is_stored
from scorefield.models.build import build_denoiser, complete
from scorefield.models.denoiser import Denoiser
from scorefield.models.ema import PowerEMA, parse_average
from scorefield.models.layers import resolution
from scorefield.numerics.errors import ArgumentError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Weights = dict[str, Tensor]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """What a file or folder of any format holds, on the CPU.

    config       nested, with the fields of configs/default.py: at least {"sde": {"name", ...}, "model": {"network",
                 "parametrization", "time_input", ...}, "data": {"low", "high"}}, then "shape", the shape of one example,
                 and "levels", the number of values of a pixel (None for points). "class_names", a list with a name for
                 each label, is there if they are known, and "standard" (data.codec.Points.stored()) if the data are
                 standardised. Missing fields take their defaults
    averaged     the averaged weights, by the names of the network's state_dict; the only ones if `raw` is None
    raw          the weights that training continues with, or None
    step         number of updates done
    ema_updates  number of updates of the average; its decay is config["training"]["ema_decay"], if the format stores it
    optimizer    the state of torch.optim.Adam over network.parameters(), or None
    source       where the checkpoint comes from, for messages
    note         what was assumed when it was read, for the user
    passed_over  newer checkpoints of its run that are damaged, a line each
    file         that of a run's checkpoint
    further      what else further training depends on, as in training.update: "averages", "schedule", "scaler",
                 "skipped", and the "objective"'s
    run          the folder of the run, where the snapshots of its averages lie
    """

    config: dict[str, Any]
    averaged: Weights
    raw: Weights | None = None
    step: int = 0
    ema_updates: int = 0
    optimizer: dict[str, Any] | None = None
    source: str = "the checkpoint"
    note: str = ""
    passed_over: tuple[str, ...] = ()
    file: Path | None = None
    further: dict[str, Any] = dataclasses.field(default_factory=dict)
    run: Path | None = None

    def weights(self, ema: bool | str = True) -> Weights:
        """The averaged weights; the raw ones if `ema` is False and the checkpoint has them; or another average.

            checkpoint.weights("power0.1")

        ema  the name of one of training.averages, or power and the relative standard deviation of any other
             power-function average, which is made from the run's snapshots (snapshots.py). ArgumentError if it cannot be
        """
        if isinstance(ema, str):
            return self._average(ema)
        return self.averaged if ema or self.raw is None else self.raw

    def _average(self, name: str) -> Weights:
        from scorefield.checkpoints.snapshots import reconstructed  # which reads files of a format above this

        kind, number = parse_average(name)
        held = self.further.get("averages", {})
        for key, state in held.items():
            if parse_average(key) == (kind, number):
                return state["weights"]
        if kind is not PowerEMA or self.run is None:
            raise ArgumentError(f"{self.source} holds no average {name}; it holds {', '.join(['ema', 'raw', *held])}",
                                "average")
        trained = {key for key, _ in outline(self.config).named_parameters()}
        return {**self.averaged, **reconstructed(self.run, held, name, trained)}

    def check(self) -> None:
        """Raise a ValueError of one line if no denoiser can be built from the config, or the weights do not fit it."""
        if self._misfit:
            raise ValueError(self._misfit)

    @cached_property
    def _misfit(self) -> str:
        """What is wrong, or "". Computed once, since it builds an outline of the network and checks every weight."""
        try:
            expected = {name: tensor.shape for name, tensor in outline(self.config).state_dict().items()}
        except ValueError as error:
            return f"{self.source}: no denoiser can be built from its config: {error}"
        try:
            for weights in (self.averaged, self.weights(ema=False)):
                require_fit(expected, weights, self.source, "its config belongs to another network")
        except ValueError as error:
            return str(error)
        return ""

    def denoiser(self, ema: bool | str = True) -> Denoiser:
        """The denoiser with the averaged or raw weights or another average (see `weights`), in evaluation mode, without
        gradients; raises as `check` and `weights`.
        """
        self.check()
        denoiser = build_denoiser(self.config, event_of(self.config))
        weights = self.weights(ema)
        if isinstance(ema, str):
            require_fit({key: tensor.shape for key, tensor in self.averaged.items()}, weights, f"{ema} of {self.source}",
                        "its config belongs to another network")
        denoiser.network.load_state_dict(weights)
        return denoiser.eval().requires_grad_(False)


def outline(config: Config) -> nn.Module:
    """The network of a config without its weights, for names and shapes. It takes no time or memory, whatever its size.

    Raises ValueError as `build_denoiser` does, and for values of a wrong type or size.
    """
    try:
        with torch.device("meta"):
            return build_denoiser(config, event_of(config)).network
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"a value of a wrong type or size ({textwrap.shorten(str(error), 150)})") from None


def outline_of(config: Config, source: Any, what: str = "denoiser") -> Any:
    """The `outline` of what a file or folder of another program tells. Its ValueError names that source."""
    try:
        return outline(config)
    except ValueError as error:
        raise ValueError(f"{source}: no {what} has these settings: {error}") from None


def other_types(tensors: Mapping[str, Tensor]) -> str:
    """The types of weights that are not float32, as which all are read, in words; "" for none."""
    return " and ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - {"float32"}))


def event_of(config: Config) -> tuple[int, ...]:
    """The shape of one example as the network of a stored config sees it: of the data, or of latents."""
    return tuple((config.get("latents") or config)["shape"])


def require_whole(config: Config, source: Any) -> None:
    """Raise ValueError unless the stored config of `source` has the sections and fields that every checkpoint needs."""
    def numbers(values: Any) -> bool:
        return isinstance(values, list | tuple) and bool(values) and all(type(v) is int and v > 0 for v in values)

    levels = config.get("levels", 0)
    wrong = [section for section in ("sde", "model", "data") if not isinstance(config.get(section), dict)]
    wrong += [section for section in ("training", "origin") if not isinstance(config.get(section, {}), dict)]
    wrong += [f"data.{end}" for end in ("low", "high") if "data" not in wrong
              and not (type(number := config["data"].get(end, 0.0)) in (int, float) and math.isfinite(number))]
    wrong += ["shape"] if not numbers(config.get("shape")) else []
    wrong += ["levels"] if levels is not None and not (numbers([levels]) and levels > 1) else []
    wrong += ["standard"] if not {"shape", "levels"} & set(wrong) and not _standardised(config) else []
    wrong += ["latents"] if config.get("latents") is not None and not is_stored(config["latents"]) else []
    names = config.get("class_names", [])
    wrong += ["class_names"] if not isinstance(names, list) or not all(isinstance(name, str) for name in names) else []
    wrong += ["num_scales"] if not numbers([config.get("num_scales", 1)]) or config.get("num_scales", 1) > 10**6 else []
    if wrong:
        raise ValueError(f"{source} is damaged, or is not a config of Scorefield: it has no usable {', '.join(wrong)}")


def _standardised(config: Config) -> bool:
    """Whether a config says nothing of standardisation, or something that fits its data."""
    try:
        if config.get("standard") is not None:
            Points.from_stored(config["standard"]).require_shape(config["shape"], config["levels"])
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return False
    return True


def unstored_units(config: Config) -> list[str]:
    """What to say of a file that cannot store the units of its samples: that they are standardised data, or latents. For
    other data the list is empty.
    """
    if latents := config.get("latents"):
        return [f"it does not store that its samples x are latents of the autoencoder {latents['digest']}: they stand for "
                f"x * {latents['std']} + {latents['mean']}, a number for each channel"]
    standard = Points.from_stored(config.get("standard"))
    return [] if standard.offset == 0 and standard.mean == 0 else [
        f"it does not store how the data are standardised: its samples x stand for x * {standard.std} + {standard.mean}"]


def merged(told: Config, given: Config | None) -> dict[str, Any]:
    """The nested config of a file, `told`, in which the values of `given` replace the file's.

    A field that is None in `given` replaces nothing. A section with another `name` replaces the whole section.
    """
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in told.items()}
    for key, value in (given or {}).items():
        if isinstance(value, Mapping):
            before = result.get(key) or {}
            other = value.get("name") not in (None, before.get("name"))
            result[key] = merged({} if other else before, value)
        elif value is not None:
            result[key] = value
    return result


# Fields in which a config may differ from its checkpoint: they affect only training, or the initial weights.
FREE = ("dropout", "fourier_scale")


def require_agreement(told: Config, given: Config | None, source: Any) -> None:
    """Raise ValueError with the fields of `given` that differ from `told`, the config of `source`.

    The SDE, the model, the range of the data and the size of an example are compared. A field that is None in `given` is
    not compared. A field that is missing in `told` has its default value.
    """
    there, here = complete(told), given or {}
    differing = []
    for section in ("sde", "model", "data"):
        fields = {k: v for k, v in (here.get(section) or {}).items() if v is not None and k not in FREE}
        if section == "data":
            fields = {k: v for k, v in fields.items() if k in ("low", "high")}
        for field in sorted(fields, key=lambda name: (name not in ("name", "network", "schedule"), name)):
            value = (there.get(section) or {}).get(field)
            if _reached(field, fields[field], there) != _reached(field, value, there):
                differing.append((f"{section}.{field}", value, fields[field]))
    shape, data = list(there.get("shape") or ()), here.get("data") or {}
    sizes = [("data.channels", shape[:1], data.get("channels")), ("data.image_size", shape[-1:], data.get("image_size"))]
    differing += [(field, size[0], value) for field, size, value in sizes if size and value not in (None, *size)]
    if shape and "shape" in here and list(here["shape"]) != shape:
        differing.append(("shape", shape, here["shape"]))
    if differing:
        words = ", ".join(f"{field}={value!r}, not {other!r}" for field, value, other in differing[:3])
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        raise ArgumentError(f"{source} was trained with {words}{more}", "config")


def require_network(told: Config, given: Config, assumed: Collection[str], source: Any) -> None:
    """As `require_agreement`, of the network and the range of the data alone.

    assumed  fields of the model that the file does not tell, so that `given` may say others
    """
    fixed = {"model": [field for field in told["model"] if field not in assumed], "data": ["low", "high"]}
    require_agreement(told, {section: {field: given[section][field] for field in fields if field in given.get(section, {})}
                             for section, fields in fixed.items()}, source)


def _reached(field: str, value: Any, config: Config) -> Any:
    """A value as JSON returns it; for attention_resolutions only the resolutions that the network has."""
    if field != "attention_resolutions" or not isinstance(value, list | tuple) or not config.get("shape"):
        return plain(value)
    levels = len(config["model"].get("multipliers") or ())
    return sorted({resolution(event_of(config)[1:] or [1], level) for level in range(levels)} & set(value))


def plain(value: Any) -> Any:
    """A value of a config as JSON returns it."""
    return list(value) if isinstance(value, tuple) else value


def require_fit(expected: Mapping[str, Sequence[int]], tensors: Mapping[str, Tensor], source: Any, advice: str) -> None:
    """Raise ValueError unless every tensor fits. It lists the keys that are missing, extra or of another shape.

    expected  the shape of each key
    advice    what the user can do, for the message
    """
    require_dense(tensors, source)
    missing = [key for key in expected if key not in tensors]
    extra = [key for key in tensors if key not in expected]
    wrong = [f"{key} is {tuple(tensors[key].shape)} instead of {tuple(shape)}" for key, shape in expected.items()
             if key in tensors and tuple(tensors[key].shape) != tuple(shape)]
    found = [f"{len(names)} {word} ({_listed(names)})" for word, names in
             (("missing", missing), ("extra", extra), ("of another shape", wrong)) if names]
    if not found:
        if bad := [key for key in expected if not bool(tensors[key].isfinite().all())]:
            raise ValueError(f"{source} holds weights that are not finite ({_listed(bad)}); take an earlier checkpoint")
        return
    prefixes = {key.removesuffix(missing[0]) for key in extra if key.endswith("." + missing[0])} if missing else set()
    for prefix in sorted(prefixes):      # DataParallel's "module.", Lightning's "model.", torch.compile's "_orig_mod."
        if all(prefix + key in tensors for key in missing):
            advice = f"remove the prefix {prefix!r} from the keys of the file"
    raise ValueError(f"{source} does not fit the network: keys {'; '.join(found)}; {advice}")


def require_dense(tensors: Mapping[str, Tensor], source: Any) -> None:
    """Raise ValueError unless `tensors` maps names to dense tensors of real numbers, as every file of weights does."""
    if not isinstance(tensors, Mapping) or not all(isinstance(key, str) for key in tensors):
        raise ValueError(f"{source} is damaged: its weights are not a mapping of names to tensors")
    if strange := [key for key, tensor in tensors.items() if not isinstance(tensor, Tensor) or tensor.is_nested
                   or tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.dtype not in FLOATS]:
        raise ValueError(f"{source} holds weights that are not dense tensors of 16 to 64 bit real numbers "
                         f"({_listed(strange)}); fetch it again")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
