"""Blur: the convolution of each channel with a kernel, on a picture that repeats beyond its borders.

Then the Fourier transform diagonalises it: y^ = k^ x^ for each frequency, and the eigenvalues of A A^T are |k^|^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.guidance.operators.base import LinearOperator, Operator, of_picture
from scorefield.numerics.errors import ArgumentError, MissingFileError
from scorefield.numerics.options import option


class Convolution(LinearOperator):
    """Each channel convolved with `kernel` (height, width), whose middle lies on the pixel; borders are periodic.

    Raises ArgumentError if the kernel is larger than the picture or its sides are even.
    """

    transfer: Tensor

    def __init__(self, shape: Sequence[int], kernel: Tensor):
        _, height, width = of_picture(shape, "blur")
        if kernel.ndim != 2 or not kernel.numel() or not all(n % 2 for n in kernel.shape):
            raise ArgumentError(f"a kernel has an odd height and width, got {' x '.join(map(str, kernel.shape))}",
                                "operator")
        if kernel.shape[0] > height or kernel.shape[1] > width:
            raise ArgumentError(f"the kernel of {' x '.join(map(str, kernel.shape))} is larger than the picture of {height} "
                                f"x {width}; use a smaller one", "operator")
        if not bool(kernel.isfinite().all()) or not bool((kernel != 0).any()):
            raise ArgumentError("a kernel must be finite and not all 0", "operator")
        super().__init__(shape, shape)
        wide = torch.zeros(height, width, dtype=torch.float64)
        wide[:kernel.shape[0], :kernel.shape[1]] = kernel.double()
        wide = wide.roll((-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), (0, 1))
        transfer = torch.fft.fft2(wide)
        self.register_buffer("transfer", transfer, persistent=False)
        self.register_buffer("eigenvalues", transfer.abs().square().expand(self.measured).contiguous(), persistent=False)

    def _multiplied(self, x: Tensor, factors: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x)
        return torch.fft.ifft2(spectrum * factors.to(spectrum)).real

    def _measure(self, x: Tensor) -> Tensor:
        return self._multiplied(x, self.transfer)

    def _transpose(self, y: Tensor) -> Tensor:
        return self._multiplied(y, self.transfer.conj())

    def _analyse(self, y: Tensor) -> Tensor:
        return torch.fft.fft2(y)

    def _synthesise(self, coefficients: Tensor) -> Tensor:
        return torch.fft.ifft2(coefficients).real


@dataclass(frozen=True)
class Blur:
    """Gaussian blur."""

    std: float = option(1.0, "standard deviation of the kernel, in pixels; it is cut off at 3 of them")

    def make(self, shape: Sequence[int], seed: int = 0) -> Operator:
        if not 0 < self.std < 1e4:
            raise ArgumentError(f"std of a blur must be positive, in pixels, got {self.std:g}", "operator")
        radius = math.ceil(3 * self.std)
        along = torch.exp(-torch.arange(-radius, radius + 1, dtype=torch.float64).square() / (2 * self.std**2))
        kernel = along[:, None] * along
        return Convolution(shape, kernel / kernel.sum())


@dataclass(frozen=True)
class MotionBlur:
    """The mean along a straight line."""

    length: int = option(5, "of the line, in pixels, odd")
    angle: float = option(0.0, "of the line to the horizontal, in degrees, counted from right to up")

    def make(self, shape: Sequence[int], seed: int = 0) -> Operator:
        if self.length < 3 or self.length % 2 == 0 or self.length > 10_000:
            raise ArgumentError(f"length of a motion blur must be odd and at least 3, got {self.length}", "operator")
        reach = self.length // 2
        kernel = torch.zeros(self.length, self.length, dtype=torch.float64)
        turn = math.radians(self.angle)
        points = torch.linspace(-reach, reach, 8 * self.length + 1, dtype=torch.float64)
        across = (reach + points * math.cos(turn)).clamp(0, 2 * reach)
        down = (reach - points * math.sin(turn)).clamp(0, 2 * reach)
        i, j = down.floor().long(), across.floor().long()
        for k, m in ((0, 0), (0, 1), (1, 0), (1, 1)):      # each point is shared by the four pixels about it
            share = (1 - (down - i - k).abs()) * (1 - (across - j - m).abs())
            kernel.index_put_(((i + k).clamp(max=2 * reach), (j + m).clamp(max=2 * reach)), share, accumulate=True)
        kernel = kernel / kernel.sum()
        rows, columns = (kernel.sum(1 - axis) > 1e-12 for axis in (0, 1))
        tall, wide = (int((used.nonzero()[:, 0] - reach).abs().max()) for used in (rows, columns))
        return Convolution(shape, kernel[reach - tall:reach + tall + 1, reach - wide:reach + wide + 1])


@dataclass(frozen=True)
class Kernel:
    """A blur by the kernel in a file."""

    path: str = option("", "of an array (height, width), .npy, of odd sides")

    def make(self, shape: Sequence[int], seed: int = 0) -> Operator:
        return Convolution(shape, read_array(self.path))


def read_array(path: str) -> Tensor:
    """The two-dimensional array of numbers in a .npy file, float64; one line for a file that is missing or another."""
    if not Path(path).is_file():
        raise MissingFileError(f"there is no file {path}; give path=FILE.npy" if path else "give path=FILE.npy", "operator")
    try:
        array = np.load(path, allow_pickle=False)
        values = torch.from_numpy(np.asarray(array, dtype=np.float64))
    except (ValueError, OSError, EOFError, TypeError, AttributeError) as error:
        raise ArgumentError(f"{path} cannot be read as an array of numbers ({type(error).__name__})", "operator") from error
    if values.ndim != 2 or not values.numel() or not bool(values.isfinite().all()):
        raise ArgumentError(f"{path} must hold a finite array of two dimensions, got shape {tuple(values.shape)}",
                            "operator")
    return values
