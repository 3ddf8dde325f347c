"""The flag of bridges: which way they go, and so which data set samples are of and which they begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scorefield.cli.flags import Flag
from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.data import Dataset

WAYS = {"forward": "target", "backward": "source"}      # the goal of each
DRAWN = Flag("direction", str, None, "of a bridge: forward draws its target from held-out examples of its source [the "
                                     "default], backward its source from its target", tuple(WAYS))
SCORED = Flag("direction", str, None, "of a bridge: backward scores examples of its source [the default], by the density of "
                                      "its target; forward the other way round", tuple(WAYS))
DEFAULT = {"sample": "forward", "evaluate": "forward", "likelihood": "backward"}


def way_of(command: Command) -> str | None:
    """The direction of a bridge's command line; None for a run that is none. ArgumentError where it makes no sense."""
    stored, asked = command.stored, command.asked
    assert stored is not None
    if not str(stored["model"].get("network", "")).startswith("bridge_"):
        if asked.values.get("direction") is not None:
            raise ArgumentError("the run is no bridge, and has no direction; leave it out", "direction")
        return None
    if command.mode not in DEFAULT:
        raise ArgumentError(f"mode {command.mode} takes no bridge between two data sets; modes {', '.join(DEFAULT)} do",
                            "mode")
    return asked.values["direction"] or DEFAULT[command.mode]


def end_of(command: Command, dataset: Dataset) -> Dataset:
    """Of a bridge's pair of data sets the one at its goal; any other data set itself."""
    return dataset.target if way_of(command) == "forward" and dataset.target is not None else dataset


def bound(command: Command, model: Any) -> Any:
    """A bridge toward the goal of the command line, which begins with held-out examples of its other end; any other model
    itself.
    """
    way = way_of(command)
    if way is None:
        return model
    from scorefield.evaluation.starts import joined

    return joined(model.toward(WAYS[way]), command.dataset(), command.codec)[0]


def identity_of(command: Command) -> list[Any]:
    """What samples depend on through the direction: of a bridge that and the examples that it begins with; nothing else."""
    from scorefield.data.fingerprint import fingerprint

    way = way_of(command)
    if way is None:
        return []
    found = fingerprint(command.dataset())
    return [way, found["test" if way == "forward" else "target_test"]]


def suffix_of(command: Command) -> str:
    """What names of files say of the direction."""
    way = way_of(command)
    return "" if way is None else f"_{way}"
