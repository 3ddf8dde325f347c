"""CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning multiple layers of features from tiny images", 2009), with their labels.

The official "python" archives hold pickles: the batches of pictures with their labels, and a file with the names of the
classes. A pickle can run any code, so these are read by an unpickler that builds nothing but plain data. An archive that is
not on this machine is downloaded from its official page.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.data.damage import damage_named
from scorefield.data.dataset import Dataset, Examples
from scorefield.data.download import fetch
from scorefield.numerics.errors import MissingFileError

PAGE = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True)
class Layout:
    """How a set is stored in the official folder or archive.

    sha256       of the archive, which lies at PAGE
    train, test  files of the folder with pictures
    meta         the file with the names of the classes; without it they are `names`
    labels       the key of the labels in a batch
    name_list    the key of the names in `meta`
    """

    title: str
    folder: str
    archive: str
    sha256: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: bytes
    name_list: bytes
    names: tuple[str, ...]

    @property
    def batches(self) -> tuple[str, ...]:
        return (*self.train, self.test)

    def find(self, path: Path) -> Path | None:
        """The folder of batches or the archive, which is `path` itself or in it; None if there is neither."""
        if path.is_file() or any((path / name).is_file() for name in self.batches):
            return path
        return next((path / name for name in (self.folder, self.archive) if (path / name).exists()), None)


CIFAR10 = Layout(
    title="CIFAR-10", folder="cifar-10-batches-py", archive="cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)), test="test_batch", meta="batches.meta",
    labels=b"labels", name_list=b"label_names",
    names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"))
CIFAR100_FINE = Layout(
    title="CIFAR-100", folder="cifar-100-python", archive="cifar-100-python.tar.gz",
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    train=("train",), test="test", meta="meta",
    labels=b"fine_labels", name_list=b"fine_label_names",
    names=tuple("""
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
        man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()))
CIFAR100_COARSE = replace(
    CIFAR100_FINE, labels=b"coarse_labels", name_list=b"coarse_label_names",
    names=tuple("""
        aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
        insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
        medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2""".split()))


def load(name: str, layout: Layout, place: Path, required: bool, flip: bool) -> Dataset:
    """The data set `name` from `place`; downloaded if nothing is there and it is not `required`.

    Raises FileNotFoundError if it or a batch is missing, ArgumentError if a file is damaged or would run code, and OSError
    if a download fails.
    """
    found = layout.find(place)
    if found is None and required:
        raise MissingFileError(f"data.path={str(place)!r} neither is nor holds the folder {layout.folder} or the file "
                               f"{layout.archive}", "data.path")
    train, test, names, unlabelled = _read(layout, found or _download(layout, place))
    return Dataset(name, train, test, (3, 32, 32), 256, flip, () if unlabelled else names, unlabelled)


def _download(layout: Layout, place: Path) -> Path:
    """The archive, fetched to the folder `place`. OSError that says what to do if that fails."""
    url, archive = f"{PAGE}/{layout.archive}", place / layout.archive
    try:
        fetch(url, archive, layout.sha256)
    except OSError as error:
        raise OSError(f"{layout.title} is not in {place}, and {error}; fetch that file on another machine, and put it into "
                      "this folder or set data.path to it") from error
    return archive


def _read(layout: Layout, path: Path) -> tuple[Examples, Examples, tuple[str, ...], str]:
    """Both splits, the names of the classes, and why there are no labels if the batches hold none."""
    raw = _raw_files(layout, path)
    if missing := [name for name in layout.batches if name not in raw]:
        raise MissingFileError(f"data.path: {path} lacks {', '.join(missing)} of {layout.archive}", "data.path")
    batches = [_read_batch(layout, raw[name], path / name) for name in layout.batches]
    bare = [name for name, (_, labels) in zip(layout.batches, batches, strict=True) if labels is None]
    names = _read_names(layout, raw[layout.meta], path / layout.meta) if layout.meta in raw else layout.names
    pictures = [pictures for pictures, _ in batches]
    labels = [labels for _, labels in batches if labels is not None]
    train, test = torch.cat(pictures[:-1]), pictures[-1]
    if bare:
        return Examples(train), Examples(test), names, f"{path / bare[0]} holds no {layout.labels.decode()}"
    return Examples(train, {"label": torch.cat(labels[:-1])}), Examples(test, {"label": labels[-1]}), names, ""


def _raw_files(layout: Layout, path: Path) -> dict[str, bytes]:
    """The batches and the file of names, as far as they are there, from the folder or the archive."""
    wanted = (*layout.batches, layout.meta)
    if not path.is_file():
        return {name: (path / name).read_bytes() for name in wanted if (path / name).is_file()}
    raw = {}
    with damage_named(path), gzip.open(path) as stream, tarfile.open(fileobj=stream) as archive:
        for member in archive:
            name = Path(member.name).name
            file = archive.extractfile(member) if name in wanted else None
            if file is not None:
                raw[name] = file.read()
        while stream.read(2**20):  # on to the checksum at the end
            pass
    return raw


class _Inert:
    """Replaces the parts from which a pickle builds a numpy array: keeps them as plain data and runs nothing."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays as `_Inert`: a numpy dtype built from hostile flags is enough to corrupt memory."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" == "_codecs.encode":  # how protocol 2 writes bytes
            return lambda text, encoding: text.encode("latin1")
        multiarray = module in ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2
        if (multiarray and name == "_reconstruct") or (module == "numpy" and name in ("ndarray", "dtype")):
            return _Inert
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def _unpickle(raw: bytes) -> Mapping[bytes, Any]:
    return _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()


def _read_batch(layout: Layout, raw: bytes, file: Path) -> tuple[Tensor, Tensor | None]:
    """Pictures, uint8 (N, 3, 32, 32), and their labels, int64 (N,), or None where the batch holds none."""
    with damage_named(file):
        content = _unpickle(raw)
        _, shape, dtype, fortran_order, data = content[b"data"].state
        code = dtype.arguments[0]
        if code not in ("u1", b"u1") or fortran_order or shape[0] < 1 or shape[1:] != (3072,):
            raise ValueError(f"array of type {code!r} and shape {shape}, expected 'u1' and (N, 3072)")
        pictures = torch.from_numpy(np.frombuffer(data, np.uint8).reshape(shape[0], 3, 32, 32).copy())
        if layout.labels not in content:
            return pictures, None
        labels, classes = content[layout.labels], len(layout.names)
        if not isinstance(labels, list) or len(labels) != len(pictures):
            count = len(labels) if isinstance(labels, list) else type(labels).__name__
            raise ValueError(f"{layout.labels.decode()} are {count}, expected a list of {len(pictures)}, one a picture")
        for i, label in enumerate(labels):
            if type(label) is not int or not 0 <= label < classes:
                raise ValueError(f"picture {i} has label {label!r}, expected 0 .. {classes - 1}")
        return pictures, torch.tensor(labels)


def _read_names(layout: Layout, raw: bytes, file: Path) -> tuple[str, ...]:
    with damage_named(file):
        names = tuple(name.decode() for name in _unpickle(raw)[layout.name_list])
        if len(set(names)) != len(layout.names) or len(names) != len(layout.names):
            raise ValueError(f"{len(set(names))} names of classes, expected {len(layout.names)}")
        return names
