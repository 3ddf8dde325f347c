"""Load a trained denoiser from a run, a file or a repository of the Hugging Face hub, in any format; or an autoencoder."""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from ml_collections import ConfigDict

from scorefield.checkpoints.checkpoint import Checkpoint, Config, event_of
from scorefield.checkpoints.formats import (
    diffusers,
    diffusers_autoencoder,
    dit,
    hub,
    openai,
    run,
    score_sde,
    scorefield,
)
from scorefield.configs.sections import SECTIONS, declared
from scorefield.data import datasets
from scorefield.data.codec import Pixels
from scorefield.models.denoiser import Denoiser
from scorefield.models.networks.autoencoder import Autoencoder
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.numerics.files import digest
from scorefield.numerics.text import base_type, nearest

# `find` asks them in this order whether they recognise a path.
FORMATS: dict[str, ModuleType] = {
    "diffusers": diffusers, "run": run, "scorefield": scorefield, "score_sde": score_sde,
    "dit": dit, "openai": openai,
}
AUTOENCODER = "autoencoder"      # as model.network
DECODER_STD = 0.1      # of the decoder beside a published model of latents, which says none
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
    if checkpoint.config["data"].get("autoencoder") and module not in (run, scorefield):
        checkpoint = _of_latents(checkpoint)
    checkpoint.check()
    return checkpoint


def _of_latents(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of another program whose data are latents of the autoencoder that it or the user names: its shape
    becomes that of the pictures.
    """
    config, event = checkpoint.config, list(event_of(checkpoint.config))
    found = autoencoder_at(config["data"]["autoencoder"])
    latent = list(found.network.latent)
    if latent[1:] != event[1:] and len(latent) == len(event):      # an autoencoder of diffusers takes pictures of any size
        sides = [side * whole // part for side, whole, part in zip(event[1:], found.shape[1:], latent[1:], strict=True)]
        found = autoencoder_at(found.source, shape=[found.shape[0], *sides])
        latent = list(found.network.latent)
    if latent != event:
        raise ArgumentError(f"the autoencoder {found.source} makes latents of shape {tuple(latent)}, and this model has "
                            f"learned {tuple(event)}", "data.autoencoder")
    if found.network.scaling is None:
        raise ArgumentError(f"the autoencoder {found.source} has no scaling, so that nothing tells the units of the latents "
                            "that this model has learned", "data.autoencoder")
    data = config["data"] | {name: getattr(found.pixels, name) for name in ("low", "high")}
    config = {**config, "shape": list(found.shape), "levels": found.pixels.levels, "data": data,
              "latents": found.stored() | {"decoder_std": DECODER_STD}}
    return dataclasses.replace(checkpoint, config=config)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained autoencoder, the codec and the shape of its pictures, and a digest of what its latents depend on."""

    network: Autoencoder
    pixels: Pixels
    shape: tuple[int, ...]
    digest: str
    source: str

    def stored(self) -> dict[str, Any]:
        """The codec of its latents, as `Latents.stored` returns it: scaled as the network tells, or as they are."""
        mean, std = 0.0, 1.0
        if self.network.scaling is not None:
            mean, std = self.network.shift or 0.0, 1 / self.network.scaling
        channels = self.network.latent[0]
        return {"shape": list(self.network.latent), "mean": [mean] * channels, "std": [std] * channels, "decoder_std": 1.0,
                "digest": self.digest}


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


def autoencoder_at(source: str, device: Any = "cpu", shape: Sequence[int] | None = None) -> Trained:
    """The autoencoder of a run or a checkpoint, with averaged weights; ArgumentError (data.autoencoder) if it is none.

    shape  of the pictures, for a folder of diffusers, which does not fix that
    """
    try:
        path = find(source)[1]      # a model on the hub is asked for once
        free = shape is not None and diffusers_autoencoder.recognises(path)
        with renamed(names={"config": "data.autoencoder"}):
            checkpoint = read_checkpoint(path, {"shape": list(shape)} if free and shape is not None else None)
    except (OSError, ValueError) as error:      # ValueError: the hub cannot be asked, or the file is none
        raise ArgumentError(f"no autoencoder: {error}", "data.autoencoder") from None
    config = checkpoint.config
    if config["model"]["network"] != AUTOENCODER:
        raise ArgumentError(f"{source} is no autoencoder, but a {config['model']['network']}; train one, as with "
                            "configs/fashion_autoencoder.py", "data.autoencoder")
    pixels = datasets.codec_of(config["data"], config)
    assert isinstance(pixels, Pixels)      # as its objective demands
    network = checkpoint.denoiser().network.to(device)
    assert isinstance(network, Autoencoder)
    weights = {name: weight for name, weight in network.state_dict().items() if not name.startswith("discriminator.")}
    of = [type(pixels).__name__, vars(pixels), list(config["shape"]), network.scaling, network.shift,
          dict(sorted(weights.items()))]
    return Trained(network, pixels, tuple(config["shape"]), digest(of)[:16], source)
