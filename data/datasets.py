"""One contract for every data set: examples by index, as integer levels or points, and a held-out split.

`load_dataset(config)` reads `config.dataset` and, of the rest, what that data set uses: `path` ("": its
default place), `image_size`, `channels`, `size` (number of points), `seed`. To add a data set, write a
function from a config to a `Dataset` and add a line to `DATASETS`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scorefield.data import points, readers, transforms


class Examples(Protocol):
    """Examples by index: [int64 indices (B,)] -> (B, *shape), uint8 or float32. A plain tensor is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and held-out examples of one shape.

    shape: (channels, height, width) or (D,).
    levels: the number L of integer levels 0 .. L-1 that uint8 examples take; None for float32 points.
    flip: whether an example mirrored left to right is again a plausible example.
    """

    name: str
    train: Examples
    test: Examples
    shape: tuple[int, ...]
    levels: int | None
    flip: bool


def load_dataset(config: Any) -> Dataset:
    """The data set named by `config.dataset`.

    Raises ValueError for an unknown name, a value out of range or a damaged file, FileNotFoundError where
    data is missing, OSError where it cannot be read or downloaded: one line that names the flag or the file.
    """
    return reader_of(config)(config)


def reader_of(config: Any) -> Callable[[Any], Dataset]:
    """The function that reads the data set named by `config.dataset`; ValueError for an unknown name."""
    name = str(config.dataset)
    nearest = difflib.get_close_matches(name.lower(), DATASETS, n=1, cutoff=0.0)[0]
    _require(name in DATASETS, "dataset", name, f"one of {', '.join(DATASETS)} (nearest: {nearest!r})")
    return DATASETS[name]


def levels_of(name: str) -> int | None:
    """How many integer levels the examples of a data set have, from its name; None for points."""
    return LEVELS.get(name, 256)


def _require(valid: bool, field: str, value: Any, allowed: str) -> None:
    if not valid:
        raise ValueError(f"--config.data.{field}={value!r} must be {allowed}")


def _place(config: Any, default: str) -> Path:
    cache = os.environ.get("SCOREFIELD_DATA") or "~/.cache/scorefield"
    return Path(os.path.expanduser(config.path or os.path.join(cache, default)))


def load_images(path: str, shape: tuple[int, ...], levels: int | None, low: float, high: float, dequantized: bool,
                flag: str) -> tuple[Dataset, list[str] | None]:
    """Examples for a model of events `shape` from a user's path, as a data set whose splits are the same, and their names.

    A folder   every picture below it, cropped and resized as those of data set "folder"; the names are their paths
    An .npz    one array, or `x`, `arr_0` or `images`. Integers are levels 0 .. levels - 1 of shape (N, C, H, W),
               (N, H, W, C) or, of one channel, (N, H, W). Floats are what `--mode sample` writes, (N, *shape): points,
               or images in [low, high], which are quantised as its pictures are; they may leave it by a quarter

    `flag` is how the user gave the path. Raises FileNotFoundError where nothing is there, ValueError for what is damaged,
    of another shape, not finite or outside its levels, naming the file, the example and the value.
    """
    place = Path(os.path.expanduser(path))
    if not place.exists():
        raise FileNotFoundError(f"{flag}={path!r} does not exist; give a folder of pictures or an .npz")
    if place.is_dir():
        if levels != 256 or len(shape) != 3 or shape[1] != shape[2] or shape[0] not in (1, 3):
            raise ValueError(f"{flag}={path!r}: pictures have 256 levels and 1 or 3 channels, the model's examples "
                             f"{levels or 'no'} levels and shape {shape}; give an .npz")
        files = readers.find_pictures(place)
        if not files:
            raise FileNotFoundError(f"{flag}={path!r} holds no pictures ({', '.join(readers.PICTURE_SUFFIXES)})")
        pictures = readers.open_pictures(files, shape[1], shape[0], flag)
        return (Dataset(place.name, pictures, pictures, shape, levels, False),
                [str(file.relative_to(place)) for file in files])
    x = _examples(readers.read_array(place, flag), f"{flag}={path!r}", shape, levels, low, high, dequantized)
    return Dataset(place.stem, x, x, shape, levels, False), None


def _examples(array: np.ndarray, name: str, shape: tuple[int, ...], levels: int | None, low: float, high: float,
              dequantized: bool) -> Tensor:
    if array.dtype.kind not in "iuf" or (array.dtype.kind != "f" and levels is None):
        raise ValueError(f"{name} is an array of {array.dtype}; the model takes floats"
                         + (f" or integer levels 0 .. {levels - 1}" if levels else ""))
    integer, given = array.dtype.kind != "f", tuple(array.shape)
    if integer and given[1:] == (*shape[1:], *shape[:1]) != shape:
        array = array.transpose(0, 3, 1, 2)
    elif integer and (1, *given[1:]) == shape:
        array = array[:, None]
    if array.shape[:1] in ((), (0,)) or array.shape[1:] != shape:
        hint = "" if integer or len(shape) != 3 else ", floats with the channels first and as the network sees them"
        raise ValueError(f"{name} is an array of shape {given}, the model takes (N, {', '.join(map(str, shape))}){hint}")
    dtype = np.uint8 if array.dtype == np.uint8 else np.int64 if integer else np.float32
    with np.errstate(over="ignore"):      # what float32 cannot hold becomes infinite, and is refused
        x = torch.from_numpy(np.ascontiguousarray(array, dtype))
    if levels is None:
        limit = float(np.finfo(np.float32).max)
        transforms.require_within(x, -limit, limit, name, "examples must be finite")
        return x
    if integer:
        transforms.require_within(x, 0, levels - 1, name, f"the model's levels are 0 .. {levels - 1}")
        return x.to(torch.uint8)
    slack = (high - low) / 4      # a sampler's last noise leaves the interval by less, bytes as floats by more
    transforms.require_within(x, low - slack, high + slack, name, f"floats must lie in the model's [{low:g}, {high:g}], "
                              "as --mode sample writes them")
    return transforms.quantize(x, levels, low, high, dequantized)


def _digits(config: Any) -> Dataset:
    """scikit-learn's 1797 handwritten digits in 17 grey levels, which mirrored are no digits.

    The rule of the split: the 360 images whose index in scikit-learn's order is divisible by 5 are held out.
    """
    from sklearn.datasets import load_digits  # slow to import, and only this set needs it

    images = torch.from_numpy(load_digits().images.astype(np.uint8)).unsqueeze(1)
    held_out = torch.arange(len(images)) % 5 == 0
    return Dataset("digits", images[~held_out], images[held_out], (1, 8, 8), levels_of("digits"), flip=False)


def _points(name: str, sample: Callable[[int, np.random.Generator], np.ndarray], config: Any) -> Dataset:
    """`config.size` training points (None: 10000) and 2000 test points, independent streams of one seed."""
    _require(config.size is None or config.size >= 1, "size", config.size, "1 or more, or None for 10000")
    _require(config.seed >= 0, "seed", config.seed, "0 or more")
    streams = map(np.random.default_rng, np.random.SeedSequence(config.seed).spawn(2))
    draws = map(sample, (config.size or 10_000, 2_000), streams)
    train, test = (torch.from_numpy(draw.astype(np.float32)) for draw in draws)
    return Dataset(name, train, test, (2,), levels_of(name), flip=False)


def _cifar10(config: Any) -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009) from the official folder or archive, else by download."""
    found = readers.find_cifar10(_place(config, "cifar10"))
    if found is None and config.path:
        wanted = f"the folder {readers.CIFAR10_FOLDER} or the file {readers.CIFAR10_ARCHIVE}"
        raise FileNotFoundError(f"--config.data.path={config.path!r} neither is nor holds {wanted}")
    train, test = readers.read_cifar10(found) if found else readers.download_cifar10()
    return Dataset("cifar10", train, test, (3, 32, 32), levels_of("cifar10"), flip=True)


def _fashion_mnist(config: Any) -> Dataset:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017) from its idx files; labels are not read.

    No flips: the shoes all point to the left, so a mirrored one is no picture of this set.
    """
    names = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
    debian = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
    places = [_place(config, "fashion-mnist")] + ([] if config.path else [debian])
    for place in places:
        files = [readers.find_idx(place, name) for name in names]
        if all(files):
            train, test = (readers.read_idx_images(file, 28, 28) for file in files if file)
            return Dataset("fashion_mnist", train, test, (1, 28, 28), levels_of("fashion_mnist"), flip=False)
    wanted, searched = " and ".join(names), " or ".join(map(str, places))
    raise FileNotFoundError(f"--config.data.path={config.path!r}: no {wanted} (or .gz) in {searched}")


def _folder(config: Any) -> Dataset:
    """Every picture below `config.path`, as squares of `config.image_size`; `config.channels` is 1 or 3.

    Subfolders `train` and `test` are the splits where both exist. Else every tenth picture is held out: those
    whose index in sorted order is divisible by 10.
    """
    path, size, channels = config.path, config.image_size, config.channels
    _require(bool(path), "path", path, "a folder of pictures")
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        raise FileNotFoundError(f"--config.data.path={path!r} is no folder; give a folder of pictures")
    _require(size is not None and size >= 1, "image_size", size, "1 or more")
    _require(channels in (1, 3), "channels", channels, "1 (grey) or 3 (RGB)")
    if (root / "train").is_dir() and (root / "test").is_dir():
        train, test = readers.find_pictures(root / "train"), readers.find_pictures(root / "test")
    else:
        files = readers.find_pictures(root)
        train, test = [file for i, file in enumerate(files) if i % 10], files[::10]
    found = f"not {len(train)} to train on and {len(test)} to hold out"
    wanted = f"a folder with pictures ({', '.join(readers.PICTURE_SUFFIXES)}) for both splits, {found}"
    _require(bool(train and test), "path", path, wanted)
    train_examples, test_examples = (readers.open_pictures(files, size, channels) for files in (train, test))
    return Dataset("folder", train_examples, test_examples, (channels, size, size), levels_of("folder"), flip=True)


DATASETS: dict[str, Callable[[Any], Dataset]] = {
    "digits": _digits,
    "swiss_roll": partial(_points, "swiss_roll", points.sample_swiss_roll),
    "gaussians8": partial(_points, "gaussians8", partial(points.sample_mixture, "gaussians8")),
    "gaussians25": partial(_points, "gaussians25", partial(points.sample_mixture, "gaussians25")),
    "cifar10": _cifar10,
    "fashion_mnist": _fashion_mnist,
    "folder": _folder,
}
LEVELS: dict[str, int | None] = {"digits": 17, "swiss_roll": None, "gaussians8": None, "gaussians25": None}     # else 256
