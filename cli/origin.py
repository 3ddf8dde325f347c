"""Start a run from a checkpoint of any format, and find out whether a run was made from one."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scorefield.checkpoints.checkpoint import Checkpoint, merged
from scorefield.checkpoints.formats.run import newest_checkpoint
from scorefield.checkpoints.load import SUFFIXES, find, read_checkpoint
from scorefield.configs.loading import apply
from scorefield.configs.sections import SECTIONS, declared
from scorefield.models.build import build_sde, complete
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import sha256_of
from scorefield.numerics.text import parse


def stem_of(source: str) -> str:
    """The name of a checkpoint's run: checkpoint_24 of checkpoint_24.pth, ddpm-cifar10-32 of google/ddpm-cifar10-32@main."""
    path = _path(source)
    name = Path(os.path.abspath(path)).name if path.exists() else Path(source.partition("@")[0]).name
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in (*SUFFIXES, ".pt") else name


def import_checkpoint(source: str, given: ConfigDict | None, overrides: Sequence[tuple[str, str]]) -> Checkpoint:
    """The checkpoint at `source`, with a complete config: each field from the checkpoint, else from `given`, else its
    default. The SDE and the model of the checkpoint cannot be changed. Its data and training can: a config replaces them as
    a whole, overrides replace single fields.

    If neither a config nor the checkpoint names the data, they are assumed to be CIFAR-10, a folder of pictures or an array.
    """
    said = _said(overrides)
    if given is not None:
        apply(given, overrides)
    path = _located(source)
    checkpoint = read_checkpoint(path, said if given is None else given)
    told = complete(checkpoint.config)
    if given is not None:
        told["model"] |= {field: value for field, value in given.model.items() if field in told["model"]}
    asked = said.get("training") or {}
    training = _training(told.get("training") or {}, asked) if given is None else given.training.to_dict()
    section, levels = _data(told, said.get("data") or {}, given)
    config = {**told, "data": section, "levels": levels,
              "training": SECTIONS["training"].complete({"objective": "score_matching"} | training)}
    origin = {"source": _place(source), "sha256": _contents(path), "step": checkpoint.step}
    imported = dataclasses.replace(checkpoint, config=config | {"config": stem_of(source), "origin": origin})
    imported.check()
    return imported


def _training(told: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """The section `training` of a checkpoint with the fields of the command line; those of classes that it replaces go."""
    kind = SECTIONS["training"]
    both = merged(told, said)
    known = kind.fields(both.get(kind.word) or "score_matching", both)
    return {field: value for field, value in both.items() if field in said or field in (kind.word, *known)}


def _said(overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The fields of the command line as a nested mapping; a field may belong to any class of its section."""
    said: dict[str, Any] = {}
    for field, text in overrides:
        section, _, name = field.partition(".")
        try:
            said.setdefault(section, {})[name] = parse(text, declared(field))
        except ValueError as error:
            raise error if isinstance(error, ArgumentError) else ArgumentError(f"{field} {error}", field) from None
    return said


def _data(told: Mapping[str, Any], said: dict[str, Any], given: ConfigDict | None) -> tuple[dict[str, Any], int | None]:
    """The section `data` of an imported checkpoint, and the number of levels of its examples."""
    shape, known = told["shape"], told.get("data") or {}
    if given is not None:
        fields = given.data.to_dict()
    elif "dataset" in said or "dataset" not in known:
        squares = len(shape) == 3 and shape[1] == shape[2] and shape[0] in (1, 3)
        guess = "cifar10" if list(shape) == [3, 32, 32] else "folder" if squares else "array"
        fields = {"dataset": guess, "dequantize": known.get("dequantize", False)} | said
    else:
        fields = known | said
    levels = told["levels"]
    chosen = given is not None or "dataset" in said
    if chosen and fields["dataset"] != known.get("dataset"):
        levels = SECTIONS["data"].entry(fields["dataset"]).levels
    taken = SECTIONS["data"].fields(fields["dataset"])
    fields |= {name: known[name] for name in ("low", "high", "autoencoder") if name in known and name in taken}
    if {"channels", "image_size"} <= taken.keys():      # pictures of any size
        fields |= {"channels": shape[0], "image_size": shape[-1]}
    sizes = {"channels", "image_size"}      # a user may set these for a checkpoint with any data
    fields = {field: value for field, value in fields.items() if field == "dataset" or field in taken
              or (field in said and field not in sizes)}
    return SECTIONS["data"].complete(fields), levels


def _path(source: str) -> Path:
    return Path(os.path.expanduser(source))


def _located(source: str) -> Path:
    """The path of a checkpoint, fetched from the hub if needed; raises as `find`."""
    return _path(source) if _path(source).exists() else find(source)[1]


def contents(source: str) -> str:
    """SHA-256 of what a checkpoint's files hold; raises as `find`."""
    return _contents(_located(source))


def _place(source: str) -> str:
    """The absolute path of a file or folder; for a model on the hub, its name."""
    path = _path(source)
    return str(path.resolve()) if path.exists() else source


def _contents(path: Path) -> str:
    """SHA-256 of the files of a checkpoint and their names in its folder."""
    patterns = ("config.json", "model_index.json", "scheduler_config.json", "*.safetensors", "*.bin", "*.pth")
    folders = ("", "unet/", "transformer/", "scheduler/", "vae/")
    found = [path] if path.is_file() else [*path.glob("checkpoints/*.pt")] + [
        file for folder in folders for pattern in patterns for file in path.glob(folder + pattern)]
    total = hashlib.sha256()
    for file in sorted(found):
        total.update(os.fsencode(f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n"))
    return total.hexdigest()


def started_from(stored: dict[str, Any], source: str) -> bool:
    """Whether a run was made from `source` as it is now. For a model on the hub, only its name is compared.

    Raises as `find` if the source does not exist.
    """
    origin = stored.get("origin", {})
    if origin.get("source") == source and not _path(source).exists():
        return True
    return origin.get("sha256") == contents(source)


def untouched(stored: dict[str, Any], run: Path) -> bool:
    """Whether a run is an imported checkpoint without further training."""
    origin, newest = stored.get("origin", {}), newest_checkpoint(run)
    return newest is not None and newest.stem == f"step_{origin.get('step')!s:0>8}"


def describe(checkpoint: Checkpoint) -> str:
    """A line that describes a checkpoint: the network, its size, the SDE, the step and the sets of weights."""
    parameters = sum(weight.numel() for weight in checkpoint.averaged.values())
    sets = "raw and averaged weights" if checkpoint.raw is not None else "one set of weights"
    state = ", optimiser" if checkpoint.optimizer is not None else ""
    return (f"{checkpoint.config['model']['network']} of {parameters:,} parameters, examples of shape "
            f"{tuple(checkpoint.config['shape'])}, {build_sde(checkpoint.config)}, step {checkpoint.step}, "
            f"{sets}{state}{checkpoint.note and '; '}{checkpoint.note}")
