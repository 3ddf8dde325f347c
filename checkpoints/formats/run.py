"""The folder of a run: config.json, and checkpoints/step_00001000.pt, each there whole or not at all.

Nothing but tensors and plain values is ever unpickled, and what was altered is refused: each checkpoint carries the
digest of all the rest.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

import torch

from scorefield.checkpoints.checkpoint import Checkpoint, Config, require_agreement, require_whole
from scorefield.numerics.files import DIGEST, digest, new_folder, read_json, write_atomically


def recognises(path: Path) -> bool:
    """Whether `path` is a run's folder, or one of its checkpoints."""
    return _has_config(path) or _run_of(path) is not None


def _has_config(folder: Path) -> bool:
    """Whether a folder's config.json is a run's, be it damaged, and not another program's."""
    try:
        return (folder / "config.json").is_file() and "sde" in read_json(folder / "config.json")
    except ValueError:
        return True


def _run_of(checkpoint: Path) -> Path | None:
    run = checkpoint.parent.parent
    is_one = checkpoint.suffix == ".pt" and checkpoint.parent.name == "checkpoints" and _has_config(run)
    return run if is_one else None


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of the highest step in a run's folder, or None."""
    return max((run / "checkpoints").glob("step_*.pt"), default=None)


def read_config(run: Path) -> dict[str, Any]:
    """config.json of a run's folder as nested dictionaries; FileNotFoundError or ValueError with the reason."""
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is not the folder of a run: it has no config.json")
    config = read_json(path)
    require_whole(config, path)
    if not isinstance(config.get("config"), str):
        raise ValueError(f"{path} is damaged: it has no name of a config")
    return config


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, on the CPU, after comparing it with its digest: torch itself reads flipped bytes in
    silence. Raises ValueError for a truncated, altered or foreign file.
    """
    advice = "delete it to go on from the one before"
    with open(path, "rb") as file:      # what the system refuses is its own error
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:      # the reader of damaged archives raises errors of every type
            raise ValueError(f"checkpoint {path} is truncated, damaged or none ({textwrap.shorten(str(error), 100)}); "
                             f"{advice}") from None
    written = state.pop(DIGEST, None) if isinstance(state, dict) else None
    if written is None:
        raise ValueError(f"checkpoint {path} was not written by Scorefield: it has no checksum; {advice}")
    if written != digest(state):
        raise ValueError(f"checkpoint {path} is damaged: it does not match its checksum; {advice}")
    return state


def write_checkpoint(run: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state after `step` steps, then remove all but the `keep` newest checkpoints."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    sealed = state | {DIGEST: digest(state)}
    write_atomically(path, lambda file: torch.save(sealed, file))
    for old in sorted(folder.glob("step_*.pt"))[:-keep]:
        old.unlink()
    return path


def read(path: Path, config: Config | None = None) -> Checkpoint:
    """A run's newest checkpoint, or the one at `path`; ValueError where the run contradicts `config`."""
    run = _run_of(path) or path
    stored = read_config(run)
    checkpoint = path if path != run else newest_checkpoint(run)
    if checkpoint is None:
        raise FileNotFoundError(f"{run} has no checkpoint yet; train first")
    require_agreement(stored, config, run)
    state = read_state(checkpoint)
    place = f"checkpoint {checkpoint} beside {run / 'config.json'}"
    try:
        optimizer = state["optimizer"]
        if optimizer is not None and not ({"state", "param_groups"} <= set(optimizer) and optimizer["param_groups"]):
            raise ValueError("no state of Adam")
        return Checkpoint(stored, state["ema"], state["network"], int(state["step"]), int(state["ema_updates"]),
                          optimizer, source=place)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place} lacks what a checkpoint has ({type(error).__name__}: {error})") from None


def write(checkpoint: Checkpoint, run: Path, ema: bool = True) -> str:
    """A run that training goes on with, in a folder that is not there yet or empty, and then there whole or not at all.

    Where the checkpoint has one set of weights, or `ema` is not set, the average starts from the weights in training.
    Returns "", as it holds all.
    """
    state = {"step": checkpoint.step, "seconds": 0.0, "network": checkpoint.weights(ema=False),
             "ema": checkpoint.weights(ema), "ema_updates": checkpoint.ema_updates, "optimizer": checkpoint.optimizer}
    with new_folder(run) as temporary:
        write_checkpoint(temporary, checkpoint.step, state, keep=1)
        (temporary / "config.json").write_text(json.dumps({"config": run.name, **checkpoint.config}, indent=2) + "\n")
    return ""
