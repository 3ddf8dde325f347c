"""What a run starts from: its own config.json, or a checkpoint of any format."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.default import get_config
from configs.loading import all_fields, override
from models import Checkpoint, build_sde, read_checkpoint
from models.checkpoint import merged
from models.formats.run import newest_checkpoint

SUFFIXES = {".safetensors": "scorefield", ".pth": "score_sde"}      # of the formats that are files


def from_stored(stored: dict[str, Any]) -> ConfigDict:
    """The config of a run from its config.json, with the types of configs/default.py; it has what the run did not know."""
    config = get_config()
    try:
        for section, fields in config.items():
            for field, value in stored[section].items():
                fields[field] = tuple(value) if isinstance(value, list) else value
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"config.json is damaged or of another version: {error} (--workdir)") from None
    if unknown := set(all_fields(config)) - set(all_fields(get_config())):
        raise ValueError(f"config.json is damaged or of another version: it has {', '.join(sorted(unknown))} (--workdir)")
    return config


def stem_of(source: str) -> str:
    """A run's name for a checkpoint: checkpoint_24 of checkpoint_24.pth, ddpm-cifar10-32 of google/ddpm-cifar10-32@main."""
    name = Path(source.partition("@")[0]).expanduser().resolve().name
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in (*SUFFIXES, ".pt") else name


def import_checkpoint(source: str, given: ConfigDict | None, overrides: list[tuple[str, str]]) -> Checkpoint:
    """What `source` holds, with a config that says everything: what the file tells, else the config given, else defaults.

    Overrides go before all. Without a config the data are taken to be CIFAR-10 or a folder of pictures.
    """
    chosen = given or get_config()
    nested: dict[str, Any] = {}
    for field, text in overrides:
        override(chosen, field, text)
        section, name = field.split(".")
        nested.setdefault(section, {})[name] = chosen[section][name]
    complete = chosen.to_dict()
    wanted = nested if given is None else {section: complete[section] for section in ("sde", "model", "data")}
    checkpoint = read_checkpoint(source, wanted)
    shape = checkpoint.config["shape"]
    if given is None and "dataset" not in checkpoint.config["data"]:
        complete["data"]["dataset"] = "cifar10" if list(shape) == [3, 32, 32] else "folder"
    origin = {"source": source, "modified": _modified(source), "step": checkpoint.step}
    config = merged(merged(complete, checkpoint.config), nested) | {"config": stem_of(source), "origin": origin}
    if config["data"]["dataset"] == "folder":
        config["data"] |= {"channels": shape[0], "image_size": shape[-1]}
    return dataclasses.replace(checkpoint, config=config)


def _modified(source: str) -> int | None:
    """When a file was last written, in nanoseconds; None for what is no file."""
    path = Path(source).expanduser()
    return path.stat().st_mtime_ns if path.is_file() else None


def started_from(stored: dict[str, Any], run: Path, source: str, trained_on: bool) -> bool:
    """Whether a run was made of `source` as it is now, and, unless `trained_on` is fine, holds nothing else."""
    origin = stored.get("origin")
    if not isinstance(origin, dict) or (origin["source"], origin["modified"]) != (source, _modified(source)):
        return False
    newest = newest_checkpoint(run)
    return trained_on or (newest is not None and newest.stem == f"step_{origin['step']:08d}")


def describe(checkpoint: Checkpoint) -> str:
    """A line on what was read: the network, its size, the SDE, the step and which weights there are."""
    parameters = sum(weight.numel() for weight in checkpoint.averaged.values())
    sets = "raw and averaged weights" if checkpoint.raw is not None else "one set of weights"
    state = ", optimiser" if checkpoint.optimizer is not None else ""
    return (f"{checkpoint.config['model']['network']} of {parameters:,} parameters, examples of shape "
            f"{tuple(checkpoint.config['shape'])}, {build_sde(ConfigDict(checkpoint.config))}, step {checkpoint.step}, "
            f"{sets}{state}{checkpoint.note and '; '}{checkpoint.note}")
