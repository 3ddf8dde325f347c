"""Read idx files, plain or gzipped: the pictures and labels of MNIST and of sets that replace it.

The format (LeCun, Cortes and Burges, "The MNIST database"): two zero bytes, the type (8: unsigned byte), the number of
dimensions, each size as a big-endian 32-bit integer, then the data.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.data.damage import damage_named


def find_idx(folder: Path, name: str) -> Path | None:
    """The idx file of that name in a folder, plain or gzipped; None if there is neither."""
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def read_idx_images(file: Path, height: int, width: int) -> Tensor:
    """Pictures, uint8 (N, 1, height, width), from an idx3-ubyte file, gzipped if its name ends with .gz.

    Raises ArgumentError if the file is damaged or holds anything else.
    """
    with damage_named(file):
        pictures = _read(file, dimensions=3)
        if len(pictures) < 1 or pictures.shape[1:] != (height, width):
            raise ValueError(f"pictures of sizes {list(pictures.shape)}, expected [N, {height}, {width}]")
        return torch.from_numpy(pictures.copy()).unsqueeze(1)


def read_idx_labels(file: Path, examples: int, classes: int) -> Tensor:
    """Labels 0 .. classes-1, int64 (examples,), from an idx1-ubyte file, gzipped if its name ends with .gz.

    Raises ArgumentError if the file is damaged or holds another number of labels or a label out of range.
    """
    with damage_named(file):
        labels = _read(file, dimensions=1)
        if len(labels) != examples:
            raise ValueError(f"{len(labels)} labels for {examples} pictures")
        if (labels >= classes).any():
            i = int((labels >= classes).argmax())
            raise ValueError(f"example {i} has label {labels[i]}, expected 0 .. {classes - 1}")
        return torch.from_numpy(labels.astype(np.int64))


def _read(file: Path, dimensions: int) -> np.ndarray:
    raw = file.read_bytes()
    raw = gzip.decompress(raw) if file.suffix == ".gz" else raw
    if raw[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"starts with {raw[:4].hex()}, expected 000008{dimensions:02}")
    start = 4 + 4 * dimensions
    sizes = np.frombuffer(raw, ">u4", count=dimensions, offset=4).tolist()
    if len(raw) - start != math.prod(sizes):
        raise ValueError(f"{len(raw) - start} bytes of data, expected {math.prod(sizes)} for the sizes {sizes}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(sizes)
