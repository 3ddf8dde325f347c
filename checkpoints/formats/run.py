"""The folder of a run: config.json, and checkpoints/step_00001000.pt, each written whole or not at all.

Only tensors and plain values are unpickled. Each checkpoint holds the run's config and a checksum of its content, and an
altered one is refused. config.json is a copy of the newest checkpoint's config for people and for programs: a value in it
that contradicts the checkpoint is an error, except where a resumed run may differ. Checkpoints of before version 0.2 hold no
config; there config.json counts. Several processes may write one together: a folder in place of the file (sharded.py).
"""

import contextlib
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.checkpoints.checkpoint import Checkpoint, Config, require_agreement, require_whole
from scorefield.checkpoints.formats import sharded
from scorefield.checkpoints.formats.pickles import require_owned, require_uncompressed
from scorefield.checkpoints.history import FIRST, add_history
from scorefield.configs.loading import all_fields, from_stored
from scorefield.numerics.files import (
    DIGEST,
    digest,
    known_to_json,
    new_folder,
    read_json,
    temporary_beside,
    write_atomically,
    write_json,
)

FURTHER = ("averages", "schedule", "scaler", "skipped", "objective")      # of a state: what older ones lack
# Fields that may differ when a run continues: where the data lie, and the autoencoder, of which a run keeps a digest.
OF_THE_DATA = ("data.path", "data.test_path", "data.autoencoder")
FINGERPRINT = "fingerprint"      # of the data (data.fingerprint), in a run's config
NAME = re.compile(r"step_([0-9]{8}|[1-9][0-9]{8,})(\.pt)?")


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
    kind = checkpoint.suffix == ".pt" or sharded.is_sealed(checkpoint)
    is_one = kind and checkpoint.parent.name == "checkpoints" and _has_config(run)
    return run if is_one else None


def step_of(checkpoint: Path) -> int | None:
    """The step that the name of a checkpoint says: 1000 of step_00001000.pt; None for any other name."""
    found = NAME.fullmatch(checkpoint.name)
    return int(found[1]) if found else None


def checkpoints_of(run: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a run's folder, as (step, path), sorted by step: files, and folders that several processes wrote.

    Those of other names are no checkpoints, nor are folders without the seal that comes last.
    """
    return sorted((step, path) for path in (run / "checkpoints").glob("step_*")
                  if (step := step_of(path)) is not None and (path.suffix == ".pt" or sharded.is_sealed(path)))


def strangers(run: Path) -> list[str]:
    """A line for each file or folder beside the checkpoints that looks like one and is none."""
    found = sorted((run / "checkpoints").glob("*"))
    return [*(f"{path} is ignored: a checkpoint's name is step_ and its step in 8 digits, such as step_00001000.pt"
              for path in found if path.suffix == ".pt" and step_of(path) is None),
            *(f"{path} is ignored: a checkpoint in shares has a file {sharded.SEAL}, which is written last"
              for path in found if path.is_dir() and step_of(path) is not None and not sharded.is_sealed(path))]


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of the highest step in a run's folder, or None. Its content is not read; see `newest_sound`."""
    return next((path for _, path in reversed(checkpoints_of(run))), None)


@dataclass(frozen=True, eq=False)
class Sound:
    """A checkpoint that was read and is whole.

    state        its content, without the checksum
    passed_over  what is wrong with the newer ones, a line each
    """

    step: int
    path: Path
    state: dict[str, Any]
    passed_over: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any] | None:
        """The run's config when it was written; None in a checkpoint of before version 0.2."""
        return self.state.get("config")


def newest_sound(run: Path, strict: bool = False) -> Sound | None:
    """The newest checkpoint of a run that is sound: it matches its checksum, holds the step of its name, and its weights are
    finite. None if the run has no checkpoint.

    Raises ValueError with what is wrong with the newest one if no checkpoint is sound, or if it is not and `strict` is True.
    """
    wrong: list[str] = []
    for step, path in reversed(checkpoints_of(run)):
        state, reason = _examined(path)
        if state is not None:
            return Sound(step, path, state, tuple(f"{words}; {path.name} is used instead" for words in wrong))
        wrong.append(reason)
        if strict:
            break
    if wrong:
        raise ValueError(f"{wrong[0]}; " + ("delete it, or leave out strict, to use the checkpoint before it" if strict else
                                            "no older checkpoint is whole; bring one back from a copy, or train anew"))
    return None


def restore_config(run: Path) -> str:
    """Write config.json from the newest sound checkpoint, if the folder has checkpoints and lacks it; says so in a line.

    "" if there was nothing to do. Raises ValueError if no checkpoint is sound; one of before version 0.2 restores nothing.
    """
    if (run / "config.json").exists() or not checkpoints_of(run):
        return ""
    sound = newest_sound(run)
    if sound is None or sound.config is None:
        return ""
    write_json(run / "config.json", sound.config)
    return f"{run} had lost its config.json; it is written anew from {sound.path.name}"


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


def config_differences(inside: Config, beside: Config, place: str | Path) -> list[tuple[str, Any, Any]]:
    """The fields, with their two values, in which a checkpoint's config and another one of its run, such as config.json,
    contradict each other.

    The section `training` and the paths and the fingerprint of the data may differ: they do after a resume. A field that one
    of them lacks has its default value, since a later version may have added it. place: of the second, for messages.
    """
    first, second = known_to_json(inside), known_to_json(beside)
    if first == second:
        return []
    try:
        one, other = _filled(first, place), _filled(second, place)
    except ValueError:      # that of an imported checkpoint may have no data or training
        one, other = all_fields(first), all_fields(second)
    free = ("training.", f"{FINGERPRINT}.")
    names = [name for name in dict.fromkeys([*one, *other]) if not name.startswith(free)
             and name not in (*OF_THE_DATA, FINGERPRINT, "training")]
    if not first.get("class_names") or not second.get("class_names") or first["model"].get("classes") is None:
        names = [name for name in names if name != "class_names"]
    return [(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)]


def _filled(config: dict[str, Any], place: str | Path) -> dict[str, Any]:
    """The fields of a config by their dotted names, with defaults for those that it lacks."""
    return known_to_json(all_fields(config) | all_fields(from_stored(config, place).to_dict()))


def require_same_config(inside: Config, beside: Config, checkpoint: Path, place: Path) -> None:
    """ValueError with the first fields in which a checkpoint's config and that in the file `place` contradict each other."""
    if found := config_differences(inside, beside, place):
        words = ", ".join(f"{field} is {theirs!r}, but was {ours!r} when {checkpoint.name} was written"
                          for field, ours, theirs in found[:3])
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise ValueError(f"{place} contradicts the run's checkpoint: {words}{more}; set it back in {place.name}")


def read_state(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, after comparing it with its checksum: torch itself does not notice flipped
    bytes. Raises ValueError if it is truncated, altered or of another program, or is named after another step.
    """
    state, reason = _content(path)
    if state is None:
        raise ValueError(f"{reason}; delete it to use the checkpoint before it")
    return state


def _content(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The content of a checkpoint, or None and what is wrong with it."""
    state, reason = _in_shares(path) if path.is_dir() else _in_one(path)
    if state is not None and step_of(path) not in (None, state.get("step", step_of(path))):
        return None, f"checkpoint {path} is misnamed: it holds step {state.get('step')!r:.20}"
    return state, reason


def _in_shares(path: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        return sharded.read(path), ""
    except ValueError as error:
        return None, str(error)


def _in_one(path: Path) -> tuple[dict[str, Any] | None, str]:
    with open(path, "rb") as file:      # if the system refuses, its own error is raised
        try:
            require_uncompressed(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
            require_owned(state)
            written = state.pop(DIGEST, None) if isinstance(state, dict) else None
            found = digest(state) if written is not None else None
        except Exception as error:      # the reader of damaged archives raises errors of every type
            words = textwrap.shorten(str(error), 100) or type(error).__name__
            return None, f"{path} is truncated, damaged or not a checkpoint ({words})"
    if written is None:
        return None, f"checkpoint {path} was not written by Scorefield: it has no checksum"
    if written != found:
        return None, f"checkpoint {path} is damaged: it does not match its checksum"
    return state, ""


def _examined(path: Path) -> tuple[dict[str, Any] | None, str]:
    """As `_content`; weights that are not finite are wrong, too."""
    state, reason = _content(path)
    for weights in () if state is None else (state.get("network"), state.get("ema")):
        if isinstance(weights, Mapping) and not all(bool(tensor.isfinite().all()) for tensor in weights.values()
                                                    if isinstance(tensor, Tensor)):
            return None, f"checkpoint {path} holds weights that are not finite"
    return state, reason


def write_checkpoint(run: Path, step: int, state: Mapping[str, Any], config: Config | None = None) -> Path:
    """Write the state after `step` steps, with the run's config; returns the file.

    config  what config.json holds. The checksum covers it. None: the run has none
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    content = with_config(state, config)
    sealed = content | {DIGEST: digest(content)}
    with only_one(run, path):
        write_atomically(path, lambda file: torch.save(sealed, file))
    return path


def with_config(state: Mapping[str, Any], config: Config | None) -> dict[str, Any]:
    """What a checkpoint holds: the state, and the run's config in it."""
    return dict(state) | ({} if config is None else {"config": known_to_json(config)})


@contextlib.contextmanager
def only_one(run: Path, path: Path) -> Iterator[None]:
    """In this context the checkpoint `path` is written. Then that of the same step and the other format is removed; and the
    run's first one is noted, so that a run whose checkpoints are gone is told from one that was stopped before its first.
    """
    first = not checkpoints_of(run)
    yield
    for other in (path.with_suffix(""), path.with_suffix(".pt")):
        if other != path:
            remove_checkpoint(other)
    if first:
        add_history(run, [{"step": step_of(path), "event": FIRST}])


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint of either format, if it is there; a folder disappears at once, or stays whole."""
    if path.is_dir():
        shutil.rmtree(path.rename(temporary_beside(path)))
    else:
        path.unlink(missing_ok=True)


def read(path: Path, config: Config | None = None, strict: bool = False) -> Checkpoint:
    """A run's newest sound checkpoint, or the one at `path`; ValueError if the run contradicts `config`, if config.json
    contradicts the checkpoint, or if the newest is damaged and `strict` is True.
    """
    run = _run_of(path) or path
    stored = read_config(run)
    found = newest_sound(run, strict) if path == run else Sound(step_of(path) or 0, path, read_state(path))
    if found is None:
        raise FileNotFoundError(f"{run} has no checkpoint yet; train first")
    inside = stored if found.config is None else found.config
    place = f"checkpoint {found.path} beside {run / 'config.json'}"
    require_whole(inside, place)
    require_same_config(inside, stored, found.path, run / "config.json")
    require_agreement(inside, config, run)
    state, told = found.state, {key: value for key, value in inside.items() if key != FINGERPRINT}
    try:
        optimizer = state["optimizer"]
        if optimizer is not None and not ({"state", "param_groups"} <= set(optimizer) and optimizer["param_groups"]):
            raise ValueError("not the state of an optimiser")
        return Checkpoint(told, state["ema"], state["network"], int(state["step"]), int(state["ema_updates"]),
                          optimizer, source=place, passed_over=found.passed_over, file=found.path,
                          further={key: state[key] for key in FURTHER if key in state}, run=run)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place} is damaged: it lacks a part of a checkpoint ({type(error).__name__}: {error})") from None


def write(checkpoint: Checkpoint, run: Path, ema: bool | str = True) -> str:
    """Write a run that training can continue, whole or not at all, to a folder that does not exist yet or is empty.

    If the checkpoint has one set of weights, or `ema` is False, the average starts from the raw weights. Returns "", since
    a run holds everything.
    """
    state = {"step": checkpoint.step, "seconds": 0.0, "network": checkpoint.weights(ema=False),
             "ema": checkpoint.weights(ema), "ema_updates": checkpoint.ema_updates, "optimizer": checkpoint.optimizer,
             **checkpoint.further}
    config = {"config": run.name, **checkpoint.config}
    with new_folder(run) as temporary:
        write_checkpoint(temporary, checkpoint.step, state, config)
        write_json(temporary / "config.json", config)
    return ""
