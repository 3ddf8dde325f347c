"""Pictures of the Hugging Face hub by name: `hf:ylecun/mnist`, through the package `datasets`, which is an extra.

The hub gives rows in order, from files or as a stream. A training batch needs examples by index. So the rows are read once,
decoded as the pictures of a folder are (pictures.py), and kept in a cache on disk as uint8 arrays:

    train.bin, test.bin      uint8 (N, channels, size, size)
    train.npy, test.npy      labels, int64 (N,), where there are any
    content.json             shapes, names of the classes, SHA-256 of each file, and what was asked for

The cache is written whole or not at all. Later runs read it without the package and without a network. Sets of up to
EAGER_BYTES are checked by their SHA-256 and held in memory; larger ones are checked by their size and read batch by batch.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from scorefield.data.damage import damage_named, one_line
from scorefield.data.dataset import LABEL, Dataset, Examples
from scorefield.data.download import once
from scorefield.data.pictures import EAGER_BYTES, Form, Seen, colour_of, decode, is_deep, is_grey, open_picture
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import json_digest, new_folder, read_json, sha256_of, write_json

PREFIX = "hf:"
_TRAIN, _TEST = "train", ("test", "validation", "valid", "val", "dev")
_ROWS = 256      # decoded at a time
_VERSION = 1     # of the cache


@dataclass(frozen=True)
class Wanted:
    """What is asked of a data set on the hub, all of which the cache depends on. See `datasets.hugging_face`."""

    name: str
    subset: str = ""
    revision: str = ""
    train_split: str = ""
    test_split: str = ""
    image_column: str = ""
    label_column: str = ""
    image_size: int | None = None
    channels: int | None = None
    background: str = "white"


def load(wanted: Wanted, place: Path, streaming: bool, flip: bool) -> Dataset:
    """The data set from its folder of the cache below `place`, which is made first if it is not there.

    Raises ArgumentError for columns, splits or pictures that do not fit, OSError if the package or the network is missing.
    """
    colour_of(wanted.background)      # refused before anything is fetched
    asked = asdict(wanted)
    key = json_digest([_VERSION, asked])[:12]
    cache = place / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', wanted.name.removeprefix(PREFIX))}-{key}"
    once(cache / "content.json", lambda: _fetch(wanted, streaming, cache))
    content = read_json(cache / "content.json", "; remove that folder to fetch it again")
    shape = tuple(content["shape"])
    train, test = (_read(cache, part, shape, content) for part in ("train", "test"))
    notes = (*content["notes"], f"cached in {cache}; remove that folder to fetch it again")
    return Dataset(wanted.name, train, test, shape, 256, flip, tuple(content["class_names"]), content["unlabelled"], notes)


def _read(cache: Path, part: str, shape: tuple[int, ...], content: Mapping[str, Any]) -> Examples:
    count, digests, label = content["counts"][part], content["sha256"], cache / f"{part}.npy"
    file = cache / f"{part}.bin"
    again = "remove that folder to fetch it again"
    with damage_named(cache, "data.dataset"):
        if (size := file.stat().st_size) != count * math.prod(shape):
            raise ValueError(f"{file.name} has {size} bytes, expected {count} x {shape}; {again}")
        stored = StoredPictures(file, (count, *shape))
        small = size <= EAGER_BYTES
        for each in ([file] if small else []) + ([label] if label.name in digests else []):
            if sha256_of(each) != digests[each.name]:
                raise ValueError(f"the SHA-256 of {each.name} is wrong; {again}")
        data = stored[torch.arange(count)] if small else stored
        return Examples(data, {LABEL: torch.from_numpy(np.load(label))} if label.name in digests else {})


class StoredPictures:
    """Pictures in a file of raw bytes: [int64 indices (B,)] -> uint8 (B, channels, height, width)."""

    def __init__(self, file: Path, shape: tuple[int, ...]):
        self._pixels = np.memmap(file, np.uint8, "r", shape=shape)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        return torch.from_numpy(self._pixels[index.numpy()])


# From the hub to the cache


def _fetch(wanted: Wanted, streaming: bool, cache: Path) -> None:
    package, parts = _package(wanted.name), []
    splits, notes = _splits(package, wanted)
    for split in splits:
        with _hub_errors(wanted.name):
            parts.append(package.load_dataset(_repository(wanted), wanted.subset or None, split=split, streaming=streaming,
                                              revision=wanted.revision or None))
    columns = _Columns.of(parts[0].features or {}, wanted, package)
    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new_folder(cache) as folder:
            rows = [_undecoded(each, columns.image, package) for each in parts]
            _write(folder, _Reader(wanted, package), splits, rows, columns, notes)
    except (OSError, ValueError):
        if not (cache / "content.json").exists():      # another process may have been faster
            raise


def _package(name: str) -> Any:
    try:
        import datasets  # an extra, and slow to import
    except ImportError as error:
        raise OSError(f"data set {name!r} needs the package datasets, which is not installed: run {sys.executable} -m pip "
                      "install datasets") from error
    return datasets


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """In this context, any error becomes an OSError of one line: the package lets those of many libraries through."""
    try:
        yield
    except Exception as error:
        raise OSError(f"data set {name!r} could not be loaded ({textwrap.shorten(one_line(error), 400)}); check its name, "
                      "data.subset and data.revision, and the network") from error


def _repository(wanted: Wanted) -> str:
    return wanted.name.removeprefix(PREFIX)


def _splits(package: Any, wanted: Wanted) -> tuple[list[str], list[str]]:
    """The split to train on, the one to hold out if there is one, and lines on the others."""
    with _hub_errors(wanted.name):
        names = list(package.get_dataset_split_names(_repository(wanted), wanted.subset or None,
                                                     revision=wanted.revision or None))

    def chosen(given: str, field_name: str, usual: Sequence[str]) -> str | None:
        if given and given.partition("[")[0] not in names:
            raise ArgumentError(f"data.{field_name}={given!r} must be a split of {wanted.name}: {', '.join(names)}",
                                f"data.{field_name}")
        return given or next((name for name in usual if name in names), None)

    train = chosen(wanted.train_split, "train_split", (_TRAIN, *(names if len(names) == 1 else ())))
    if train is None:
        raise ArgumentError(f"{wanted.name} has no split {_TRAIN}; set data.train_split to one of {', '.join(names)}",
                            "data.train_split")
    test = chosen(wanted.test_split, "test_split", [name for name in _TEST if name != train])
    splits = [train] if test is None else [train, test]
    unused = [name for name in names if name not in {split.partition("[")[0] for split in splits}]
    return splits, [f"splits of {wanted.name} that are left out: {', '.join(unused)}"] if unused else []


@dataclass(frozen=True)
class _Columns:
    """The columns of pictures and of labels (None: there are none, and why), and the names of the classes if known."""

    image: str
    label: str | None
    names: tuple[str, ...] | None
    why_not: str

    @classmethod
    def of(cls, features: Mapping[str, Any], wanted: Wanted, package: Any) -> _Columns:
        def named(column: str, field_name: str) -> str:
            if features and column not in features:
                raise ArgumentError(f"data.{field_name}={column!r} must be a column of {wanted.name}: {', '.join(features)}",
                                    f"data.{field_name}")
            return column

        pictures = [column for column, kind in features.items() if isinstance(kind, package.Image)]
        if not wanted.image_column and len(pictures) != 1:
            what = f"has {len(pictures)} columns of pictures" if features else "does not say the types of its columns"
            raise ArgumentError(f"{wanted.name} {what}; set data.image_column to one of its columns"
                                f"{': ' * bool(features)}{', '.join(pictures or features)}", "data.image_column")
        image = named(wanted.image_column, "image_column") if wanted.image_column else pictures[0]
        classes = [column for column, kind in features.items() if isinstance(kind, package.ClassLabel)]
        usual = classes if len(classes) == 1 else [column for column in ("label", "labels") if column in features]
        label = named(wanted.label_column, "label_column") if wanted.label_column else next(iter(usual), None)
        names = tuple(features[label].names) if label in classes else None
        why = "" if label or not classes else (f"several columns hold classes ({', '.join(classes)}); choose "
                                               "data.label_column")
        return cls(image, label, names, why)


def _undecoded(rows: Any, column: str, package: Any) -> Any:
    """The rows, whose pictures come as the bytes of their files: they are decoded here as any other picture is."""
    known = isinstance((rows.features or {}).get(column), package.Image)
    return rows.cast_column(column, package.Image(decode=False)) if known else rows


@dataclass
class _Part:
    """What is written of a split: its file, the labels so far, and the hash of the pixels."""

    file: IO[bytes]
    labels: list[Any] = field(default_factory=list)
    hasher: Any = field(default_factory=hashlib.sha256)


def _write(folder: Path, reader: _Reader, splits: Sequence[str], rows: Sequence[Any], columns: _Columns, notes: list[str]
           ) -> None:
    wanted = reader.wanted
    with open(folder / "train.bin", "wb") as first, open(folder / "test.bin", "wb") as second:
        parts = {"train": _Part(first), "test": _Part(second)}
        for split, each in zip(splits, rows, strict=True):
            for i, (pixels, label) in enumerate(reader.rows(each, split, columns)):
                tenth = len(splits) == 1 and i % 10 == 0
                part = parts["test" if split != splits[0] or tenth else "train"]
                part.file.write(pixels)
                part.hasher.update(pixels)
                part.labels.append(label)
    if not all(part.labels for part in parts.values()):
        raise ArgumentError(f"{wanted.name} gave {len(parts['train'].labels)} training and {len(parts['test'].labels)} "
                            "held-out examples; choose other splits", "data.train_split", "data.test_split")
    names, numbers = _numbered({name: part.labels for name, part in parts.items()}, columns, wanted.name)
    digests = {f"{name}.bin": part.hasher.hexdigest() for name, part in parts.items()}
    for name, values in numbers.items():
        np.save(folder / f"{name}.npy", values)
        digests[f"{name}.npy"] = sha256_of(folder / f"{name}.npy")
    said = (f"{wanted.name}: {len(parts['train'].labels):,} training examples of split {splits[0]} and "
            f"{len(parts['test'].labels):,} held-out ones of split {splits[-1]}"
            f"{', every tenth' * (len(splits) == 1)}; pictures from column {columns.image}, "
            + (f"labels from column {columns.label}" if numbers else "no labels"))
    write_json(folder / "content.json", {
        "wanted": asdict(wanted), "shape": list(reader.shape), "counts": {k: len(p.labels) for k, p in parts.items()},
        "class_names": list(names), "unlabelled": columns.why_not, "sha256": digests,
        "notes": [said, *notes, *Seen(deep=len(reader.deep), top=max(reader.deep, default=0)).said()]})


class _Reader:
    """Rows to pixels and labels. Size and channels that are not asked for are those of the first picture."""

    def __init__(self, wanted: Wanted, package: Any):
        self.wanted, self.package, self.shape = wanted, package, tuple[int, ...]()
        self.deep: list[int] = []      # the largest level of each picture of 16 bits
        self.form = Form(wanted.image_size, wanted.channels or 3, colour_of(wanted.background))

    def rows(self, rows: Iterable[Mapping[str, Any]], split: str, columns: _Columns) -> Iterator[tuple[bytes, Any]]:
        """The pixels and the label of each row in order."""
        stream, total, begin = iter(rows), getattr(rows, "num_rows", None), 0
        with ThreadPoolExecutor(8) as pool, tqdm(total=total, desc=f"{self.wanted.name} {split}", unit="example",
                                                 disable=None) as bar:
            while True:
                with _hub_errors(self.wanted.name):
                    batch = list(islice(stream, _ROWS))
                if not batch:
                    return
                if not self.shape:
                    self._fit(batch[0], f"row 0 of split {split}", columns)
                places = [f"row {begin + i} of split {split}" for i in range(len(batch))]
                decoded = pool.map(lambda row, place: self._pixels(row[columns.image], place), batch, places)
                for row, pixels in zip(batch, decoded, strict=True):
                    yield pixels, row.get(columns.label) if columns.label else None
                begin += len(batch)
                bar.update(len(batch))

    def _fit(self, row: Mapping[str, Any], place: str, columns: _Columns) -> None:
        """Take from the first picture what was not asked for."""
        if columns.image not in row:
            raise ArgumentError(f"data.image_column={columns.image!r} must be a column of {self.wanted.name}: "
                                f"{', '.join(row)}", "data.image_column")
        with damage_named(Path(place), "data.dataset"), self._opened(row[columns.image]) as picture:
            channels = self.wanted.channels or (1 if is_grey(picture) else 3)
            self.form = Form(self.form.size, channels, self.form.background)
            shape = decode(picture, self.form).shape
        if shape[1] != shape[2]:
            raise ArgumentError(f"{self.wanted.name}: its pictures are no squares (the first is {shape[2]}x{shape[1]}); set "
                                "data.image_size, and they are cropped and resized", "data.image_size")
        self.shape = tuple(shape)

    def _pixels(self, value: Any, place: str) -> bytes:
        with damage_named(Path(place), "data.dataset"), self._opened(value) as picture:
            grey, deep, pixels = is_grey(picture), is_deep(picture), decode(picture, self.form)
        if deep:
            self.deep.append(int(pixels.max()))
        if tuple(pixels.shape) != self.shape:
            raise ArgumentError(f"{self.wanted.name}: the picture in {place} is {pixels.shape[2]}x{pixels.shape[1]}, the "
                                f"first one {self.shape[2]}x{self.shape[1]}; set data.image_size", "data.image_size")
        if self.shape[0] == 1 and self.wanted.channels is None and not grey:
            raise ArgumentError(f"{self.wanted.name}: the picture in {place} is not grey as the first one is; set "
                                "data.channels to 3, or to 1 to make all grey", "data.channels")
        return pixels.numpy().tobytes()


    def _opened(self, value: Any) -> Image.Image:
        """The picture in a cell: Pillow's own, or the bytes or the path of its file, which may lie on the hub."""
        if isinstance(value, Image.Image):
            return value.copy()
        content = value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value
        if not content:
            raise ValueError("there is no picture")
        if isinstance(content, str) and not Path(content).is_file():
            return self.package.Image().decode_example(value)
        return open_picture(io.BytesIO(content) if isinstance(content, bytes) else Path(content))


def _numbered(labels: Mapping[str, Sequence[Any]], columns: _Columns, name: str
              ) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The names of the classes, and the labels of each split that has any. The hub's -1 and None mean no label."""
    known: dict[str, list[Any]] = {part: [None if value == -1 else value for value in values]
                                   for part, values in labels.items()}
    some = {part: values for part, values in known.items() if any(value is not None for value in values)}
    for part, values in some.items():
        if None in values:
            raise ArgumentError(f"{name}: {part} example {values.index(None)} has no label in column {columns.label}, and "
                                "others have one; choose another data.label_column", "data.label_column")
    every = {type(value) for values in some.values() for value in values}
    if every == {str}:
        names = tuple(sorted({value for values in some.values() for value in values}))
        number = {value: i for i, value in enumerate(names)}
        return names, {part: np.array([number[value] for value in values]) for part, values in some.items()}
    if not every <= {int, bool}:
        raise ArgumentError(f"{name}: column {columns.label} holds {', '.join(sorted(kind.__name__ for kind in every))}, "
                            "expected whole numbers or words; choose another data.label_column", "data.label_column")
    return (columns.names or () if some else ()), {part: np.array(values, np.int64) for part, values in some.items()}
