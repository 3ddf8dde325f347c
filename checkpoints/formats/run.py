"""The folder of a run: config.json, and checkpoints/step_00001000.pt, each written whole or not at all.

Only tensors and plain values are unpickled. Each checkpoint holds a checksum of its content, and an altered one is refused.
"""

import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scorefield.checkpoints.checkpoint import Checkpoint, Config, require_agreement, require_whole
from scorefield.checkpoints.formats import sharded
from scorefield.numerics.files import DIGEST, digest, new_folder, read_json, write_atomically

OF_THE_DATA = ("data.path", "data.test_path")      # fields that may differ when a run continues: where the data lie


def recognises(path: Path) -> bool:
    """Whether `path` is a run's folder or one of its checkpoints."""
    return _has_config(path) or _run_of(path) is not None


def _has_config(folder: Path) -> bool:
    """Whether a folder's config.json belongs to a run, not to another program. A damaged one counts as a run's."""
    try:
        return (folder / "config.json").is_file() and "sde" in read_json(folder / "config.json")
    except ValueError:
        return True


def _run_of(checkpoint: Path) -> Path | None:
    run = checkpoint.parent.parent
    kind = checkpoint.suffix == ".pt" or (checkpoint / sharded.DIGESTS).is_file()
    is_one = kind and checkpoint.parent.name == "checkpoints" and _has_config(run)
    return run if is_one else None


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of the highest step in a run's folder, or None."""
    return next((path for _, path in reversed(checkpoints_of(run))), None)


def checkpoints_of(run: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a run's folder, as (step, path), sorted by step: files, and folders that several processes wrote;
    of one step the file is last.
    """
    files = [(int(path.stem[5:]), path) for path in (run / "checkpoints").glob("step_*.pt")]
    return sorted([*sharded.folders(run), *files], key=lambda found: (found[0], found[1].suffix))


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of a run."""
    for _, old in checkpoints_of(run)[:-keep]:
        old.unlink() if old.is_file() else shutil.rmtree(old)


def read_config(run: Path) -> dict[str, Any]:
    """config.json of a run's folder as nested dictionaries; FileNotFoundError or ValueError if it is missing or damaged."""
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is not the folder of a run: it has no config.json")
    config = read_json(path)
    require_whole(config, path)
    if not isinstance(config.get("config"), str):
        raise ValueError(f"{path} is damaged: it does not name its config")
    return config


def compared_names(stored: Config, names: list[str]) -> list[str]:
    """The names of the classes of a stored run, to be compared with those of the data: `names` themselves where the run does
    not know its own (older runs stored none), or where its model has no classes, so that the names mean nothing to it.
    """
    known = stored.get("class_names")
    return known if known and stored["model"].get("classes") is not None else names


def differences(fields: Sequence[str], there: Config, here: Config) -> str:
    """The first three fields in which a run and what is to be trained differ, in words; of names of classes the first."""
    return ", ".join(f"{field} is {first!r} there and {second!r} here" for field, first, second in (
        _first_difference(field, there.get(field), here[field]) for field in fields[:3]))


def _first_difference(field: str, there: Any, here: Any) -> tuple[str, Any, Any]:
    if field != "class_names" or len(there) != len(here):
        return (field, there, here) if field != "class_names" else ("the number of class_names", len(there), len(here))
    label = next(i for i, (first, second) in enumerate(zip(there, here, strict=True)) if first != second)
    return f"class_names[{label}]", there[label], here[label]


def read_state(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, after comparing it with its checksum: torch itself does not notice
    flipped bytes. Raises ValueError if the file is truncated, altered or of another program.
    """
    if path.is_dir():
        return sharded.read(path)
    advice = "delete it to continue from the checkpoint before it"
    with open(path, "rb") as file:      # if the system refuses, its own error is raised
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:      # the reader of damaged archives raises errors of every type
            raise ValueError(f"{path} is truncated, damaged or not a checkpoint ({textwrap.shorten(str(error), 100)}); "
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
    prune(run, keep)
    return path


def read(path: Path, config: Config | None = None) -> Checkpoint:
    """A run's newest checkpoint, or the one at `path`; ValueError if the run contradicts `config`."""
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
            raise ValueError("not a state of Adam")
        return Checkpoint(stored, state["ema"], state["network"], int(state["step"]), int(state["ema_updates"]),
                          optimizer, source=place)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place} is damaged: it lacks a part of a checkpoint ({type(error).__name__}: {error})") from None


def write(checkpoint: Checkpoint, run: Path, ema: bool = True) -> str:
    """Write a run that training can continue, whole or not at all, to a folder that does not exist yet or is empty.

    If the checkpoint has one set of weights, or `ema` is False, the average starts from the raw weights. Returns "", since
    a run holds everything.
    """
    state = {"step": checkpoint.step, "seconds": 0.0, "network": checkpoint.weights(ema=False),
             "ema": checkpoint.weights(ema), "ema_updates": checkpoint.ema_updates, "optimizer": checkpoint.optimizer}
    with new_folder(run) as temporary:
        write_checkpoint(temporary, checkpoint.step, state, keep=1)
        (temporary / "config.json").write_text(json.dumps({"config": run.name, **checkpoint.config}, indent=2) + "\n")
    return ""
