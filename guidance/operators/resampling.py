"""Pictures made smaller, and pictures made grey: y = R x C^T in each channel, and a weighted sum of channels.

R and C are those of numerics/pictures.py. A A^T is R R^T times C C^T, so its eigenvectors are products of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.guidance.operators.base import LinearOperator, Operator, of_picture
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option
from scorefield.numerics.pictures import KERNELS, resampled, resampling_matrix, weighted_channels


class Separable(LinearOperator):
    """y = R x C^T for each channel of pictures (channels, H, W): rows R (h, H), columns C (w, W)."""

    rows: Tensor
    columns: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, channels: int, rows: Tensor, columns: Tensor):
        super().__init__((channels, rows.shape[1], columns.shape[1]), (channels, rows.shape[0], columns.shape[0]))
        rows, columns = rows.double(), columns.double()
        (of_rows, left), (of_columns, right) = (torch.linalg.eigh(m @ m.T) for m in (rows, columns))
        eigenvalues = of_rows.clamp(min=0)[:, None] * of_columns.clamp(min=0)
        for name, tensor in (("rows", rows), ("columns", columns), ("left", left), ("right", right),
                             ("eigenvalues", eigenvalues.expand(self.measured).contiguous())):
            self.register_buffer(name, tensor, persistent=False)

    def _measure(self, x: Tensor) -> Tensor:
        return resampled(x, self.rows, self.columns)

    def _transpose(self, y: Tensor) -> Tensor:
        return self.rows.to(y).T @ y @ self.columns.to(y)

    def _analyse(self, y: Tensor) -> Tensor:
        return self.left.to(y).T @ y @ self.right.to(y)

    def _synthesise(self, coefficients: Tensor) -> Tensor:
        return self.left.to(coefficients) @ coefficients @ self.right.to(coefficients).T


class WeightedChannels(LinearOperator):
    """One channel, the sum of all by weights (channels,)."""

    weights: Tensor

    def __init__(self, shape: Sequence[int], weights: Tensor):
        channels, height, width = of_picture(shape, "grey")
        if weights.shape != (channels,) or not bool(weights.isfinite().all()) or not bool((weights != 0).any()):
            raise ArgumentError(f"grey of {channels} channels needs so many weights that are finite and not all 0, got "
                                f"{weights.tolist()}", "operator")
        super().__init__(shape, (1, height, width))
        self.register_buffer("weights", weights.double(), persistent=False)
        self.register_buffer("eigenvalues", weights.double().square().sum().expand(self.measured).contiguous(),
                             persistent=False)

    def _measure(self, x: Tensor) -> Tensor:
        return weighted_channels(x, self.weights)

    def _transpose(self, y: Tensor) -> Tensor:
        return self.weights.to(y)[:, None, None] * y


@dataclass(frozen=True)
class Downsample:
    """Pictures made smaller by a whole factor."""

    factor: int = option(2, "how many times smaller each side becomes")
    kernel: str = option("box", f"of the mean: {', '.join(KERNELS)}")
    antialias: bool = option(True, "whether the kernel is as wide as `factor` pixels; else as wide as one")

    def make(self, shape: Sequence[int], seed: int = 0) -> Operator:
        channels, height, width = of_picture(shape, "downsample")
        if self.kernel not in KERNELS:
            raise ArgumentError(f"unknown kernel {self.kernel!r}; choose from {', '.join(KERNELS)}", "operator")
        if self.factor < 2 or height % self.factor or width % self.factor:
            raise ArgumentError(f"factor must be at least 2 and divide both sides of {height} x {width}, got {self.factor}",
                                "operator")
        if self.kernel == "box" and not self.antialias:
            raise ArgumentError("kernel box is the mean of a block, with antialiasing; choose linear or bicubic", "operator")
        rows, columns = (resampling_matrix(n, self.factor, self.kernel, self.antialias) for n in (height, width))
        return Separable(channels, rows, columns)


@dataclass(frozen=True)
class Grey:
    """Pictures made grey, which colourisation undoes."""

    weights: tuple[float, ...] = option((), "of the channels; by default their mean")

    def make(self, shape: Sequence[int], seed: int = 0) -> Operator:
        channels, _, _ = of_picture(shape, "grey")
        if channels == 1:
            raise ArgumentError("grey is for pictures of several channels, and these have one", "operator")
        given = self.weights or (1 / channels,) * channels
        return WeightedChannels(shape, torch.tensor(given, dtype=torch.float64))
