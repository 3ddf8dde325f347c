"""Scorefield's own file: one .safetensors with one set of weights, and in its metadata the config and a checksum.

    config   the nested config that builds the denoiser, as JSON
    step     number of updates done
    sha256   checksum of the weights, the config and the step together

Loading it runs no code, and an altered file is refused.
"""

import json
from pathlib import Path

import safetensors.torch

from scorefield.checkpoints.checkpoint import Checkpoint, Config, Weights, require_agreement, require_whole
from scorefield.checkpoints.formats.tensors import read_safetensors
from scorefield.numerics.files import digest, write_atomically

VERSION, SUFFIX = "scorefield 1", ".safetensors"


def recognises(path: Path) -> bool:
    """Whether `path` is a .safetensors."""
    return path.suffix == SUFFIX and path.is_file()


def _sealed(metadata: dict[str, str], weights: Weights) -> dict[str, str]:
    return metadata | {"sha256": digest([dict(sorted(metadata.items())), dict(sorted(weights.items()))])}


def read(path: Path, config: Config | None = None) -> Checkpoint:
    """The checkpoint in the file; ValueError if it is damaged, of another program, or contradicts `config`."""
    weights, metadata = read_safetensors(path)
    if metadata.get("format") != VERSION:
        found = metadata.get("format")
        raise ValueError(f"{path} was not written by this version of Scorefield: its metadata say format={found!r}, not "
                         f"{VERSION!r}; for a diffusers model, give the folder that holds it")
    if _sealed({k: v for k, v in metadata.items() if k != "sha256"}, weights) != metadata:
        raise ValueError(f"{path} is altered: it does not match its checksum; fetch it again")
    try:
        told, step = dict(json.loads(metadata["config"])), int(metadata["step"])
    except (LookupError, RecursionError, TypeError, ValueError):
        told, step = {}, -1
    if step < 0:
        raise ValueError(f"{path} was not written by Scorefield: its metadata have no config or no step")
    require_whole(told, path)
    require_agreement(told, config, path)
    return Checkpoint(told, weights, step=step, ema_updates=step, source=str(path))


def write(checkpoint: Checkpoint, path: Path, ema: bool | str = True) -> str:
    """Write the averaged weights, or the raw ones if `ema` is False, and the config without paths of this machine.

    Returns "".
    """
    weights = {name: tensor.contiguous() for name, tensor in checkpoint.weights(ema).items()}
    config = {key: value for key, value in checkpoint.config.items() if key != "origin"}
    config["data"] = {field: value for field, value in config["data"].items() if field not in ("path", "test_path")}
    metadata = {"format": VERSION, "config": json.dumps(config), "step": str(checkpoint.step)}
    content = safetensors.torch.save(weights, _sealed(metadata, weights))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(content))
    return ""
