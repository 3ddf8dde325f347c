"""A tree of pictures as a data set: which pictures are held out, and which subfolders are classes.

    root/cat/*.png, root/dog/*.png                    classes cat and dog; every tenth picture of all is held out
    root/train/cat/*.png, ..., root/test/cat/*.png    the same with splits; both must have the same classes
    root/*.png                                        no labels

A class is a subfolder of the root, or of a split; deeper pictures belong to it. Labels are extra: a tree from which they
cannot be told without doubt keeps its pictures and their order, has no labels, and says why.

Splits are a subfolder `train` or `training` and one of `test`, `testing`, `validation`, `valid`, `val` and `dev`, in
capitals or not. What lies beside two splits is in neither, and is named. Where all pictures lie in two splits of one folder
below the root, such as root/images/train and root/images/val, these are the splits. Others below the root are mixed, and
named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scorefield.data.picture_files import Found, count_pictures, find_pictures, is_hidden, shown
from scorefield.numerics.errors import ArgumentError

_TRAIN, _HELD_OUT = ("train", "training"), ("test", "testing", "validation", "valid", "val", "dev")
_SPLITS = {*_TRAIN, *_HELD_OUT}


@dataclass(frozen=True)
class Tree:
    """Files of pictures, the label of each (none if there are no classes), names of the classes, and why there are none.

    formats  how many files have each format
    notes    lines for the user: what was taken and what was left out
    """

    train: list[Path]
    test: list[Path]
    train_labels: list[int]
    test_labels: list[int]
    class_names: tuple[str, ...]
    unlabelled: str
    formats: Counter[str]
    notes: tuple[str, ...]


def read_tree(root: Path) -> Tree:
    """The pictures below `root`: two subfolders for the splits if there are such, else every tenth picture is held out.

    Raises ArgumentError for an empty folder beside class folders, and for a file that is no picture in spite of its name.
    """
    splits, beside = _splits(root)
    if splits:
        places, found = list(splits), [find_pictures(place) for place in splits]
        train, test = (each.files for each in found)
        names, why = _classes_of_both(places, found)
        notes = [each.said(f"{part} {shown(place)}") for part, place, each in
                 zip(("training examples", "held-out examples"), places, found, strict=True)]
        notes += [shown(beside)] if beside else []
        if both := len(found[0].real & found[1].real):
            notes.append(f"{both:,} files are in both splits, through links")
    else:
        places, found = [root, root], [find_pictures(root)]
        files = found[0].files
        nested = _nested_splits(root, files)
        if len(nested) == 1 and all(file.is_relative_to(nested[0]) for file in files):
            return read_tree(nested[0])
        train, test = [file for i, file in enumerate(files) if i % 10], files[::10]
        names, why = _classes(root, found[0])
        if names and {name.lower() for name in names} <= _SPLITS:
            names, why = (), (f"the only subfolders of {root} are {_listed(names)}, which look like splits and not like "
                              f"classes; splits are two subfolders, train and one of {', '.join(_HELD_OUT)}")
        notes = [f"{found[0].said(shown(root))}; every tenth is held out", *([shown(beside)] if beside else [])]
        if nested:
            notes.append(f"the splits in {_listed(list(map(shown, nested)))} are mixed; to keep them apart, make "
                         f"{shown(root / 'train')} and {shown(root / 'test')}")
    number = {name: label for label, name in enumerate(names)}
    train_labels, test_labels = ([number[_first(file, place)] for file in files] if names else []
                                 for place, files in zip(places, (train, test), strict=True))
    return Tree(train, test, train_labels, test_labels, names, why, sum((each.formats for each in found), Counter()),
                tuple(notes))


def _splits(root: Path) -> tuple[tuple[Path, Path] | None, str]:
    """The folders of the two splits, if there are such, and a line on what lies beside them.

    `train` and `test` are splits whatever lies beside them. Other names may be those of classes: they are splits where no
    other subfolder holds pictures.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
    train, test = (next((path for name in names for path in sorted(folders, key=lambda path: path.name != name)
                         if path.name.lower() == name), None) for names in (_TRAIN, _HELD_OUT))
    if train is None or test is None:
        return None, ""
    others = {path.name: count_pictures(path) for path in folders if path not in (train, test)}
    classes = [name for name, n in others.items() if n and name.lower() not in _SPLITS]
    if classes and (train.name, test.name) != ("train", "test"):
        return None, (f"{train.name} and {test.name} are read as classes and not as splits, since there are pictures in "
                      f"{_listed(classes)}, too")
    loose = sum(1 for path in root.iterdir() if path.is_file() and not is_hidden(path.name))
    said = [f"the folder {name} ({n:,} pictures)" for name, n in others.items()] + ([f"{loose:,} files"] if loose else [])
    return (train, test), (f"left out beside {train.name} and {test.name}: {', '.join(said)}" if said else "")


def _nested_splits(root: Path, files: Sequence[Path]) -> list[Path]:
    """The sorted folders below the root that hold pictures in two splits."""
    below: dict[Path, set[str]] = {}
    for folder in {folder for inner in {file.parent for file in files} for folder in (inner, *inner.parents)}:
        below.setdefault(folder.parent, set()).add(folder.name.lower())
    return sorted(place for place, names in below.items()
                  if root in place.parents and names & {*_TRAIN} and names & {*_HELD_OUT} and _splits(place)[0])


def _classes_of_both(places: Sequence[Path], splits: Sequence[Found]) -> tuple[tuple[str, ...], str]:
    (train, why), (test, why_not_test) = (_classes(place, found) for place, found in zip(places, splits, strict=True))
    why = why or why_not_test
    if why or train == test:
        return () if why else train, why
    differences = [f"only {place.name} has {_listed(sorted(only))}"
                   for place, only in zip(places, (set(train) - set(test), set(test) - set(train)), strict=True) if only]
    return (), f"the class folders of {places[0]} and {places[1]} differ: {'; '.join(differences)}"


def _classes(folder: Path, found: Found) -> tuple[tuple[str, ...], str]:
    """The sorted names of the subfolders if these are classes, else why they are not ("" where there are none)."""
    loose = next((file for file in found.files if file.parent == folder), None)
    names = {_first(file, folder) for file in found.files if file.parent != folder}
    if not names:
        return (), ""
    if loose is not None:
        return (), f"{folder} holds pictures of no class, such as {loose.name}, beside the subfolder {min(names)}"
    without = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)
                     and path.name not in names and path not in found.unread)
    for path in without:
        if not any(file.is_file() and not is_hidden(file.name) for file in path.rglob("*")):
            raise ArgumentError(f"data.path: the class folder {path} is empty; put its pictures there, or remove it",
                                "data.path")
    if without:
        return (), f"{without[0]} holds no pictures, unlike the folders beside it"
    return tuple(sorted(names)), ""


def _first(file: Path, folder: Path) -> str:
    return file.parts[len(folder.parts)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
