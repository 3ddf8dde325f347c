"""Samples as small PNG pictures: tiles of images, points over the data's, lines of series.

A page holds one for each sampler and budget, so size counts: grey and small palettes where they are exact, fewer tiles and
palettes of 256 colours where pictures are large (`fitting`).
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from scorefield.data import Codec
from scorefield.evaluation.page import svg

if TYPE_CHECKING:
    from PIL import Image

LARGEST_SIDE = 96                                    # pixels; larger images are shown smaller
TILES = (64, 49, 36, 25, 16, 9, 4, 1)
PLANE, DOT = 560, 1.7                                # sides of a picture of points, and the radius of one, in pixels
TEXT = 15                                            # size of their numbers
ALIKE = 3.0                                          # ratio of widths up to which both axes have equal units
GREY, BLUE, RED, INK = (128, 132, 138), (40, 108, 214), (196, 78, 20), (110, 114, 120)      # seen on white and on black


def png(picture: Image.Image) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return file.getvalue()


def data_uri(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


def renderer(codec: Codec, shape: Sequence[int], data: Tensor, columns: int | None = None) -> Tiles | Plane | Lines:
    """The way to draw samples of data of this shape; `data` (n, *event) are training examples as the model sees them.
    Pictures are laid out in `columns`, by default as many as make a square.

    What it returns makes one picture of samples (n, *event) as a model sees them. `pixels` says to enlarge it without
    smoothing, and `text` is the word for several of what it shows.
    """
    if len(shape) == 3:
        return Tiles(codec, *limits(codec, data), columns)
    if len(shape) == 1:
        return Plane.around(codec, data)
    return Lines(codec, *limits(codec, data))


def limits(codec: Codec, data: Tensor) -> tuple[float, float]:
    """The values that are black and white, or the bottom and the top of a series."""
    if codec.levels is not None:
        return 0.0, codec.levels - 1.0
    values = codec.decode(data).double().flatten()
    low, high = (float(v) for v in torch.quantile(values[:1_000_000], torch.tensor([0.001, 0.999], dtype=torch.float64)))
    return low, high if high > low else low + 1.0


@dataclass(frozen=True)
class Tiles:
    """Images (n, channels, height, width) in rows of `columns`, by default as many as make a square, a pixel apart."""

    codec: Codec
    low: float
    high: float
    columns: int | None = None
    pixels: ClassVar[bool] = True
    text: ClassVar[str] = "samples"

    def __call__(self, x: Tensor, tiles: int, palette: bool) -> Image.Image:
        from PIL import Image

        grey = (self.codec.decode(x[:tiles]).double() - self.low) / (self.high - self.low)
        images = (grey.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        n, channels, height, width = images.shape
        factor = max(1, math.ceil(max(height, width) / LARGEST_SIDE))
        columns = self.columns or math.ceil(math.sqrt(n * height / width))
        rows = math.ceil(n / columns)
        mode = "L" if channels == 1 else "RGB"
        h, w = height // factor, width // factor
        sheet = Image.new(mode, (columns * (w + 1) - 1, rows * (h + 1) - 1), 128 if mode == "L" else (128,) * 3)
        for i, image in enumerate(images):
            tile = image[0] if mode == "L" else np.moveaxis(np.resize(image, (3, height, width)), 0, 2)
            place = (i % columns * (w + 1), i // columns * (h + 1))
            sheet.paste(Image.fromarray(tile).resize((w, h), Image.Resampling.BOX), place)
        return sheet.quantize(256) if palette and mode == "RGB" else sheet


Reach = tuple[float, float, float, float]      # left, right, bottom, top


def window(low: np.ndarray, high: np.ndarray, share: float) -> Reach:
    """A window about what lies between low and high (2,), wider by `share` on each side.

    The units of both axes are equal unless the widths differ by more than ALIKE; then each axis has its own.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    if half.max() <= ALIKE * half.min():
        half = np.full(2, half.max())
    half = np.where(half > 0, half * (1 + 2 * share), 1.0)
    left, bottom = (middle - half).tolist()
    right, top = (middle + half).tolist()
    return left, right, bottom, top


def scales(codec: Codec, reach: Reach, dimensions: int) -> tuple[Sequence[svg.Tick], Sequence[svg.Tick]]:
    """The ticks of both axes of a window on points as a model sees them, in the units of the data; none for one axis that
    does not exist.
    """
    ends = torch.zeros(2, dimensions, dtype=torch.float64)
    for axis in range(min(2, dimensions)):
        ends[:, axis] = torch.tensor(reach[2 * axis:2 * axis + 2], dtype=torch.float64)
    values = codec.decode(ends).double()
    x, y = (svg.ticks_of(*values[:, axis].tolist()) if axis < dimensions else [] for axis in (0, 1))
    return x, y


@dataclass(frozen=True)
class Plane:
    """The first two coordinates of points: in colour, over the data's in grey. All are as the model sees them, so columns of
    any scale have room; the ticks at the edges are in the units of the data.
    """

    codec: Codec
    reach: Reach
    behind: np.ndarray
    ticks: tuple[Sequence[svg.Tick], Sequence[svg.Tick]] = ((), ())
    pixels: ClassVar[bool] = False
    text: ClassVar[str] = "points"

    @classmethod
    def around(cls, codec: Codec, data: Tensor) -> Plane:
        """The window that holds nearly all of the data."""
        points = _in_plane(data)
        reach = window(np.quantile(points, 0.002, axis=0), np.quantile(points, 0.998, axis=0), 0.12)
        return cls(codec, reach, points, scales(codec, reach, data[0].numel()))

    def outside(self, x: Tensor) -> int:
        """How many points the window does not show."""
        p, (left, right, bottom, top) = _in_plane(x), self.reach
        return int(((p[:, 0] < left) | (p[:, 0] > right) | (p[:, 1] < bottom) | (p[:, 1] > top)).sum())

    def __call__(self, x: Tensor, tiles: int = 0, palette: bool = True) -> Image.Image:
        from PIL import Image

        canvas = np.zeros((PLANE, PLANE), np.uint8)
        self._dots(canvas, self.behind, 1)
        self._dots(canvas, _in_plane(x), 2)
        picture = Image.fromarray(canvas)
        picture.putpalette([*(0, 0, 0), *GREY, *BLUE, *RED, *INK])
        picture.info["transparency"] = bytes([0, 120, 255, 255, 255])
        self.mark(picture, 4)
        return picture

    def mark(self, picture: Image.Image, colour: int) -> None:
        """Draw the ticks at the left and the lower edge of a picture of the window."""
        from PIL import ImageDraw, ImageFont

        draw, (width, height) = ImageDraw.Draw(picture), picture.size
        draw.fontmode = "1"      # a palette has no shades
        font = ImageFont.load_default(TEXT)
        for share, text in self.ticks[0]:
            draw.line([(share * width, height), (share * width, height - 5)], fill=colour)
            draw.text((share * width, height - 6), text, fill=colour, font=font, anchor="md")
        for share, text in self.ticks[1]:
            draw.line([(0, (1 - share) * height), (5, (1 - share) * height)], fill=colour)
            draw.text((7, (1 - share) * height), text, fill=colour, font=font, anchor="lm")

    def _dots(self, canvas: np.ndarray, points: np.ndarray, value: int) -> None:
        left, right, bottom, top = self.reach
        places = np.stack([(top - points[:, 1]) / (top - bottom), (points[:, 0] - left) / (right - left)], 1) * PLANE
        near = math.ceil(DOT)
        for down in range(-near, near + 1):
            for along in range(-near, near + 1):
                if math.hypot(down, along) <= DOT:
                    at = np.floor(places[np.isfinite(places).all(1)] + (down, along)).astype(np.int64)
                    inside = ((at >= 0) & (at < PLANE)).all(1)
                    canvas[at[inside, 0], at[inside, 1]] = value


def _in_plane(points: Tensor) -> np.ndarray:
    """The first two coordinates, float64 (n, 2); of numbers, the number and nothing."""
    flat = points.detach().cpu().double().flatten(1).numpy()
    return flat[:, :2] if flat.shape[1] > 1 else np.concatenate([flat, np.zeros_like(flat)], 1)


@dataclass(frozen=True)
class Lines:
    """Series (n, channels, length), each in a tile, a line for each channel."""

    codec: Codec
    low: float
    high: float
    pixels: ClassVar[bool] = False
    text: ClassVar[str] = "series"

    def __call__(self, x: Tensor, tiles: int, palette: bool) -> Image.Image:
        from PIL import Image, ImageDraw

        series = self.codec.decode(x[:min(tiles, 36)]).double().numpy()
        n, _, length = series.shape
        columns = math.ceil(math.sqrt(n))
        rows, wide, high = math.ceil(n / columns), max(96, PLANE // columns), max(64, PLANE // columns * 2 // 3)
        canvas = Image.new("P", (columns * wide, rows * high), 0)
        canvas.putpalette([*(0, 0, 0), *GREY, *BLUE, *RED])
        canvas.info["transparency"] = bytes([0, 140, 255, 255])
        draw = ImageDraw.Draw(canvas)
        for i, own in enumerate(series):
            left, top = i % columns * wide, i // columns * high
            draw.rectangle((left + 2, top + 2, left + wide - 3, top + high - 3), outline=1)
            across = left + 5 + np.arange(length) / max(1, length - 1) * (wide - 10)
            for k, line in enumerate(own):
                down = top + high - 6 - np.clip((line - self.low) / (self.high - self.low), 0, 1) * (high - 12)
                draw.line(list(zip(across.tolist(), down.tolist(), strict=True)), fill=2 + k % 2, width=2)
        return canvas


def fitting(make: Callable[[int, bool], list[bytes]], most: int, tiles: int) -> tuple[list[bytes], int]:
    """The files that `make` gives for a number of tiles and with or without a palette, at most `most` bytes together as
    data URIs: as many tiles as fit, at most `tiles`. And that number.
    """
    files, number = [], 1
    for number in [n for n in TILES if n <= tiles] or [1]:
        for palette in (False, True):
            files = make(number, palette)
            if sum(map(len, files)) * 4 / 3 <= most:
                return files, number
    return files, number


def heat(values: Tensor) -> Image.Image:
    """Values (height, width) in [0, 1] as a picture: transparent blue to full."""
    from PIL import Image

    picture = Image.fromarray((values.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    picture.putpalette([c for _ in range(256) for c in BLUE])
    picture.info["transparency"] = bytes(range(256))
    return picture


Renderer = Tiles | Plane | Lines
