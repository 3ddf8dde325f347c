"""The data set `array`: the arrays of a file, as a table, series or pictures, with labels if there are some.

A file is recognised by its content: .npy, .npz with x and y (and x_test and y_test), .parquet, else a table in text.

    table     (N, D) or (N,)            numbers of any type; integers are numbers, too, not levels
    series    (N, C, L)                 the same, of C channels and length L
    pictures  (N, C, H, W), (N, H, W)   unsigned bytes are levels 0 .. L-1; floats are numbers

Numbers are standardised: each column of a table and each channel of series and pictures. Nothing that could mean two things
is decided without a word: it is refused with a line that says which setting decides it, or the note of the data says it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scorefield.data import tables
from scorefield.data.damage import damage_named
from scorefield.data.dataset import Dataset, from_arrays
from scorefield.data.picture_files import format_of
from scorefield.numerics.errors import ArgumentError, MissingFileError

KINDS = ("auto", "table", "series", "pictures")
LAYOUTS = ("auto", "channels_first", "channels_last")
FEW = 4      # as many channels as pictures have, at most, where their place is found out
_INTEGER = re.compile("-?[0-9]{1,18}")      # of int64
X_NAMES, Y_NAMES = ("x", "x_train", "arr_0", "images"), ("y", "y_train", "label", "labels")


@dataclass(frozen=True, eq=False)
class Contents:
    """What a file holds: x (N, ...) of numbers, labels (N,) or None, and as much to hold out, or None.

    columns  names of the columns of a table, or ()
    """

    x: np.ndarray
    y: np.ndarray | None = None
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How a file is to be read: the settings of the data set `array` that say so."""

    kind: str = "auto"
    layout: str = "auto"
    columns: str = ""
    label: str = ""
    header: str = "auto"

    def __post_init__(self) -> None:
        for name, words in (("kind", KINDS), ("layout", LAYOUTS), ("header", tables.HEADERS)):
            if getattr(self, name) not in words:
                raise ArgumentError(f"unknown data.{name} {getattr(self, name)!r}; choose from {', '.join(words)}",
                                    f"data.{name}")

    @property
    def names(self) -> list[str]:
        return [word.strip() for word in self.columns.split(",")] if self.columns.strip() else []

    def refuse(self, allowed: Sequence[str], what: str) -> None:
        """Raise ArgumentError for a setting that is not among those that `what` has."""
        for name, default in vars(Reading()).items():
            if name not in allowed and getattr(self, name) != default:
                raise ArgumentError(f"data.{name}={getattr(self, name)!r} means nothing for {what}; leave it out",
                                    f"data.{name}")


def load(path: str, test_path: str, how: Reading, levels: int | None, standardise: bool, flip: bool) -> Dataset:
    """The data set `array`; data.datasets.array has the arguments. ArgumentError of one line for all that does not fit."""
    file, contents = opened(path, how, "data.path")
    if test_path:
        _, other = opened(test_path, how, "data.test_path", contents.columns)
        if contents.x_test is not None or other.x_test is not None:
            raise ArgumentError("one of the files holds x_test, and data.test_path is given, too; leave out one of them",
                                "data.test_path")
        contents = replace(contents, x_test=other.x, y_test=other.y)
    kind, layout = arrangement(contents.x, how, f"data.path: {file}")
    integers = kind == "pictures" and contents.x.dtype.kind in "iub"
    other_name = f"data.test_path: {Path(os.path.expanduser(test_path))}" if test_path else f"data.path: {file} (x_test)"
    x = _examples(contents.x, kind, layout, integers, f"data.path: {file}", contents.columns)
    x_test = None if contents.x_test is None else _examples(
        contents.x_test, kind, layout, integers, other_name, contents.columns)
    if levels is not None and not integers:
        raise ArgumentError(f"data.levels={levels} is for pictures of integers, and {file.name} holds {_words(kind)} of "
                            f"{contents.x.dtype}; leave it out", "data.levels")
    if flip and kind != "pictures":
        raise ArgumentError(f"data.flip mirrors pictures, and {file.name} holds a {kind}; leave it out", "data.flip")
    fewest = 3 if x_test is None else 2
    if len(x) < fewest:
        raise ArgumentError(f"data.path: {file} has {len(x)} example{'s' * (len(x) != 1)}, and needs {fewest} at least",
                            "data.path")
    y, y_test, names = _labels(contents, file)
    if levels is None and integers:
        levels = 2 if contents.x.dtype.kind == "b" else 256
    try:
        dataset = from_arrays(x, x_test, y, y_test, levels, flip, names, "array", standardise and not integers,
                              contents.columns)
    except ArgumentError as error:
        raise _of_files(error, file, Path(os.path.expanduser(test_path)) if test_path else None) from None
    notes = [_described(dataset, file, kind, layout, standardise), *contents.notes]
    if integers and levels == 256 and (top := int(max(a.max() for a in (x, x_test) if a is not None))) < 128:
        notes.append(f"the largest level in {file.name} is {top} of 255; if they have fewer, set data.levels={top + 1}")
    if kind == "table" and contents.x.dtype == np.uint8:
        notes.append(f"the bytes of {file.name} are numbers, as in every table; pictures have the shape (N, H, W)")
    return replace(dataset, notes=tuple(notes))


def _of_files(error: ArgumentError, file: Path, test_file: Path | None) -> ArgumentError:
    """An error of `from_arrays`, with the files and the settings in place of its arguments in Python."""
    other, at_fault = test_file or f"{file} (x_test)", "data.path"
    if test_file and error.arguments[:1] in (("x_test",), ("y_test",)):
        at_fault = "data.test_path"
    elif error.arguments == ("levels",):
        at_fault = "data.levels"
    words = str(error)
    for name, place in {"x_train": file, "x_test": other, "y_train": f"labels of {file}", "y_test": f"labels of {other}",
                        "levels must": "data.levels must"}.items():
        words = words.replace(name, str(place))
    return ArgumentError(f"{at_fault}: {words if words != str(error) else f'{file}: {words}'}", at_fault)


# ---- files ---------------------------------------------------------------------------------------------------------


def opened(path: str, how: Reading, argument: str, columns: Sequence[str] = ()) -> tuple[Path, Contents]:
    """The file at a user's path, and what it holds.

    columns  names of columns that a table must have, and their order
    """
    file = Path(os.path.expanduser(path))
    if not path:
        raise ArgumentError(f"data set 'array' needs {argument}, a file: .npy, .npz, .csv or .parquet", argument)
    if file.is_dir():
        raise ArgumentError(f"{argument}={path!r} must be a file: .npy, .npz, .csv or .parquet; for a folder of pictures, "
                            "choose data.dataset=folder", argument)
    if not file.exists():
        raise MissingFileError(f"{argument}={path!r} does not exist; give an .npy, .npz, .csv or .parquet", argument)
    return file, read(file, how, argument, columns)


def read(file: Path, how: Reading, argument: str, columns: Sequence[str] = (), optional: bool = False) -> Contents:
    """What a file holds; ArgumentError of one line if it is damaged, would run code or holds something else.

    columns   that a table must have, beside that of the labels; in place of those of `how`
    optional  a file without the column of the labels has none
    """
    kind = kind_of(file)
    wanted = tables.Wanted(tuple(columns or how.names), how.label, argument if columns else "data.columns", optional)
    if kind == "parquet":
        how.refuse(("kind", "columns", "label"), "a .parquet")
        table = tables.read_parquet(file, wanted, argument)
    elif kind in ("npy", "npz"):
        if not optional:
            how.refuse(("kind", "layout"), "an .npy or an .npz")
        return _numpy(file, argument)
    elif kind.startswith("one picture"):
        raise ArgumentError(f"{argument}: {file} is {kind}; give an .npy, .npz, .csv or .parquet, or a folder of pictures "
                            "with data.dataset=folder", argument)
    else:
        how.refuse(("kind", "columns", "label", "header"), "a table")
        table = tables.read_text(file, wanted, how.header, argument)
    return Contents(table.values, table.label, columns=table.columns, notes=table.notes)


def kind_of(file: Path) -> str:
    """What a file is by its content: "npy", "npz", "parquet", or words that say what else."""
    with open(file, "rb") as opened_file:
        head = opened_file.read(256)
    for kind, beginnings in (("npy", (b"\x93NUMPY",)), ("npz", (b"PK\x03\x04", b"PK\x05\x06")), ("parquet", (b"PAR1",))):
        if head.startswith(beginnings):
            return kind
    if picture := format_of(head):
        return f"one picture ({picture})"
    if not head:
        return "empty"
    return "a text" if not set(head) & set(range(9)) else "no array file"


def _numpy(file: Path, argument: str) -> Contents:
    """The array of an .npy, or those of an .npz by their names."""
    with _no_pickles(file, argument):
        loaded = np.load(file)
    if isinstance(loaded, np.ndarray):
        return Contents(_numbers(loaded, file, "", argument))
    with loaded:
        if strange := [name for name in loaded.zip.namelist() if not name.endswith(".npy")]:
            raise ArgumentError(f"{argument}: {file} is no .npz, but an archive of other files, such as {strange[0]!r}",
                                argument)
        names = list(loaded.files)
        found = {part: next((name for name in words if name in names), None) for part, words in (
            ("x", X_NAMES), ("y", Y_NAMES), ("x_test", ("x_test",)), ("y_test", ("y_test",)))}
        if found["x"] is None and len(names) == 1:
            found["x"] = names[0]
        if found["x"] is None:
            raise ArgumentError(f"{argument}: {file} holds the arrays {', '.join(names) or '(none)'}; give one of them the "
                                f"name {' or '.join(X_NAMES)}", argument)
        with _no_pickles(file, argument):
            arrays = {part: loaded[name] for part, name in found.items() if name is not None}
    for part in {"x", "x_test"} & set(arrays):
        arrays[part] = _numbers(arrays[part], file, f" ({found[part]})", argument)
    unused = [name for name in names if name not in found.values()]
    notes = (f"{file.name}: {', '.join(unused)} {'is' if len(unused) == 1 else 'are'} not used",) if unused else ()
    return Contents(**arrays, notes=notes)


@contextmanager
def _no_pickles(file: Path, argument: str) -> Iterator[None]:
    """In this context, the errors of NumPy are of one line, and none of them says how to run code from a file."""
    try:
        with damage_named(file, argument):
            yield
    except ArgumentError as error:
        if "pickle" not in str(error):
            raise
        raise ArgumentError(f"{argument}: {file} holds Python objects, which could run code; store an array of numbers, "
                            "(N, ...), in which all examples have one size", argument) from None


def _numbers(array: np.ndarray, file: Path, name: str, argument: str) -> np.ndarray:
    if array.dtype.names:
        raise ArgumentError(f"{argument}: {file}{name} has named fields; save its fields as the columns of one array (N, D)",
                            argument)
    if array.dtype.kind not in "iufb":
        raise ArgumentError(f"{argument}: {file}{name} is an array of {array.dtype}, not of numbers", argument)
    if not array.size:
        raise ArgumentError(f"{argument}: {file}{name} is empty: its shape is {array.shape}", argument)
    return array


# ---- shapes --------------------------------------------------------------------------------------------------------


def arrangement(x: np.ndarray, how: Reading, name: str) -> tuple[str, str]:
    """The kind and the layout of an array: those of `how`, else the only ones that its shape and its type allow.

    Raises ArgumentError, with the settings that decide it, if there is more than one.
    """
    shape = f"{name} has the shape {x.shape}"
    kind, axes = how.kind, x.ndim
    if kind == "auto" and axes == 3 and x.dtype.kind not in "ub":
        raise ArgumentError(f"{shape}, which may be series of {x.shape[1]} channels and length {x.shape[2]}, or grey "
                            f"pictures of {x.shape[1]} x {x.shape[2]}; set data.kind to series or pictures", "data.kind")
    kind = {1: "table", 2: "table", 3: "pictures", 4: "pictures"}.get(axes, "") if kind == "auto" else kind
    takes = {"table": (1, 2), "series": (3,), "pictures": (3, 4)}.get(kind, ())
    if axes not in takes:
        raise ArgumentError(f"{shape}; a table has (N, D), series (N, C, L), pictures (N, C, H, W), (N, H, W, C) or "
                            "(N, H, W)" + (f", and data.kind is {kind}" if how.kind != "auto" else ""), "data.kind")
    if axes < 3 or (kind, axes) == ("pictures", 3):
        how.refuse(("kind", "columns", "label", "header"), f"a table or grey pictures ({shape})")
        return kind, "channels_first"
    return kind, how.layout if how.layout != "auto" else _layout(x, kind, shape)


def _layout(x: np.ndarray, kind: str, shape: str) -> str:
    first, last = x.shape[1], x.shape[-1]
    if kind == "series":
        if first <= last:
            return "channels_first"
        raise ArgumentError(f"{shape}, which may be {first} channels of length {last}, or {last} channels of length "
                            f"{first}; set data.layout to channels_first or channels_last", "data.layout")
    if (first <= FEW) == (last <= FEW):
        raise ArgumentError(f"{shape}, which may be {first} channels of {x.shape[2]} x {last}, or {last} channels of "
                            f"{first} x {x.shape[2]}; set data.layout to channels_first or channels_last", "data.layout")
    return "channels_first" if first <= FEW else "channels_last"


def _examples(x: np.ndarray, kind: str, layout: str, integers: bool, name: str, columns: Sequence[str]) -> np.ndarray:
    """The array as (N, D), (N, C, L) or (N, C, H, W), finite, in a type of this machine that torch has."""
    if x.ndim == 1:
        x = x[:, None]
    if (kind, x.ndim) == ("pictures", 3):
        x = x[:, None]
    if layout == "channels_last":
        x = np.moveaxis(x, -1, 1)
    if integers:
        return np.ascontiguousarray(x, np.uint8 if x.dtype.kind == "b" or x.dtype == np.uint8 else np.int64)
    if not np.isfinite(x).all():
        n, *place = (int(i[0]) for i in np.nonzero(~np.isfinite(x)))
        words = f"row {n + 1}, column {columns[place[0]] if columns else place[0]!r}" if kind == "table" else (
            f"example {n}, at {tuple(place)} of {x.shape[1:]}")
        raise ArgumentError(f"{name}, {words} is {x[(n, *place)]}; numbers must be finite", name.partition(":")[0])
    return np.ascontiguousarray(x, np.float32 if x.dtype in (np.float16, np.float32) or x.dtype.itemsize < 4 else np.float64)


# ---- labels and words ----------------------------------------------------------------------------------------------


def _labels(contents: Contents, file: Path) -> tuple[np.ndarray | None, np.ndarray | None, tuple[str, ...]]:
    """Labels of x and of x_test, int64, and the names of the classes, () for numbers."""
    given = {name: labels_in(labels, name) for name in ("y", "y_test") if (labels := getattr(contents, name)) is not None}
    if contents.x_test is not None and len(given) == 1:
        raise ArgumentError(f"data.path: {file}: of the training examples and those to hold out, only one part has labels "
                            f"({next(iter(given))}); give both or neither", "data.path")
    for name, labels in given.items():
        x = contents.x if name == "y" else contents.x_test
        if x is not None and len(labels) != len(x):
            raise ArgumentError(f"data.path: {file} has {len(x)} examples and {len(labels)} labels ({name})", "data.path")
    if all(labels.dtype.kind != "U" for labels in given.values()):
        for labels in given.values():
            _require_numbered(labels, file)
        return given.get("y"), given.get("y_test"), ()
    known, number = np.unique(given["y"], return_inverse=True)
    test = given.get("y_test")
    if test is not None:
        if len(unknown := np.setdiff1d(test, known)):
            raise ArgumentError(f"the label {str(unknown[0])!r} is among the examples to hold out, and no training example "
                                "has it", "data.test_path")
        test = np.searchsorted(known, test)
    return number, test, tuple(map(str, known))


def labels_in(labels: np.ndarray | None, name: str, argument: str = "data.path") -> np.ndarray:
    """The labels (N,) that a file holds: int64, or words."""
    assert labels is not None
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "U" and all(_INTEGER.fullmatch(word) for word in labels):
        return labels.astype(np.int64)
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and bool(np.all(labels == np.round(labels))))
    if labels.ndim != 1 or not (whole or labels.dtype.kind == "U"):
        raise ArgumentError(f"{argument}: {name} must hold a whole number or a word for each example, got {labels.dtype} of "
                            f"shape {labels.shape}", argument)
    return labels if labels.dtype.kind == "U" else labels.astype(np.int64)


def _require_numbered(labels: np.ndarray, file: Path) -> None:
    """Refuse labels that are numbers, but not those of classes: then `--label 3` would mean one class or another."""
    found = np.unique(labels)
    if found[0] < 0 or found[-1] > 10 * len(found) + 100:
        raise ArgumentError(f"data.path: the labels of {file} go from {found[0]} to {found[-1]}, with {len(found)} "
                            "different ones; number the classes 0, 1, 2, ..., or name them by words such as class_7",
                            "data.path")


def _words(kind: str) -> str:
    return {"table": "rows"}.get(kind, kind)


def _described(dataset: Dataset, file: Path, kind: str, layout: str, standardise: bool) -> str:
    """A line that says how a file was understood."""
    shape, standard = dataset.shape, dataset.standard
    columns = standard.columns if standard else ()
    names = f" ({', '.join(columns[:12])}{', ...' * (len(columns) > 12)})" if columns else ""
    what = {"table": f"{shape[0]} columns{names}",
            "series": f"{shape[0]} channels and length {shape[-1]}",
            "pictures": f"{shape[0]} channels, height {shape[-2] if len(shape) > 1 else 0} and width {shape[-1]}"}[kind]
    rule = f"{dataset.levels} levels" if dataset.levels else (
        f"standardised by {'column' if kind == 'table' else 'channel'}" if standardise else "not standardised")
    where = f" ({layout.replace('_', ' ')})" if kind != "table" else ""
    classes = f"; {dataset.classes} classes: {', '.join(dataset.class_names[:12])}" if dataset.classes else "; no labels"
    return f"{file.name}: {len(dataset.train)} + {len(dataset.test)} {_words(kind)} of {what}{where}, {rule}{classes}"
