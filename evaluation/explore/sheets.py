"""Labelled sheets of examples, rows by columns, as pictures (3, height, width), and films as GIF.

A cell of a sheet is one picture (C, H, W), one series (C, L), or a set of points (n, D). Pictures are shown pixel by pixel,
enlarged by a whole factor; points by their first two coordinates, of one coordinate as a histogram.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.data import Codec
from scorefield.evaluation import plots
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import write_atomically

DPI, FONT = 100, 8
TILE = 48               # pixels; smaller pictures are enlarged by a whole factor to at least this
GAP = 3                 # pixels between pictures
LARGEST = 2**26         # pixels of a sheet
PANEL = 1.7             # inches of a panel of points; series are lower
MOST_POINTS = 4000      # of one panel
FEW = 100               # points that are shown larger


@dataclass(frozen=True)
class Looks:
    """How examples of one kind look: of pictures the values of black and white, of others those at the ends of the axes.

    shape   of an example, as data
    levels  of pictures that have some
    low, high  of pictures without levels, numbers; of series, numbers; of points, (2,)
    """

    shape: tuple[int, ...]
    levels: int | None
    low: Any
    high: Any

    @classmethod
    def of(cls, codec: Codec, shape: Sequence[int], like: Tensor) -> Looks:
        """The looks of data like these examples (N, *shape), as data."""
        if codec.levels is not None:
            return cls(tuple(shape), codec.levels, 0, codec.levels - 1)
        rows = like[:max(1, 2**20 // like[0].numel())].double()
        if len(shape) == 1:
            low, high = rows[:, :2].min(0).values, rows[:, :2].max(0).values
            half = torch.where(high > low, 0.75 * (high - low), torch.ones_like(low))
            if len(half) == 2 and half.max() <= plots.ALIKE * half.min():
                half = half.max().expand(2)      # equal units, so that panels are square
            return cls(tuple(shape), None, (low + high) / 2 - half, (low + high) / 2 + half)
        ends = np.quantile(rows.numpy(), [0.001, 0.999] if len(shape) == 3 else [0.0, 1.0])
        margin = 0.0 if len(shape) == 3 else 0.25 * float(ends[1] - ends[0])
        return cls(tuple(shape), None, float(ends[0]) - margin, float(ends[1]) + margin)

    @property
    def of_points(self) -> bool:
        return len(self.shape) == 1


def as_data(codec: Codec, x: Tensor, dims: int, width: float = 1.0) -> Tensor:
    """x (..., *event) over `width` as data, (..., *shape), on the CPU; an event has `dims` dimensions."""
    x = x.detach() / width
    lead = x.shape[:x.ndim - dims]
    data = codec.decode(x.reshape(-1, *x.shape[x.ndim - dims:])).cpu()
    return data.reshape(*lead, *data.shape[1:])


def sheet(cells: Sequence[Sequence[Tensor | None]], looks: Looks, rows: Sequence[str] = (), columns: Sequence[str] = (),
          title: str = "", behind: Tensor | None = None) -> Tensor:
    """Cells as data, None being left empty, with labels beside the rows and above the columns.

    behind  points (n, D) in grey below each set of points

    Raises ArgumentError for more pixels than a picture should have.
    """
    if len(looks.shape) == 3:
        return _pictures(cells, looks, rows, columns, title)
    return _panels(cells, looks, rows, columns, title, behind)


def _figure(width: float, height: float, layout: Any = None) -> Any:
    """A figure of so many inches with its own canvas, so other users of matplotlib notice nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _pictures(cells: Sequence[Sequence[Tensor | None]], looks: Looks, rows: Sequence[str], columns: Sequence[str],
              title: str) -> Tensor:
    """Pictures pixel by pixel in a figure that is exactly as large as they and their labels need."""
    _, h, w = looks.shape
    factor = max(1, math.ceil(TILE / max(h, w)))
    tall, wide = len(cells), max(map(len, cells))
    height, width = tall * (h * factor + GAP) + GAP, wide * (w * factor + GAP) + GAP
    if height * width > LARGEST:
        raise ArgumentError(f"a sheet of {tall} x {wide} pictures of {h} x {w} has {height * width} pixels, more than "
                            f"{LARGEST}; ask for fewer", "num_samples", "frames")
    grid = torch.full((3, height, width), 255, dtype=torch.uint8)
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            if cell is not None:
                top, left = GAP + i * (h * factor + GAP), GAP + j * (w * factor + GAP)
                tile = _bytes(cell, looks).repeat_interleave(factor, 1).repeat_interleave(factor, 2)
                grid[:, top:top + h * factor, left:left + w * factor] = tile
    longest = max((len(line) for name in rows for line in name.split("\n")), default=0)
    steep = any(len(name) * 6 > w * factor + GAP for name in columns)      # labels that need more room than a tile
    left, top = 10 + 6 * longest, 8 + (16 if columns else 0) + 18 * bool(title)
    top += 6 * max((len(name) for name in columns), default=0) - 10 if steep else 0
    full_width = max(left + width + 10, 16 + 6.2 * len(title))
    full_height = top + height + 6
    figure = _figure(full_width / DPI, full_height / DPI)
    axis = figure.add_axes((left / full_width, 6 / full_height, width / full_width, height / full_height))
    axis.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
    across, down = w * factor + GAP, h * factor + GAP
    axis.set_xticks([GAP / 2 + across * (j + 0.5) for j in range(len(columns))], columns, fontsize=FONT,
                    rotation=90 if steep else 0)
    axis.set_yticks([GAP / 2 + down * (i + 0.5) for i in range(len(rows))], rows, fontsize=FONT)
    axis.tick_params(length=0, pad=2, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    _title(figure, title, full_height)
    return plots.render(figure)


def _title(figure: Any, title: str, height: float) -> None:
    if title:
        figure.text(0.5, 1 - 5 / height, title, ha="center", va="top", fontsize=FONT + 1)


def _bytes(cell: Tensor, looks: Looks) -> Tensor:
    """A picture (C, H, W) as uint8 (3, H, W); of other numbers of channels than 1 and 3, the first."""
    cell = cell if len(cell) in (1, 3) else cell[:3 if len(cell) > 3 else 1]
    if looks.levels is not None:
        return plots.to_bytes(cell, looks.levels).expand(3, -1, -1)
    scale = 255 / max(looks.high - looks.low, 1e-300)
    return ((cell.double() - looks.low) * scale).round().clamp(0, 255).to(torch.uint8).expand(3, -1, -1)


def _panels(cells: Sequence[Sequence[Tensor | None]], looks: Looks, rows: Sequence[str], columns: Sequence[str], title: str,
            behind: Tensor | None) -> Tensor:
    """A panel for each cell, all with the same axes."""
    tall, wide = len(cells), max(map(len, cells))
    height = PANEL if looks.of_points else 0.7 * PANEL
    figure = _figure(PANEL * wide + 0.5, height * tall + 0.5 + 0.2 * bool(title), layout="constrained")
    axes = figure.subplots(tall, wide, squeeze=False, sharex=True, sharey=True)
    for i, row in enumerate(cells):
        for j in range(wide):
            axis = axes[i, j]
            cell = row[j] if j < len(row) else None
            if cell is None:
                axis.set_axis_off()
                continue
            paint(axis, cell, looks, behind)
            if i == 0 and j < len(columns):
                axis.set_title(columns[j], fontsize=FONT + 1)
            if j == 0 and i < len(rows):
                axis.set_ylabel(rows[i], fontsize=FONT + 1)
    if title:
        figure.suptitle(title, fontsize=FONT + 2)
    return plots.render(figure)


def paint(axis: Any, cell: Tensor, looks: Looks, behind: Tensor | None = None, colour: str = "tab:red") -> None:
    """Draw a set of points or a series on axes of matplotlib."""
    axis.tick_params(labelsize=FONT - 2)
    if not looks.of_points:
        for j, channel in enumerate(cell[:6]):
            axis.plot(channel.numpy(), lw=0.8, c=f"C{j}")
        axis.set_ylim(looks.low, looks.high)
        return
    low, high = looks.low.tolist(), looks.high.tolist()
    if len(low) == 1:
        bins = np.linspace(low[0], high[0], 41)
        if behind is not None:
            axis.hist(behind[:, 0].numpy(), bins, density=True, color="0.8")
        axis.hist(cell[:, 0].numpy(), bins, density=True, histtype="step", color=colour)
        return
    if behind is not None:
        axis.scatter(*behind[:MOST_POINTS, :2].T.numpy(), s=1, c="0.8", linewidths=0, rasterized=True)
    axis.scatter(*cell[:MOST_POINTS, :2].T.numpy(), s=2 if len(cell) > FEW else 9, c=colour, linewidths=0, rasterized=True)
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    if max(high[0] - low[0], high[1] - low[1]) <= plots.ALIKE * min(high[0] - low[0], high[1] - low[1]):
        axis.set_aspect("equal")


def save_gif(path: Path, frames: Sequence[Tensor], milliseconds: int = 150, hold: int = 1500) -> None:
    """Write pictures (3, height, width) of one size as a film that repeats, whole or not at all; the last is held longer."""
    from PIL import Image

    images = [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).quantize(256, dither=Image.Dither.NONE)
              for frame in frames]
    content = io.BytesIO()
    images[0].save(content, "GIF", save_all=True, append_images=images[1:], loop=0,
                   duration=[milliseconds] * (len(images) - 1) + [hold])
    write_atomically(path, lambda file: file.write(content.getvalue()))


def time_names(times: Sequence[float], prefix: bool = True) -> list[str]:
    """Labels of columns: t = 0.5 where there is room, else 0.5."""
    return [f"t = {t:.3g}" if prefix else f"{t:.2g}" for t in times]
