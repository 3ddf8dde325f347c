"""Decode pictures to uint8 (N, channels, height, width), with nothing clipped, hidden or revealed on the way.

    transparency   composited over a background before the picture is resized, so hidden colours show nowhere:
                   (a c + (255 - a) background) / 255, rounded, in the picture's own values; gamma is left alone
    16 bits        the high byte of each channel, within one level of v / 257. An 8-bit picture that was stored in 16 bits
                   comes back as it was. Fewer bits stored in 16, such as the 12 of many cameras, come back dark: `Seen.said`
    CMYK           (1 - C)(1 - K); in a JPEG the four channels are inverted, as Adobe's programs write them
    frames, pages  the first one

Floats and 32-bit integers have no white of their own, so they are refused. A file may be truncated, damaged or hostile;
this raises an ArgumentError of one line that names the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from scorefield.data.damage import damage_named
from scorefield.numerics.errors import ArgumentError

EAGER_BYTES = 2 * 2**30  # decoded pictures up to this size are held in memory
# What picture_files.py tells by content; no other parser of Pillow's is run.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP")
_BITS, _PHOTOMETRIC = 258, 262      # tags of TIFF

Colour = tuple[int, int, int]
WHITE = (255, 255, 255)


def colour_of(text: str, argument: str = "data.background") -> Colour:
    """The (red, green, blue), 0 .. 255, of a colour such as "white" or "#ff8000"; ArgumentError for any other text."""
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
        if len(ImageColor.getrgb(text)) == 3:
            return red, green, blue
    except (ValueError, AttributeError):
        pass
    raise ArgumentError(f"{argument}={text!r} must be a colour such as white, black or #rrggbb", argument)


@dataclass(frozen=True)
class Form:
    """What every picture of a set is made into: a square of `size` pixels with 1 (grey) or 3 (RGB) channels.

    size  None leaves the picture's own size
    """

    size: int | None
    channels: int
    background: Colour = WHITE


def open_pictures(files: Sequence[Path], form: Form, argument: str = "data.path"
                  ) -> tuple[Tensor | PictureFiles, Seen | None]:
    """All pictures, decoded now, which also finds broken ones; decoded on access if they would fill the memory.

    Returns what was seen of their files, too; None where that is not known yet.
    """
    assert form.size is not None
    pictures = PictureFiles(files, form, argument)
    if len(files) * form.channels * form.size**2 > EAGER_BYTES:
        return pictures, None
    return pictures[torch.arange(len(files))], Seen(len(pictures.longer), len(pictures.deep),
                                                    max(pictures.deep.values(), default=0))


@dataclass(frozen=True)
class Seen:
    """What decoding found in the files of a set, and the pictures do not show.

    longer  how many have more frames or pages than the one that is read
    deep    how many have 16 bits a channel; `top` is the largest level, of 255, that these became
    """

    longer: int = 0
    deep: int = 0
    top: int = 0

    def __add__(self, other: Seen) -> Seen:
        return Seen(self.longer + other.longer, self.deep + other.deep, max(self.top, other.top))

    def said(self) -> tuple[str, ...]:
        """Lines for the user, if there is something to say."""
        lines = []
        if self.longer:
            lines.append(f"of {self.longer:,} of the pictures, which have several frames or pages, the first is taken")
        if self.deep and self.top < 128:
            lines.append(f"the largest level of the {self.deep:,} pictures of 16 bits is {self.top} of 255; if they use "
                         "fewer bits, such as 12, stretch them to 0 .. 65535 first")
        return tuple(lines)


class PictureFiles:
    """Picture files that are decoded when indexed: [int64 indices (B,)] -> uint8 (B, channels, size, size).

    Each picture is turned upright (EXIF), made RGB or grey without transparency, cropped to its central square, and resized
    with Lanczos's filter, antialiased. A square of that size stays unchanged.
    Raises ArgumentError for a picture that is broken, larger than Pillow's limit, or in floats or 32-bit integers. It names
    the file and `argument`, with which the user gave the path. Of what was decoded, `longer` are those with more frames,
    and `deep` has the largest level of each with 16 bits.
    """

    def __init__(self, files: Sequence[Path], form: Form, argument: str = "data.path"):
        self.files, self.form, self.argument = files, form, argument
        self.longer: set[int] = set()
        self.deep: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        size = self.form.size
        assert size is not None
        pictures = torch.empty(len(index), self.form.channels, size, size, dtype=torch.uint8)

        def fill(row: int, i: int) -> None:
            pictures[row], longer, deep = self._decode(self.files[i])
            if longer:
                self.longer.add(i)
            if deep:
                self.deep[i] = int(pictures[row].max())

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside Python's lock
            list(pool.map(fill, range(len(index)), index.tolist()))  # list: raises the first error
        return pictures

    def _decode(self, file: Path) -> tuple[Tensor, bool, bool]:
        with damage_named(file, self.argument), open_picture(file) as opened:
            deep = is_deep(opened)      # only the header says so
            return decode(opened, self.form), _has_more(opened), deep


def open_picture(file: Path | IO[bytes]) -> Image.Image:
    """A picture of one of FORMATS, of which only the header is read."""
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def decode(opened: Image.Image, form: Form) -> Tensor:
    """uint8 (channels, height, width): the first frame of a picture in that form. ValueError if it has no such form."""
    facts = _Facts.of(opened)
    picture = _opaque(ImageOps.exif_transpose(opened), facts, form.background).convert("RGB" if form.channels == 3 else "L")
    if form.size is not None:
        picture = ImageOps.fit(picture, (form.size, form.size), Image.Resampling.LANCZOS)
    pixels = np.array(picture).reshape(picture.height, picture.width, -1)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def said_of_files(seen: Sequence[Seen | None], formats: Mapping[str, int]) -> tuple[str, ...]:
    """Lines on what was seen of the files of each split, or may be in them where that is not known yet.

    formats  how many files have each format
    """
    known = [each for each in seen if each is not None]
    if len(known) == len(seen):
        return sum(known, Seen()).said()
    able = sum(formats.get(name, 0) for name in ("GIF", "TIFF"))
    return (f"of the {able:,} GIF and TIFF files, which may have several frames, the first is taken",) if able else ()


def is_grey(opened: Image.Image) -> bool:
    """Whether a picture has one channel of colour."""
    return opened.mode in ("1", "L", "LA", "La") or opened.mode.startswith("I")


def is_deep(opened: Image.Image) -> bool:
    """Whether a picture that is not decoded yet has 16 bits a channel."""
    return _Facts.of(opened).bits == 16


def _has_more(opened: Image.Image) -> bool:
    """Whether a picture has several frames or pages. The previews behind a camera's JPEG (MPO) are none."""
    return opened.format != "MPO" and bool(getattr(opened, "is_animated", False))


@dataclass(frozen=True)
class _Facts:
    """What only the file knows, and a copy of the picture does not: `bits` of a channel, and whether 0 is white there."""

    format: str
    bits: int
    white_is_zero: bool

    @classmethod
    def of(cls, opened: Image.Image) -> _Facts:
        tags, tiles = getattr(opened, "tag_v2", {}), getattr(opened, "tile", [])
        found = re.search(r"[A-Z];(\d+)", str(tiles[0][3]) if tiles else "")      # as in RGB;16B, for the decoder
        bits = tags[_BITS][0] if _BITS in tags else int(found[1]) if found else 8
        return cls(opened.format or "", 16 if bits == 8 and opened.mode.startswith("I") else bits,
                   tags.get(_PHOTOMETRIC) == 0)


def _opaque(picture: Image.Image, facts: _Facts, background: Colour) -> Image.Image:
    """The picture in 8 bits a channel, over the background where it is transparent."""
    if picture.mode.startswith("F"):
        raise ValueError("its pixels are floats, whose white is not known; store integers of 8 or 16 bits")
    if picture.mode.startswith("I"):
        return _from_16_bits(picture, facts, background)
    if not picture.has_transparency_data:
        return picture
    key = picture.info.get("transparency")
    if picture.mode == "RGB" and facts.bits == 16 and key is not None:
        raise ValueError("it has 16 bits and a transparent colour, of which 8 bits are not enough; store an alpha channel")
    if picture.mode == "L" and facts.bits < 8 and isinstance(key, int):
        picture.info["transparency"] = key * 255 // (2**facts.bits - 1)      # Pillow stretches the pixels and not the key
    shades = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
    alpha = shades.getchannel("A")
    return picture if alpha.getextrema()[0] == 255 else _over(shades.convert("RGB"), alpha, background)


def _from_16_bits(picture: Image.Image, facts: _Facts, background: Colour) -> Image.Image:
    if picture.mode == "I" and facts.format not in ("PNG", "PPM"):      # these two have 16 bits
        raise ValueError("its pixels are 32-bit or signed integers, whose white is not known; store 8 or 16 bits")
    values = np.array(picture).astype(np.int64)
    levels = (values >> (facts.bits - 8)).astype(np.uint8)
    grey = Image.fromarray(255 - levels if facts.white_is_zero else levels)
    key = picture.info.get("transparency")
    if not isinstance(key, int):
        return grey
    return _over(grey.convert("RGB"), Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)), background)


def _over(shades: Image.Image, alpha: Image.Image, background: Colour) -> Image.Image:
    ground = Image.new("RGB", shades.size, background)
    ground.paste(shades, mask=alpha)
    return ground
