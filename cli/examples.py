"""The examples that a command line names: the run's own data set, or a user's at a path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorefield.cli.direction import end_of
from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.data import Dataset


def own_data(command: Command, instead: str = "") -> Dataset:
    """The run's data set; ArgumentError if it is not there, ValueError if it does not fit the network.

    instead  what a user may do without it, for the message
    """
    from scorefield.cli.origin import untouched
    from scorefield.data import in_units_of

    stored = command.stored
    assert stored is not None
    try:
        dataset = end_of(command, in_units_of(command.dataset(), stored))
    except (FileNotFoundError, ValueError) as error:
        if not instead:
            raise
        raise ArgumentError(f"{error}; {instead}", "images") from None
    other_levels = dataset.levels != stored["levels"] and not untouched(stored, command.run)      # an import's are assumed
    if list(dataset.shape) != stored["shape"] or other_levels:
        raise ValueError(f"data set {dataset.name!r} has examples of shape {dataset.shape} and {dataset.levels} levels, but "
                         f"the run's network takes {tuple(stored['shape'])} and {stored['levels']} (data.path)")
    return dataset


def examples_at(command: Command, path: str, flag: str) -> tuple[Dataset, list[str] | None]:
    """The examples at a path, with their file names if they are files; ArgumentError if they do not fit the network."""
    from scorefield.data import load_images
    from scorefield.data.degradations import pictures_as_said

    stored = command.stored
    assert stored is not None
    data = command.config.data
    dataset, names = load_images(path, tuple(stored["shape"]), command.codec.of_pictures, flag,
                                 data.get("background", "white"), data.get("label", ""), stored.get("class_names") or ())
    said = {**data.to_dict(), "reduce": 1}      # they have the size of the model's already
    return command.told(pictures_as_said(dataset, said)), names
