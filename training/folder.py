"""A run's folder before training: one process writes it, and what has changed since it was left is named.

    with opened(run):                               # the lock; what killed processes left is removed
        start, keep = begin(run, stored, ...)       # where to go on; raises before anything is written
        ...
        keep()                                      # the history, once training is sure to start
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scorefield.checkpoints.formats.run import (
    FINGERPRINT,
    Sound,
    config_differences,
    newest_sound,
    read_config,
    read_state,
    require_same_config,
    strangers,
    write_checkpoint,
)
from scorefield.checkpoints.history import CHANGED, RESTARTED, add_history, has_saved, read_history
from scorefield.configs.loading import from_stored
from scorefield.data.fingerprint import changes
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import known_to_json, remove_leftovers
from scorefield.numerics.locks import LOCK, Locked, locked
from scorefield.training.stats import read_stats

# Settings that change no weight. A run that is resumed with another value of any other one is not equal to one that never
# stopped.
NEUTRAL = frozenset({"log_every", "eval_every", "sample_every", "sample_steps", "checkpoint_every", "keep", "keep_best",
                     "sharded_saves", "workers", "trackers", "metrics_every", "metrics", "metrics_samples", "log_groups",
                     "snapshots_every", "snapshots_precision"})
OWN = r"config\.json|stats\.jsonl|history\.jsonl|step_.*"      # files that training alone writes


@contextlib.contextmanager
def opened(run: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold the run's lock, and remove what killed processes left; ArgumentError if another process trains in the folder."""
    if run.exists() and not run.is_dir():
        raise ArgumentError(f"{run} is not a folder", "workdir")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(run, say))
        except Locked as error:
            raise ArgumentError(f"{run} is being trained by {error}" if "sign of life" in str(error) else
                                f"{run} is being trained by {error}; wait for it, stop it, or choose another workdir",
                                "workdir") from None
        count, size = remove_leftovers(run, OWN)
        if count:
            say(f"{run}: removed {count} unfinished file{'s'[:count > 1]} of killed processes ({size / 1e6:.1f} MB)")
        yield


def is_empty(run: Path) -> bool:
    """Whether a run's folder is missing, or holds nothing but a lock."""
    return not run.exists() or (run.is_dir() and all(path.name == LOCK for path in run.iterdir()))


def begin(run: Path, stored: Mapping[str, Any], restart: bool = False, strict: bool = False, other_data: bool = False,
          say: Callable[[str], None] = print) -> tuple[Sound | None, Callable[[], None]]:
    """Where training goes on, and what to call once it is sure to start: that writes what has changed to the history.

    stored      what config.json is to hold, with the fingerprint of the data
    restart     whether a run that has lost its checkpoints starts anew
    strict      whether a damaged newest checkpoint is refused; else the one before it is used
    other_data  whether data that have changed since the checkpoint was written are taken

    Raises ArgumentError for what these do not allow; ValueError if no checkpoint is whole, or if config.json contradicts it.
    """
    for line in strangers(run):
        say(line)
    start = newest_sound(run, strict)
    if start is None:
        return None, _new(run, restart)
    for line in start.passed_over:
        say(line)
    if restart:
        raise ArgumentError(f"{run} goes on from {start.path}; restart is for a run that has lost its checkpoints: leave it "
                            "out, or choose another workdir", "restart")
    before = start.config or (read_config(run) if (run / "config.json").is_file() else {})
    renewed = bool(start.config) and _of_import(run, start, stored)
    if start.config and not renewed:
        require_same_config(start.config, stored, start.path, run / "config.json")
    events = _settings(before, stored, start.step, say) + _data(before, stored, start, other_data, say)
    known = [{k: v for k, v in event.items() if k != "date"} for event in read_history(run)]
    events, path, step = [event for event in events if known_to_json(event) not in known], start.path, start.step

    def keep() -> None:
        if events:
            add_history(run, events)
        if renewed:
            write_checkpoint(run, step, read_state(path), stored)

    return start, keep


def _new(run: Path, restart: bool) -> Callable[[], None]:
    """What to call before a run starts at step 0; ArgumentError if it has lost its checkpoints."""
    lost = _has_lost(run)
    if lost and not restart:
        raise ArgumentError(f"{run} has been trained, but its checkpoints are gone: bring them back to "
                            f"{run / 'checkpoints'}, or say restart to train it anew from step 0", "restart")
    if restart and not lost:
        raise ArgumentError(f"{run} has lost no checkpoint; leave out restart", "restart")
    return (lambda: add_history(run, [{"step": 0, "event": RESTARTED}])) if lost else (lambda: None)


def _has_lost(run: Path) -> bool:
    """Whether a run without checkpoints has saved one. Of a run without a history, its figures say how far it came."""
    saved = has_saved(run)
    if saved is None and (run / "config.json").is_file():
        training = read_config(run)["training"]
        last = max((line["step"] for line in read_stats(run)[0]), default=0)
        saved = last >= min(training.get("checkpoint_every", 5000), training.get("steps", 5000))
    return bool(saved)


def _of_import(run: Path, start: Sound, stored: Mapping[str, Any]) -> bool:
    """Whether the run is an imported checkpoint that starts training with data or dropout of its own choice."""
    found = [field for field, _, _ in config_differences(start.config or {}, stored, run / "config.json")]
    chosen = ("data.", "standard", "levels", "class_names", "model.dropout")
    return bool(found) and (stored.get("origin") or {}).get("step") == start.step and all(
        field.startswith(chosen) and field not in ("data.low", "data.high") for field in found)


def _settings(before: Mapping[str, Any], stored: Mapping[str, Any], step: int, say: Callable[[str], None]
              ) -> list[dict[str, Any]]:
    """An event for each setting of training that has changed, each of which is said."""
    try:
        old, new = (known_to_json(from_stored(config, "the run").training.to_dict()) for config in (before, stored))
    except ValueError:      # an imported checkpoint may have no settings of training
        return []
    events = []
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            constant = {old.get("decay"), new.get("decay")} == {"constant"}
            equal = name in NEUTRAL or (name == "steps" and constant)
            say(f"training.{name} was {old.get(name)!r} up to step {step} and is {new.get(name)!r} from here on"
                + ("" if equal else ": the run is not equal to one that never stopped any more"))
            events.append({"step": step, "event": CHANGED, "field": f"training.{name}", "before": old.get(name),
                           "after": new.get(name), "equal": equal})
    return events


def _data(before: Mapping[str, Any], stored: Mapping[str, Any], start: Sound, other_data: bool, say: Callable[[str], None]
          ) -> list[dict[str, Any]]:
    """An event if the data have changed; ArgumentError unless that is allowed."""
    old, new = before.get(FINGERPRINT), stored.get(FINGERPRINT)
    words = changes(old, new) if isinstance(old, dict) and isinstance(new, dict) else ""
    if not words:
        return []
    if not other_data:
        raise ArgumentError(f"the data have changed since {start.path} was written: {words}; bring the old ones back, or "
                            "say other_data to go on with these", "other_data")
    say(f"the data have changed at step {start.step}: {words}; the run is not equal to one that never stopped any more")
    return [{"step": start.step, "event": CHANGED, "field": "data", "before": old, "after": new, "equal": False}]
