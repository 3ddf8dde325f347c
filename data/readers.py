"""Read a user's pictures, uint8 (N, channels, height, width).

A file may be truncated, damaged or hostile. This raises a ValueError of one line that names the file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from scorefield.data.damage import damage_named

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
EAGER_BYTES = 2 * 2**30  # decoded pictures up to this size are held in memory


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is hidden, such as the ._00.png of macOS and .ipynb_checkpoints."""
    return name.startswith(".")


def find_pictures(folder: Path) -> list[Path]:
    """Every picture below a folder, recognised by its suffix, in sorted order; without hidden files and folders."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
    depth = len(folder.parts)
    return sorted(file for file in files if not any(map(is_hidden, file.parts[depth:])) and file.is_file())


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
        with damage_named(file, self.argument), Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):  # conversion would clip these to white
                raise ValueError(f"mode {opened.mode} has over 8 bits a channel")
            picture = ImageOps.exif_transpose(opened).convert("RGB" if self.channels == 3 else "L")
            picture = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.LANCZOS)
            return channels_first(picture)


def channels_first(picture: Image.Image) -> Tensor:
    """uint8 (channels, height, width)."""
    pixels = np.array(picture).reshape(picture.height, picture.width, -1)
    return torch.from_numpy(pixels).permute(2, 0, 1)
