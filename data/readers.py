"""Read pictures on disk to uint8 tensors (N, channels, height, width): CIFAR-10 batches, idx files, image files.

A file may be truncated, damaged or hostile. This raises a ValueError of one line that names the file.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from scorefield.numerics.errors import ArgumentError, MissingFileError

CIFAR10_FOLDER, CIFAR10_ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
EAGER_BYTES = 2 * 2**30  # decoded pictures up to this size are held in memory
_CIFAR10_BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


@contextmanager
def named_argument(argument: str) -> Iterator[None]:
    """In this context, a ValueError that names no argument becomes an ArgumentError that names this one."""
    try:
        yield
    except ArgumentError:
        raise
    except ValueError as error:
        raise ArgumentError(str(error), argument) from error


@contextmanager
def _damage_named(file: Path, argument: str = "data.path") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the parsers of damaged input raise errors of every type
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own error, such as no permission
        raise ArgumentError(f"{argument}: {file} is damaged or not usable ({_line(error)})", argument) from error


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def find_cifar10(path: Path) -> Path | None:
    """The folder of batches or the archive, which is `path` itself or in it; None if there is neither."""
    if path.is_file() or any((path / name).exists() for name in _CIFAR10_BATCHES):
        return path
    return next((path / name for name in (CIFAR10_FOLDER, CIFAR10_ARCHIVE) if (path / name).exists()), None)


def read_cifar10(path: Path) -> tuple[Tensor, Tensor]:
    """Train and test pictures (N, 3, 32, 32) from the path that `find_cifar10` returns. Labels are not read.

    Raises FileNotFoundError if a batch is missing, ValueError if one is damaged or would run code.
    """
    if path.is_file():
        batches = {}
        with _damage_named(path), gzip.open(path) as stream, tarfile.open(fileobj=stream) as archive:
            for member in archive:
                name = Path(member.name).name
                file = archive.extractfile(member) if name in _CIFAR10_BATCHES else None
                if file is not None:
                    batches[name] = file.read()
            while stream.read(2**20):  # on to the checksum at the end
                pass
    else:
        batches = {name: (path / name).read_bytes() for name in _CIFAR10_BATCHES if (path / name).is_file()}
    missing = [name for name in _CIFAR10_BATCHES if name not in batches]
    if missing:
        raise MissingFileError(f"data.path: {path} lacks {', '.join(missing)} of {CIFAR10_ARCHIVE}", "data.path")
    *train, test = (_unpickle_cifar10(batches[name], path / name) for name in _CIFAR10_BATCHES)
    return torch.cat(train), test


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


def _unpickle_cifar10(raw: bytes, file: Path) -> Tensor:
    with _damage_named(file):
        array = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()[b"data"]
        _, shape, dtype, fortran_order, content = array.state
        code = dtype.arguments[0]
        if code not in ("u1", b"u1") or fortran_order or shape[0] < 1 or shape[1:] != (3072,):
            raise ValueError(f"array of type {code!r} and shape {shape}, expected 'u1' and (N, 3072)")
        return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape[0], 3, 32, 32).copy())


def download_cifar10() -> tuple[Tensor, Tensor]:
    """Train and test pictures (N, 3, 32, 32) through Hugging Face's `datasets`, which keeps its own cache.

    Raises OSError if that package is not installed or the download fails.
    """
    by_hand = f"or fetch {CIFAR10_ARCHIVE} by hand and set data.path to that file"
    try:
        import datasets  # optional, and slow to import
    except ImportError as error:
        raise OSError(f"CIFAR-10 is not on this machine: pip install 'scorefield[datasets]' to download it, {by_hand}"
                      ) from error
    try:
        splits = [datasets.load_dataset("uoft-cs/cifar10", split=split) for split in ("train", "test")]
        train, test = ([_channels_first(row["img"].convert("RGB")) for row in rows] for rows in splits)
    except Exception as error:  # the package lets the errors of several network libraries through
        raise OSError(f"the download of CIFAR-10 failed ({_line(error)}): try again, {by_hand}") from error
    return torch.stack(train), torch.stack(test)


def _channels_first(picture: Image.Image) -> Tensor:
    pixels = np.array(picture).reshape(picture.height, picture.width, -1)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def find_idx(folder: Path, name: str) -> Path | None:
    """The idx file of that name in a folder, plain or gzipped; None if there is neither."""
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def read_idx_images(file: Path, height: int, width: int) -> Tensor:
    """Pictures (N, 1, height, width) from an idx3-ubyte file, gzipped if its name ends with .gz.

    The format (LeCun, Cortes and Burges, "The MNIST database"): two zero bytes, the type (8: unsigned byte),
    the number of dimensions, each size as a big-endian 32-bit integer, then the data.
    """
    raw = file.read_bytes()
    with _damage_named(file):
        raw = gzip.decompress(raw) if file.suffix == ".gz" else raw
        if raw[:4] != b"\0\0\x08\x03":
            raise ValueError(f"starts with {raw[:4].hex()}, expected 00000803")
        sizes = np.frombuffer(raw, ">u4", count=3, offset=4).tolist()
        if sizes[0] < 1 or sizes[1:] != [height, width]:
            raise ValueError(f"pictures of sizes {sizes}, expected [N, {height}, {width}]")
        pictures = np.frombuffer(raw, np.uint8, offset=16).reshape(sizes)  # raises for another length
        return torch.from_numpy(pictures.copy()).unsqueeze(1)


def find_pictures(folder: Path) -> list[Path]:
    """Every picture below a folder, recognised by its suffix, in sorted order; hidden files are left out."""
    files = (f for f in folder.rglob("*") if f.suffix.lower() in PICTURE_SUFFIXES)
    return sorted(f for f in files if not f.name.startswith(".") and f.is_file())


def open_pictures(files: Sequence[Path], size: int, channels: int,
                  argument: str = "data.path") -> Tensor | PictureFiles:
    """All pictures, decoded now, which also finds broken ones; decoded on access if they would fill the memory."""
    pictures = PictureFiles(files, size, channels, argument)
    fits = len(files) * channels * size**2 <= EAGER_BYTES
    return pictures[torch.arange(len(files))] if fits else pictures


class PictureFiles:
    """Picture files that are decoded when indexed: [int64 indices (B,)] -> uint8 (B, channels, size, size).

    Each picture is turned upright (EXIF), made RGB or grey without transparency, cropped to its central square, and resized
    with Lanczos's filter, antialiased. A square of that size stays unchanged.
    Raises ValueError for a picture that is broken, larger than Pillow's limit, or grey with over 8 bits. It names the file
    and `argument`, with which the user gave the path.
    """

    def __init__(self, files: Sequence[Path], size: int, channels: int, argument: str = "data.path"):
        self.files, self.size, self.channels, self.argument = files, size, channels, argument

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        pictures = torch.empty(len(index), self.channels, self.size, self.size, dtype=torch.uint8)

        def fill(row: int, i: int) -> None:
            pictures[row] = self._decode(self.files[i])

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside Python's lock
            list(pool.map(fill, range(len(index)), index.tolist()))  # list: raises the first error
        return pictures

    def _decode(self, file: Path) -> Tensor:
        with _damage_named(file, self.argument), Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):  # conversion would clip these to white
                raise ValueError(f"mode {opened.mode} has over 8 bits a channel")
            picture = ImageOps.exif_transpose(opened).convert("RGB" if self.channels == 3 else "L")
            picture = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.LANCZOS)
            return _channels_first(picture)


ARRAY_NAMES = ("x", "arr_0", "images")


def read_array(file: Path, argument: str = "path") -> np.ndarray:
    """The array of an .npy, or the only array of an .npz, or its first array with a name in ARRAY_NAMES.

    Raises ValueError for a file that is damaged or would run code, or whose arrays have other names.
    """
    with _damage_named(file, argument):
        loaded = np.load(file)
    if isinstance(loaded, np.ndarray):
        return loaded
    with _damage_named(file, argument), loaded as arrays:
        names = list(arrays.files)
        name = next((name for name in (*ARRAY_NAMES, *names[:1] * (len(names) == 1)) if name in names), None)
        if name is not None:
            return arrays[name]
    raise ArgumentError(f"{argument}: {file} holds the arrays {', '.join(names) or '(none)'}; give one of them the name "
                        f"{' or '.join(ARRAY_NAMES)}", argument)
