"""Pictures: grids of images, points over data, trajectories of points."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scorefield.numerics.files import write_atomically
from scorefield.numerics.text import printable

ALIKE = 3.0             # ratio of widths up to which both axes have equal units
SMALLEST_TILE = 40      # pixels; smaller images are enlarged by a whole factor to at least this


def image_grid(images: Tensor, levels: int, row: Tensor | None = None) -> Tensor:
    """Integer images (N, C, H, W) in 0 .. levels-1 as one uint8 picture (3, height, width).

    row  (N,), the row of each image; None: near-square, row by row

    Of other numbers of channels than 1 and 3, the first three are shown, or of two the first.
    """
    n, c, h, w = images.shape
    images = images[:, :3 if c > 2 else 1]
    if row is None:
        columns = math.ceil(math.sqrt(n))
        places = [divmod(i, columns) for i in range(n)]
    else:
        places = [(r, int((row[:i] == r).sum())) for i, r in enumerate(row.tolist())]
    rows, columns = (max(numbers) + 1 for numbers in zip(*places, strict=True))
    factor = max(1, math.ceil(SMALLEST_TILE / max(h, w)))
    tiles = to_bytes(images, levels).expand(n, 3, h, w).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    grid = torch.full((3, rows * (h * factor + 2) + 2, columns * (w * factor + 2) + 2), 128, dtype=torch.uint8)
    for (down, right), tile in zip(places, tiles, strict=True):
        top, left = 2 + down * (h * factor + 2), 2 + right * (w * factor + 2)
        grid[:, top:top + h * factor, left:left + w * factor] = tile
    return grid


def rows_of(label: Tensor | None) -> Tensor | None:
    """A row for each class that occurs, in the order in which they occur first."""
    if label is None:
        return None
    order = {y: row for row, y in enumerate(dict.fromkeys(label.tolist()))}
    return torch.tensor([order[y] for y in label.tolist()])


def to_bytes(images: Tensor, levels: int) -> Tensor:
    """Levels 0 .. levels-1 spread over 0 .. 255, uint8."""
    return images if levels == 256 else (images.float() * (255 / (levels - 1))).round().to(torch.uint8)


def save_png(path: Path, picture: Tensor) -> None:
    """Write a uint8 picture (3, height, width), whole or not at all."""
    write_atomically(path, lambda file: file.write(encode_png(picture)))


def encode_png(picture: Tensor) -> bytes:
    """The content of a .png of a uint8 picture (3, height, width), or a grey one (1, height, width)."""
    content = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).squeeze(-1).contiguous().numpy()).save(content, "PNG")
    return content.getvalue()


def points_over_data(samples: Tensor, data: Tensor | None = None, label: Tensor | None = None,
                     names: Sequence[str] = ()) -> Tensor:
    """Points (N, D), the first two coordinates, over the data's if given; a uint8 picture (3, height, width).

    label, names  (N,), the class of each point, and the names of the classes; the points then have a colour for each class
    """
    figure, axes = _figure(1)
    if data is not None:
        axes[0].scatter(*data[:, :2].T, s=3, c="0.75", label=f"data ({len(data)})", rasterized=True)
    if label is None:
        axes[0].scatter(*samples[:, :2].T, s=3, c="tab:red", label=f"samples ({len(samples)})", rasterized=True)
    for i, y in enumerate([] if label is None else label.unique().tolist()):
        own, name = samples[label == y], names[y] if y < len(names) else y
        axes[0].scatter(*own[:, :2].T, s=3, c=f"C{i % 10}", label=f"class {_text(name)} ({len(own)})", rasterized=True)
    axes[0].legend(loc="upper right", markerscale=3)
    shown = samples if data is None else data
    _equal(axes[0], float(shown[:, 0].max() - shown[:, 0].min()), float(shown[:, 1].max() - shown[:, 1].min()))
    return render(figure)


def trajectory_panels(trajectory: Tensor, times: Sequence[float], panels: int = 5, paths: int = 12) -> Tensor:
    """Points (n, N, D), in any units, at `times` (n,): panels from noise to data, and a few paths in the last one."""
    figure, axes = _figure(panels + 1)
    wanted = [*np.geomspace(times[0], max(times[-1], 0.05), panels - 1), times[-1]]      # structure appears late
    chosen = [int(np.abs(np.asarray(times) - t).argmin()) for t in wanted]
    low, high = (np.asarray(end) for end in zip(*((float(z.min()), float(z.max())) for z in trajectory[..., :2].unbind(-1)),
                                                strict=True))
    margin = np.where(high > low, 0.03 * (high - low), 1.0)
    (left, bottom), (right, top) = low - margin, high + margin
    for axis, i in zip(axes, chosen, strict=False):
        axis.scatter(*trajectory[i, :, :2].T, s=2, c="tab:red")
        axis.set_title(f"t = {times[i]:.3g}")
    axes[-1].plot(trajectory[:, :paths, 0], trajectory[:, :paths, 1], lw=0.6)
    axes[-1].set_title(f"{min(paths, trajectory.shape[1])} paths")
    for axis in axes:
        axis.set(xlim=(left, right), ylim=(bottom, top))
        _equal(axis, right - left, top - bottom)
    return render(figure)


def _equal(axis: Any, width: float, height: float) -> None:
    """Equal units on both axes, unless one of them would then be a line."""
    if max(width, height) <= ALIKE * min(width, height):
        axis.set_aspect("equal")


def histogram(sets: Mapping[str, Tensor], xlabel: str) -> Tensor:
    """Values (N,) of each named set in one histogram with common bins, each with its mean; a picture (3, height, width)."""
    figure, axes = _figure(1)
    everything = np.concatenate([values.numpy() for values in sets.values()])
    bins = np.histogram_bin_edges(everything, min(60, max(10, len(everything) // 8)))
    for i, (name, values) in enumerate(sets.items()):
        axes[0].hist(values.numpy(), bins, alpha=0.6, color=f"C{i}", label=f"{_text(name)} ({len(values)})",
                     weights=np.full(len(values), 1 / len(values)))
        axes[0].axvline(float(values.mean()), color=f"C{i}", ls="--")
    axes[0].set(xlabel=xlabel, ylabel="share of the examples")
    axes[0].legend()
    return render(figure)


def confusion(table: Tensor, names: Sequence[str]) -> Tensor:
    """Counts (classes, classes), a row for each true class and a column for each guess; a picture (3, height, width)."""
    figure, axes = _figure(1)
    share = table / table.sum(1, keepdim=True).clamp(min=1)
    axes[0].imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    if len(table) <= 20:
        for (row, column), count in np.ndenumerate(table.numpy()):
            if count:
                axes[0].text(column, row, int(count), ha="center", va="center", fontsize=7,
                             color="white" if share[row, column] > 0.5 else "black")
        shown = [_text(names[y]) if y < len(names) else str(y) for y in range(len(table))]
        axes[0].set_xticks(range(len(table)), shown, rotation=90 if max(map(len, shown)) > 3 else 0)
        axes[0].set_yticks(range(len(table)), shown)
    axes[0].set(xlabel="taken for", ylabel="class")
    return render(figure)


def _text(name: Any) -> str:
    """A name as matplotlib shows it: it takes no text that is not UTF-8, and reads mathematics between dollars."""
    return printable(str(name)).replace("$", r"\$")


def _figure(panels: int) -> tuple[Any, Any]:
    """A figure with a row of axes. It has its own canvas, so other users of matplotlib notice nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only pictures of points need it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * panels if panels > 1 else 6, 3.4 if panels > 1 else 6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def panels(rows: int, columns: int, shared: bool = False) -> tuple[Any, Any]:
    """A figure and its axes (rows, columns), which may share their scales."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 * max(columns, 2), 1.6 * max(rows, 2)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared)


def render(figure: Any) -> Tensor:
    """A figure as a uint8 picture (3, height, width)."""
    figure.canvas.draw()
    return torch.from_numpy(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()).permute(2, 0, 1)
