"""Pictures of samples that are numbers: points, tables, series, and pictures without levels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.evaluation import plots

MOST_COLUMNS = 5      # of a table, each against each
PANELS = 16           # series, each in one


def picture_of_numbers(samples: Tensor, data: Tensor | None = None, columns: Sequence[str] = (), label: Tensor | None = None,
                       names: Sequence[str] = ()) -> Tensor:
    """Samples (N, *shape) in the units of the data, as a uint8 picture (3, height, width).

    points (N, 2)      over the data's
    tables (N, D)      a histogram of each column, and of the first ones each against each
    series (N, C, L)   the first ones, a line for each channel
    pictures (N, C, H, W)   a grid; black and white are where 1 in 1,000 of the data, or else of the samples, lie beyond

    data     examples (M, *shape), to be shown beside the samples, or None
    columns  names of the columns of a table
    label    (N,), the class of each sample, whose name is in `names`
    """
    if samples.ndim == 4:
        return _grid(samples, samples if data is None else data, label)
    if samples.ndim == 3:
        return _series(samples, label, names)
    if samples.shape[1] == 2 and not columns:
        return plots.points_over_data(samples, data, label, names)
    return _table(samples, data, columns)


def in_plane(shape: Sequence[int]) -> bool:
    """Whether examples of this shape are points whose first two coordinates can be plotted."""
    return len(shape) == 1 and shape[0] > 1


def _grid(samples: Tensor, like: Tensor, label: Tensor | None) -> Tensor:
    values = np.quantile(like[:plots_of(like)].double().numpy(), [0.001, 0.999])
    low, high = float(values[0]), float(values[1])
    levels = ((samples.double() - low) * (255 / max(high - low, 1e-300))).round().clamp(0, 255).to(torch.uint8)
    return plots.image_grid(levels, 256, plots.rows_of(label))


def plots_of(data: Tensor) -> int:
    """How many examples are enough to find the range of their numbers."""
    return max(1, 2**20 // data[0].numel())


def _series(samples: Tensor, label: Tensor | None, names: Sequence[str]) -> Tensor:
    n = min(len(samples), PANELS)
    width = math.ceil(math.sqrt(n))
    figure, axes = plots.panels(math.ceil(n / width), width, shared=True)
    for i, axis in enumerate(axes.flat):
        if i >= n:
            axis.set_axis_off()
            continue
        for j, channel in enumerate(samples[i, :6]):
            axis.plot(channel, lw=0.8, c=f"C{j}")
        if label is not None:
            y = int(label[i])
            axis.set_title(names[y] if y < len(names) else str(y), fontsize=8)
    return plots.render(figure)


def _table(samples: Tensor, data: Tensor | None, columns: Sequence[str]) -> Tensor:
    d = min(samples.shape[1], MOST_COLUMNS)
    figure, axes = plots.panels(d, d)
    sets = [] if data is None else [(data, "0.7", "data")]
    sets.append((samples, "tab:red", "samples"))
    for row in range(d):
        for column in range(d):
            axis: Any = axes[row, column]
            if column > row:
                axis.set_axis_off()
                continue
            if column == row:
                everything = np.concatenate([values[:, row].numpy() for values, _, _ in sets])
                low, high = np.quantile(everything, [0.001, 0.999]).tolist()
                bins = np.linspace(low, high, 41)
                for values, colour, name in sets:
                    axis.hist(values[:, row].numpy(), bins, density=True, histtype="step", color=colour,
                              label=f"{name} ({len(values)})")
            else:
                for values, colour, _ in sets:
                    axis.scatter(values[:, column], values[:, row], s=2, c=colour, rasterized=True)
            if row == d - 1:
                axis.set_xlabel(columns[column] if columns else f"{column}")
            if column == 0 and row:
                axis.set_ylabel(columns[row] if columns else f"{row}")
    axes[0, 0].legend(fontsize=7)
    return plots.render(figure)
