"""A user's pictures to be restored or enlarged: a picture, a folder of pictures, or an array in a file.

They come back as a model sees them, float32 (N, channels, height, width) in its range [low, high]; with a codec that is
dequantised, in the middle of each level's bin, so that decoding gives the level back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.data import pictures
from scorefield.data.codec import Codec, Pixels
from scorefield.data.damage import damage_named, named_argument
from scorefield.data.picture_files import find_pictures, format_of, shown
from scorefield.data.transforms import require_within
from scorefield.numerics.errors import ArgumentError, MissingFileError

ARRAYS = (".npy", ".npz")
X_NAMES = ("x", "y", "arr_0", "images")      # of the array in an .npz


@dataclass(frozen=True, eq=False)
class Measured:
    """Pictures, or other measurements, (N, *shape), and a name for each: its file's, or its number."""

    x: Tensor
    names: tuple[str, ...]


def load_measured(path: str, codec: Codec, channels: int, argument: str, background: str = "white") -> Measured:
    """The pictures at a path, in `channels` channels, all of one size.

        load_measured("photo.png", make_codec(256), 3, "measurement").x      # (1, 3, height, width)

    Arrays (.npy, or .npz with x) are (N, *shape): integers are levels 0 .. L-1, floats are what the model sees. Raises
    ArgumentError about `argument` for a file that is damaged, no picture or out of range, and for pictures of several sizes;
    FileNotFoundError if there is nothing.
    """
    place = Path(os.path.expanduser(path))
    if not place.exists():
        raise MissingFileError(f"{argument}={path!r} does not exist; give a picture, a folder of pictures, an .npy or an "
                               ".npz", argument)
    if place.is_dir():
        found = find_pictures(place, argument)
        if not found.files:
            raise MissingFileError(f"{argument}={path!r} holds no pictures: {found.said(path)}", argument)
        names = [str(file.relative_to(place).with_suffix("")) for file in found.files]
        return _of_files(found.files, names, codec, channels, argument, background)
    if place.suffix.lower() in ARRAYS:
        array = _array(place, argument)
        with named_argument(argument):
            x = _of_array(array, f"{argument}={path!r}", codec)
        return Measured(x, tuple(f"{i:05d}" for i in range(len(x))))
    with open(place, "rb") as file:
        if format_of(file.read(64)) is None:
            raise ArgumentError(f"{argument}: {shown(place)} is neither a picture of a known format nor an .npy or .npz",
                                argument)
    return _of_files([place], [place.stem], codec, channels, argument, background)


def placed(k: Tensor, codec: Codec) -> Tensor:
    """Levels k (any real numbers in 0 .. L-1) as the model sees them: of a dequantised codec, in the middle of a bin."""
    if not isinstance(codec, Pixels):
        return k.float()
    k = k.double()
    unit = (k + 0.5) / codec.levels if codec.noisy else k / (codec.levels - 1)
    return (codec.low + (codec.high - codec.low) * unit).float()


def unit_of(x: Tensor, codec: Codec) -> Tensor:
    """What the model sees, as pictures in which 0 is black and 1 is white: the inverse of `placed`, over L-1."""
    if not isinstance(codec, Pixels):
        return x
    unit = (x.double() - codec.low) / (codec.high - codec.low)
    return (unit * codec.levels - 0.5) / (codec.levels - 1) if codec.noisy else unit


def _of_files(files: list[Path], names: list[str], codec: Codec, channels: int, argument: str, background: str) -> Measured:
    if not isinstance(codec, Pixels):
        raise ArgumentError(f"{argument}: the run's examples are no pictures of levels; give an .npy or an .npz", argument)
    if channels not in (1, 3):
        raise ArgumentError(f"{argument}: files of pictures have 1 or 3 channels, and {channels} are needed; give an .npy "
                            "or an .npz", argument)
    form, read = pictures.Form(None, channels, pictures.colour_of(background)), []
    for file in files:
        with damage_named(file, argument), pictures.open_picture(file) as opened:
            read.append(pictures.decode(opened, form))
        if read[-1].shape != read[0].shape:
            sizes = [f"{tensor.shape[2]}x{tensor.shape[1]}" for tensor in (read[0], read[-1])]
            raise ArgumentError(f"{argument}: {shown(files[0])} has {sizes[0]} pixels and {shown(file)} has {sizes[1]}; "
                                "give pictures of one size", argument)
    return Measured(placed(torch.stack(read) * ((codec.levels - 1) / 255), codec), tuple(names))


def _array(place: Path, argument: str) -> np.ndarray:
    with damage_named(place, argument):
        opened = np.load(place, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            return opened
        with opened as file:
            names = [name for name in X_NAMES if name in file.files] or file.files[:len(file.files) == 1]
            if names:
                return np.asarray(file[names[0]])
    raise ArgumentError(f"{argument}: {place} holds {', '.join(opened.files) or 'nothing'}; save the pictures as x",
                        argument)


def _of_array(array: np.ndarray, name: str, codec: Codec) -> Tensor:
    if array.dtype.kind not in "biuf" or array.ndim < 2 or not array.size:
        raise ValueError(f"{name} is an array of {array.dtype} and shape {array.shape}; it must be numbers (N, *shape), "
                         "N >= 1")
    if isinstance(codec, Pixels) and array.dtype.kind in "iu":
        k = torch.from_numpy(np.ascontiguousarray(array, np.int64))
        require_within(k, 0, codec.levels - 1, name, f"its levels are 0 .. {codec.levels - 1}; floats are as the model "
                                                     f"sees them, in [{codec.low:g}, {codec.high:g}]")
        return placed(k, codec)
    with np.errstate(over="ignore"):
        x = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    limit = torch.finfo(torch.float32).max
    require_within(x, -limit, limit, name, "numbers must be finite")
    return x
