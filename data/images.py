"""A user's own examples to score: a folder of pictures, or an array in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.data import pictures
from scorefield.data.arrays import Contents, Reading, kind_of, labels_in, read
from scorefield.data.codec import Codec, Pixels, Points
from scorefield.data.damage import named_argument
from scorefield.data.dataset import LABEL, Dataset, Examples, require_classes
from scorefield.data.picture_files import find_pictures
from scorefield.data.transforms import require_within
from scorefield.numerics.errors import ArgumentError, MissingFileError
from scorefield.numerics.text import nearest


def load_images(path: str, shape: tuple[int, ...], codec: Codec, argument: str = "path", background: str = "white",
                label: str = "", class_names: Sequence[str] = ()) -> tuple[Dataset, list[str] | None]:
    """Examples of `shape` from a user's path, as a data set whose two splits are the same, and the names of the examples.

    A folder   every picture below it, cropped and resized as in data set "folder", over the colour `background` where it is
               transparent; the names are their paths
    A file     .npy, .npz, .csv or .parquet, read as by data set "array". Of a model of levels, integers are levels 0 .. L-1
               of shape (N, C, H, W), (N, H, W, C) or, for one channel, (N, H, W); floats are pictures (N, *shape) in the
               codec's [low, high], which are decoded, and may exceed that interval by a quarter of its length. Floats from
               0 to 1 where low < 0 are refused, and said where they only lie between. Of other models, numbers (N, *shape)
               in the units of the data; of a table with names, the columns that the run has. They have labels if
               `class_names` are given and the file has y, or a column `label`: numbers of the classes, or their names

    `argument` names the path in messages. Raises FileNotFoundError if the path does not exist, and ValueError for a file
    that is damaged, of another shape, not finite or outside its levels. It names the file, the example and the value.
    """
    place = Path(os.path.expanduser(path))
    if not place.exists():
        raise MissingFileError(f"{argument}={path!r} does not exist; give a folder of pictures, an .npy, .npz or .csv",
                               argument)
    if place.is_dir():
        if codec.levels != 256 or len(shape) != 3 or shape[1] != shape[2] or shape[0] not in (1, 3):
            raise ArgumentError(f"{argument}={path!r}: pictures are squares of 256 levels and 1 or 3 channels, but the "
                                f"model's examples have {codec.levels or 'no'} levels and shape {shape}; give an .npz",
                                argument)
        found, form = find_pictures(place, argument), pictures.Form(shape[1], shape[0], pictures.colour_of(background))
        if not found.files:
            raise MissingFileError(f"{argument}={path!r} holds no pictures: {found.said(path)}", argument)
        opened, seen = pictures.open_pictures(found.files, form, argument)
        notes = (found.said(f"{argument}={path}"), *pictures.said_of_files([seen], found.formats))
        return (Dataset(place.name, Examples(opened), Examples(opened), shape, codec.levels, notes=notes),
                [str(file.relative_to(place)) for file in found.files])
    kind = kind_of(place)
    if codec.levels is not None and kind not in ("npy", "npz"):
        raise ArgumentError(f"{argument}: {place} is {kind}; give an .npy, an .npz or a folder of pictures", argument)
    standard = codec if isinstance(codec, Points) else None
    contents = read(place, Reading(label=label), argument, standard.columns if standard else (), optional=True)
    with named_argument(argument):
        x, notes = _read(contents.x, f"{argument}={path!r}", shape, codec)
    examples, known = Examples(x), contents.y is not None and bool(class_names)
    if known:
        examples = Examples(x, {LABEL: _classes_of(contents, class_names, f"{argument}={path!r}", argument)})
    return Dataset(place.stem, examples, examples, shape, codec.levels, class_names=tuple(class_names) if known else (),
                   unlabelled="" if known else f"{place.name} has no {f'column {label!r}' if label else 'y'}",
                   notes=(*contents.notes, *notes), standard=standard), None


def _classes_of(contents: Contents, names: Sequence[str], name: str, argument: str) -> Tensor:
    """The labels (N,) of examples, of classes with these names."""
    labels = labels_in(contents.y, "y", argument)
    if len(labels) != len(contents.x):
        raise ArgumentError(f"{name} has {len(contents.x)} examples and {len(labels)} labels", argument)
    if labels.dtype.kind == "U":
        numbers = {word: i for i, word in enumerate(names)}
        if (unknown := next((i for i, word in enumerate(labels) if word not in numbers), None)) is not None:
            word = str(labels[unknown])
            raise ArgumentError(f"{name}: example {unknown} has the label {word!r}, which is none of the run's classes"
                                f"{nearest(word, names)}; they are {', '.join(names[:12])}{', ...' * (len(names) > 12)}",
                                argument)
        return torch.tensor([numbers[word] for word in labels])
    found = torch.from_numpy(labels)
    require_classes(found, len(names), name, argument, ", as the run's")
    return found


def _read(array: np.ndarray, name: str, shape: tuple[int, ...], codec: Codec) -> tuple[Tensor, tuple[str, ...]]:
    """The examples of an array, and lines on how they were understood."""
    levels = codec.levels
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} is an array of {array.dtype}; the model takes "
                         + (f"floats or integer levels 0 .. {levels - 1}" if levels else "numbers"))
    integer = array.dtype.kind != "f" and levels is not None
    array = _channels_first(array[:, None] if shape == (1,) and array.ndim == 1 else array, name, shape, integer)
    wide = isinstance(codec, Points) and codec.dtype == torch.float64
    dtype = np.uint8 if array.dtype == np.uint8 and integer else np.int64 if integer else np.float64 if wide else np.float32
    with np.errstate(over="ignore"):      # a number too large for float32 becomes infinite, and is refused
        x = torch.from_numpy(np.ascontiguousarray(array, dtype))
    if isinstance(codec, Pixels) and not integer:
        slack = (codec.high - codec.low) / 4      # a sampler's last noise exceeds the interval by less, bytes by more
        require_within(x, codec.low - slack, codec.high + slack, name,
                       f"floats must lie in the model's [{codec.low:g}, {codec.high:g}], as samples are written")
        return codec.decode(x), _unit_interval(x, name, codec)
    if isinstance(codec, Pixels):
        require_within(x, 0, codec.levels - 1, name, f"its levels are 0 .. {codec.levels - 1}; save these as uint8, or "
                                                     f"floats in the model's [{codec.low:g}, {codec.high:g}]")
    else:
        codec.check(x, name)
    return x.to(torch.uint8) if integer else x, ()


def _unit_interval(x: Tensor, name: str, codec: Pixels) -> tuple[str, ...]:
    """A line on floats in [0, 1] for a model whose data go below 0; ArgumentError if they fill that interval exactly."""
    least, most = float(x.min()), float(x.max())
    if codec.low >= 0 or least < 0 or most > 1:
        return ()
    said = (f"{name}: its floats go from {least:g} to {most:g}, and the model's data from {codec.low:g} to {codec.high:g}; "
            f"if 0 is black and 1 is white, save {codec.low:g} + {codec.high - codec.low:g} x, or uint8 levels "
            f"0 .. {codec.levels - 1}")
    if (least, most) == (0, 1):
        raise ValueError(f"{said}; if not, save the levels")
    return (said,)


def _channels_first(array: np.ndarray, name: str, shape: tuple[int, ...], integer: bool) -> np.ndarray:
    """The array as (N, *shape), from any layout that is allowed for integers; ValueError for another shape."""
    given = tuple(array.shape)
    if integer and given[1:] == (*shape[1:], *shape[:1]) != shape:
        array = array.transpose(0, 3, 1, 2)
    elif integer and (1, *given[1:]) == shape:
        array = array[:, None]
    if array.shape[:1] in ((), (0,)) or array.shape[1:] != shape:
        hint = "" if integer or len(shape) != 3 else "; floats need the channels first and the range of the network's data"
        raise ValueError(f"{name} is an array of shape {given}, but the model takes (N, {', '.join(map(str, shape))}){hint}")
    return array
