"""A tree of pictures as a data set: which pictures are held out, and which subfolders are classes.

    root/cat/*.png, root/dog/*.png                    classes cat and dog; every tenth picture of all is held out
    root/train/cat/*.png, ..., root/test/cat/*.png    the same with splits; both must have the same classes
    root/*.png                                        no labels

A class is a subfolder of the root, or of a split; deeper pictures belong to it. Labels are extra: a tree from which they
cannot be told without doubt keeps its pictures and their order, has no labels, and says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scorefield.data.readers import PICTURE_SUFFIXES, find_pictures, is_hidden
from scorefield.numerics.errors import ArgumentError

_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


@dataclass(frozen=True)
class Tree:
    """Files of pictures, the label of each (none if there are no classes), names of the classes, and why there are none."""

    train: list[Path]
    test: list[Path]
    train_labels: list[int]
    test_labels: list[int]
    class_names: tuple[str, ...] = ()
    unlabelled: str = ""


def read_tree(root: Path) -> Tree:
    """The pictures below `root`: the subfolders `train` and `test` if both exist, else every tenth picture is held out.

    Raises ArgumentError for an empty folder beside class folders.
    """
    places = [root / "train", root / "test"]
    if all(place.is_dir() for place in places):
        train, test = map(find_pictures, places)
        names, why = _classes_of_both(places, [train, test])
    else:
        places, files = [root, root], find_pictures(root)
        train, test = [file for i, file in enumerate(files) if i % 10], files[::10]
        names, why = _classes(root, files)
        if names and {name.lower() for name in names} <= _SPLITS:
            names, why = (), (f"the only subfolders of {root} are {_listed(names)}, which look like splits and not like "
                              "classes; splits are the two subfolders train and test")
    number = {name: label for label, name in enumerate(names)}
    train_labels, test_labels = ([number[_first(file, place)] for file in files] if names else []
                                 for place, files in zip(places, (train, test), strict=True))
    return Tree(train, test, train_labels, test_labels, names, why)


def _classes_of_both(places: Sequence[Path], splits: Sequence[Sequence[Path]]) -> tuple[tuple[str, ...], str]:
    (train, why), (test, why_not_test) = (_classes(place, files) for place, files in zip(places, splits, strict=True))
    why = why or why_not_test
    if why or train == test:
        return () if why else train, why
    differences = [f"only {place.name} has {_listed(sorted(only))}"
                   for place, only in zip(places, (set(train) - set(test), set(test) - set(train)), strict=True) if only]
    return (), f"the class folders of {places[0]} and {places[1]} differ: {'; '.join(differences)}"


def _classes(folder: Path, files: Sequence[Path]) -> tuple[tuple[str, ...], str]:
    """The sorted names of the subfolders if these are classes, else why they are not ("" where there are none)."""
    loose = next((file for file in files if file.parent == folder), None)
    names = {_first(file, folder) for file in files if file.parent != folder}
    if not names:
        return (), ""
    if loose is not None:
        return (), f"{folder} holds pictures of no class, such as {loose.name}, beside the subfolder {min(names)}"
    without = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)
                     and path.name not in names)
    for path in without:
        if not any(file.is_file() and not is_hidden(file.name) for file in path.rglob("*")):
            raise ArgumentError(f"data.path: the class folder {path} is empty; put its pictures there, or remove it",
                                "data.path")
    if without:
        return (), f"{without[0]} holds no pictures ({', '.join(PICTURE_SUFFIXES)}), unlike the folders beside it"
    return tuple(sorted(names)), ""


def _first(file: Path, folder: Path) -> str:
    return file.parts[len(folder.parts)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
