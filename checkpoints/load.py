"""Load a trained denoiser from a run, a file or a repository of the Hugging Face hub, in any format."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from ml_collections import ConfigDict

from scorefield.checkpoints.checkpoint import Checkpoint, Config
from scorefield.checkpoints.formats import diffusers, dit, hub, openai, run, score_sde, scorefield
from scorefield.configs.sections import SECTIONS, declared
from scorefield.models.denoiser import Denoiser
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.text import base_type, nearest

# `find` asks them in this order whether they recognise a path.
FORMATS: dict[str, ModuleType] = {
    "diffusers": diffusers, "run": run, "scorefield": scorefield, "score_sde": score_sde,
    "dit": dit, "openai": openai,
}
SUFFIXES = {module.SUFFIX: name for name, module in FORMATS.items() if module in (scorefield, score_sde)}      # of files


def find(source: str | Path) -> tuple[ModuleType, Path]:
    """The format of a file, a folder or a hub repository owner/name[@revision], and its path on this machine.

    Raises FileNotFoundError if the source does not exist, ValueError if no format recognises it or the hub does not have
    it, OSError if it cannot be fetched from the hub.
    """
    path = Path(os.path.expanduser(source))
    if not path.exists():
        if not hub.is_id(str(source)) or path.suffix in (".safetensors", ".pth", ".pt", ".ckpt", ".bin"):
            raise FileNotFoundError(f"{source} does not exist; give a run's folder, a .safetensors, a .pth, a .pt, a folder "
                                    "of diffusers, or owner/name of a model on the Hugging Face hub")
        path = hub.fetch(str(source))
    files = [*path.glob("*.safetensors"), *path.glob("*.pth")] if path.is_dir() else []
    for candidate in [path, *files][:2] if len(files) == 1 else [path]:      # a repository with one file means that file
        for module in FORMATS.values():
            if module.recognises(candidate):
                return module, candidate
    raise ValueError(f"{source} is not a checkpoint; give a run's folder (config.json), a folder of diffusers "
                     "(model_index.json, or config.json of a UNet2DModel or DiTTransformer2DModel), a .safetensors, a .pth "
                     "or a .pt")


def read_checkpoint(source: str | Path, config: Config | ConfigDict | None = None, strict: bool = False) -> Checkpoint:
    """The checkpoint at `source`, see `find`.

    config  what the file of another program does not store, nested, with the fields of configs/default.py: such as
            {"sde": {"name": "subvp"}, "data": {"image_size": 64}}, or a whole config, in which None means the default. It
            may repeat what the file stores, but not change it, except for `model.dropout`. Our own formats store all of
            data and training
    strict  whether a run's damaged newest checkpoint is refused; else the one before it is read, and `passed_over` says so

    Raises a ValueError of one line if the file is damaged, would run code, does not fit its network or contradicts
    `config`, and if `config` has an unknown field.
    """
    given = _typed({} if config is None else config.to_dict() if isinstance(config, ConfigDict) else config)
    module, path = find(source)
    checkpoint: Checkpoint = run.read(path, given, strict) if module is run else module.read(path, given)
    checkpoint.check()
    return checkpoint


def _typed(config: Config) -> dict[str, Any]:
    """A config given as a nested mapping; ArgumentError for an unknown field or a value of a wrong type."""
    result = dict[str, Any]()
    if not isinstance(config, Mapping):
        raise ArgumentError(f"config must be a nested mapping such as {{'sde': {{'name': 'subvp'}}}}, got {config!r:.60}",
                            "config")
    for name, fields in config.items():
        if name == "shape":
            if not isinstance(fields, list | tuple) or not fields or not all(type(n) is int and n > 0 for n in fields):
                raise ArgumentError(f"config's shape must be a list of whole numbers above 0, got {fields!r:.60}", "config")
            result[name] = list(fields)
        elif name == "reduce_mean":
            if not isinstance(fields, bool):
                raise ArgumentError(f"config's reduce_mean must be True or False, got {fields!r:.60}", "config")
            result[name] = fields
        elif name not in SECTIONS:
            raise ArgumentError(f"config has no section {name!r}{nearest(str(name), SECTIONS)} (it is nested, such as "
                                "{'sde': {'name': 'subvp'}})", "config")
        elif not isinstance(fields, Mapping):
            raise ArgumentError(f"config's section {name!r} must be a mapping of its fields, got {fields!r:.60}", "config")
        else:
            result[name] = {field: _value(f"{name}.{field}", value) for field, value in fields.items()}
    return result


def _value(field: str, value: Any) -> Any:
    kind, optional = base_type(declared(field))
    value = tuple(value) if isinstance(value, list) else float(value) if kind is float and type(value) is int else value
    if not (value is None or type(value) is kind):
        raise ArgumentError(f"config's {field} must be of type {kind.__name__}, got {value!r:.60}", field)
    return value


def load_denoiser(source: str | Path, ema: bool | str = True, device: torch.device | str = "cpu",
                  config: Config | ConfigDict | None = None, strict: bool = False) -> Denoiser:
    """The trained denoiser of `source`, in evaluation mode and without gradients; see `read_checkpoint`.

    source  the folder that `--mode train` has written, one of its checkpoints, a .safetensors of `--mode convert`, a .pth of
            score_sde_pytorch, a .pt of openai's improved-diffusion or guided-diffusion, or of DiT, a folder of diffusers'
            UNet2DModel or DiTTransformer2DModel, or owner/name of a model on the Hugging Face hub
    ema     whether to take the averaged weights; if False, the raw ones, if the checkpoint has them; or the name of another
            average, such as "power0.1" (see Checkpoint.weights)
    strict  whether a run's damaged newest checkpoint is refused; else the one before it is used, with a warning
    """
    checkpoint = read_checkpoint(source, config, strict)
    for line in checkpoint.passed_over:
        warnings.warn(line, stacklevel=2)
    return checkpoint.denoiser(ema).to(device)
