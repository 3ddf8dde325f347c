"""From a run, a file, or a repository of the Hugging Face hub to a trained denoiser, and from any format to another."""

import os
from pathlib import Path
from types import ModuleType

import torch
from ml_collections import ConfigDict

from configs.default import get_config
from configs.loading import all_fields, nearest
from models.build import effective
from models.checkpoint import Checkpoint, Config
from models.denoiser import Denoiser
from models.formats import diffusers, hub, run, score_sde, scorefield

# In the order in which they are asked whether a path is theirs.
FORMATS: dict[str, ModuleType] = {
    "diffusers": diffusers, "run": run, "scorefield": scorefield, "score_sde": score_sde,
}
SUFFIXES = {module.SUFFIX: name for name, module in FORMATS.items() if module in (scorefield, score_sde)}      # of files


def find(source: str | Path) -> tuple[ModuleType, Path]:
    """The format of a file, a folder or a repository owner/name[@revision] of the hub, and where it lies.

    Raises FileNotFoundError where there is nothing, ValueError for what no format recognises and for what the hub has not,
    OSError where it cannot be fetched from the hub.
    """
    path = Path(os.path.expanduser(source))
    if not path.exists():
        if not hub.is_id(str(source)) or path.suffix in (".safetensors", ".pth", ".pt", ".ckpt", ".bin"):
            raise FileNotFoundError(f"there is no {source}; give a run's folder, a .safetensors, a .pth, a folder of "
                                    "diffusers, or owner/name of a model on the Hugging Face hub")
        path = hub.fetch(str(source))
    files = [*path.glob("*.safetensors"), *path.glob("*.pth")] if path.is_dir() else []
    for candidate in [path, *files][:2] if len(files) == 1 else [path]:      # a repository of one file is that file
        for module in FORMATS.values():
            if module.recognises(candidate):
                return module, candidate
    raise ValueError(f"{source} is no checkpoint: neither a run's folder (config.json), a folder of diffusers "
                     "(model_index.json, or config.json of a UNet2DModel), a .safetensors nor a .pth")


def read_checkpoint(source: str | Path, config: Config | ConfigDict | None = None) -> Checkpoint:
    """What `source` holds, see `find`.

    config  what a foreign file does not tell, nested, in the words of configs/default.py: such as {"sde": {"name": "subvp"},
            "data": {"image_size": 64}}, or a whole config, whose fields of None then mean their defaults. What the file
            does tell it may repeat, not change; `model.dropout` apart

    Raises ValueError of one line for a damaged file, one that would run code, one that does not fit or says otherwise than
    `config`, and a field that no config has.
    """
    given = effective(config.to_dict()) if isinstance(config, ConfigDict) else dict(config or {})
    fields = all_fields(get_config())
    for field in all_fields({section: value for section, value in given.items() if section != "shape"}):
        if field not in fields:
            raise ValueError(f"config has no field {field!r}{nearest(field, fields)}")
    module, path = find(source)
    checkpoint: Checkpoint = module.read(path, given)
    checkpoint.check()
    return checkpoint


def load_denoiser(source: str | Path, ema: bool = True, device: torch.device | str = "cpu",
                  config: Config | ConfigDict | None = None) -> Denoiser:
    """The trained denoiser of `source`, in evaluation mode and without gradients; see `read_checkpoint`.

    source  the folder that `--mode train` has written, one of its checkpoints, a .safetensors of `--mode convert`, a .pth of
            score_sde_pytorch, a folder of diffusers' UNet2DModel, or a model owner/name of the Hugging Face hub
    ema     the averaged weights, or else the raw ones, where there are both
    """
    return read_checkpoint(source, config).denoiser(ema).to(device)
