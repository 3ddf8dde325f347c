"""What a run starts from: its own config.json, or a checkpoint of any format."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scorefield.checkpoints import Checkpoint, read_checkpoint
from scorefield.checkpoints.checkpoint import merged
from scorefield.checkpoints.formats.run import newest_checkpoint
from scorefield.checkpoints.load import SUFFIXES, find
from scorefield.configs.default import get_config
from scorefield.configs.loading import all_fields, override
from scorefield.data import levels_of
from scorefield.models import build_sde
from scorefield.models.build import effective


def from_stored(stored: dict[str, Any], place: str | Path) -> ConfigDict:
    """The config of a run from its config.json, with the types of configs/default.py; it has what the run did not know.

    place  the file, for messages
    """
    config = get_config()
    try:
        for section, fields in config.items():
            for field, value in stored[section].items():
                fields[field] = tuple(value) if isinstance(value, list) else value
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the config of {place} is damaged or of another version: {error}") from None
    if unknown := set(all_fields(config)) - set(all_fields(get_config())):
        raise ValueError(f"the config of {place} is damaged or of another version: it has {', '.join(sorted(unknown))}")
    return config


def stem_of(source: str) -> str:
    """A run's name for a checkpoint: checkpoint_24 of checkpoint_24.pth, ddpm-cifar10-32 of google/ddpm-cifar10-32@main."""
    path = _path(source)
    name = Path(os.path.abspath(path)).name if path.exists() else Path(source.partition("@")[0]).name
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in (*SUFFIXES, ".pt") else name


def import_checkpoint(source: str, given: ConfigDict | None, overrides: list[tuple[str, str]]) -> Checkpoint:
    """What `source` holds, with a config that says everything: what the checkpoint tells, else the config given, else
    defaults. What it tells of the SDE and the model cannot be said otherwise; of the data and the training it can, by a
    config as a whole and by overrides field by field.

    Without a config the data are taken to be CIFAR-10 or a folder of pictures, unless it tells them.
    """
    chosen = given or get_config()
    said: dict[str, Any] = {}
    for field, text in overrides:
        override(chosen, field, text)
        section, name = field.split(".")
        said.setdefault(section, {})[name] = chosen[section][name]
    path = _located(source)
    checkpoint = read_checkpoint(path, said if given is None else chosen)
    told, shape, defaults = checkpoint.config, checkpoint.config["shape"], get_config().to_dict()
    config = merged(merged(defaults, told), effective(chosen.to_dict()) if given else said)
    dataset = (said.get("data") or {}).get("dataset")
    if given:
        config["data"] = chosen.data.to_dict()
    if (given or dataset is not None) and chosen.data.dataset != told["data"].get("dataset"):      # nothing of what it tells
        config |= {"data": chosen.data.to_dict(), "levels": levels_of(chosen.data.dataset)}
    elif dataset is None and "dataset" not in told["data"]:
        config["data"]["dataset"] = "cifar10" if list(shape) == [3, 32, 32] else "folder"
    config["data"] |= {end: told["data"][end] for end in ("low", "high") if end in told["data"]}
    if config["data"]["dataset"] == "folder":
        config["data"] |= {"channels": shape[0], "image_size": shape[-1]}
    origin = {"source": _place(source), "sha256": _contents(path), "step": checkpoint.step}
    imported = dataclasses.replace(checkpoint, config=config | {"config": stem_of(source), "origin": origin})
    imported.check()
    return imported


def _path(source: str) -> Path:
    return Path(os.path.expanduser(source))


def _located(source: str) -> Path:
    """Where a checkpoint is, which may be on the hub; raises as `find`."""
    return _path(source) if _path(source).exists() else find(source)[1]


def _place(source: str) -> str:
    """The absolute path of a file or folder; the name of a model on the hub as it is."""
    path = _path(source)
    return str(path.resolve()) if path.exists() else source


def _contents(path: Path) -> str:
    """SHA-256 of the files that make a checkpoint, with their names in its folder."""
    patterns = ("config.json", "model_index.json", "scheduler_config.json", "*.safetensors", "*.bin", "*.pth")
    found = [path] if path.is_file() else [*path.glob("checkpoints/*.pt")] + [
        file for folder in ("", "unet/", "scheduler/") for pattern in patterns for file in path.glob(folder + pattern)]
    total = hashlib.sha256()
    for file in sorted(found):
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        total.update(f"{file.relative_to(path).as_posix()} {digest}\n".encode())
    return total.hexdigest()


def started_from(stored: dict[str, Any], source: str) -> bool:
    """Whether a run was made of `source` as it is now; a model on the hub counts as it was fetched.

    Raises as `find` where there is no such source.
    """
    origin = stored.get("origin", {})
    if origin.get("source") == source and not _path(source).exists():
        return True
    return origin.get("sha256") == _contents(_located(source))


def untouched(stored: dict[str, Any], run: Path) -> bool:
    """Whether a run is a checkpoint that was imported, and no step of training was added."""
    origin, newest = stored.get("origin", {}), newest_checkpoint(run)
    return newest is not None and newest.stem == f"step_{origin.get('step')!s:0>8}"


def describe(checkpoint: Checkpoint) -> str:
    """A line on what was read: the network, its size, the SDE, the step and which weights there are."""
    parameters = sum(weight.numel() for weight in checkpoint.averaged.values())
    sets = "raw and averaged weights" if checkpoint.raw is not None else "one set of weights"
    state = ", optimiser" if checkpoint.optimizer is not None else ""
    return (f"{checkpoint.config['model']['network']} of {parameters:,} parameters, examples of shape "
            f"{tuple(checkpoint.config['shape'])}, {build_sde(ConfigDict(checkpoint.config))}, step {checkpoint.step}, "
            f"{sets}{state}{checkpoint.note and '; '}{checkpoint.note}")
