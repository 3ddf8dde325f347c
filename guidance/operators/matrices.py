"""Any matrix, and with it few projections of a picture (the Radon transform): y = A vec(x), A (m, D)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.guidance.operators.base import LinearOperator, Operator, of_picture
from scorefield.guidance.operators.blurs import read_array
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option

LARGEST = 2**25      # elements of a matrix: 256 MiB


class Matrix(LinearOperator):
    """y = A vec(x) for a matrix A (m, D) and events of D elements; y is (m,).

    Raises ArgumentError if the sizes do not fit, or A is 0 or not finite. One use:

    >>> from scorefield.guidance.operators import Matrix
    >>> Matrix(torch.tensor([[1.0, 1.0, 0.0]]), (3,))(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[3.]])
    """

    matrix: Tensor
    basis: Tensor

    def __init__(self, matrix: Tensor, shape: Sequence[int]):
        d = math.prod(shape)
        if matrix.ndim != 2 or matrix.shape[1] != d or not len(matrix):
            raise ArgumentError(f"a matrix that measures events of shape {tuple(shape)} is (m, {d}), got "
                                f"{tuple(matrix.shape)}", "operator")
        if not bool(matrix.isfinite().all()) or not bool((matrix != 0).any()):
            raise ArgumentError("the matrix must be finite and not all 0", "operator")
        super().__init__(shape, (len(matrix),))
        matrix = matrix.double()
        basis, singular, _ = torch.linalg.svd(matrix, full_matrices=False)
        if len(matrix) > d:      # some measurements are out of reach: their eigenvalues are 0
            basis, _ = torch.linalg.qr(basis, mode="complete")
            singular = torch.cat([singular, singular.new_zeros(len(matrix) - d)])
        for name, tensor in (("matrix", matrix), ("basis", basis), ("eigenvalues", singular.square())):
            self.register_buffer(name, tensor, persistent=False)

    def _measure(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).T

    def _transpose(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).reshape(len(y), *self.shape)

    def _analyse(self, y: Tensor) -> Tensor:
        return y @ self.basis.to(y)

    def _synthesise(self, coefficients: Tensor) -> Tensor:
        return coefficients @ self.basis.to(coefficients).T


@dataclass(frozen=True)
class MatrixFile:
    """The matrix in a file."""

    path: str = option("", "of an array (m, D), .npy")

    def make(self, shape: Sequence[int], seed: int = 0) -> Operator:
        return Matrix(read_array(self.path), shape)


@dataclass(frozen=True)
class Radon:
    """Sums of a picture of one channel along parallel lines, at equal angles: computed tomography with few projections.

    A detector has as many cells as the diagonal has pixels. The mass of each pixel falls on the two cells nearest to where
    its middle is projected, in the shares of linear interpolation. Cells that see no pixel are left out.
    """

    angles: int = option(8, "how many projections, at equal angles of a half turn")

    def make(self, shape: Sequence[int], seed: int = 0) -> Operator:
        channels, height, width = of_picture(shape, "radon")
        if channels != 1:
            raise ArgumentError(f"radon is for pictures of one channel, got {channels}", "operator")
        if self.angles < 1:
            raise ArgumentError(f"angles must be at least 1, got {self.angles}", "operator")
        cells = math.ceil(math.hypot(height, width)) + 2
        cells += (cells - width) % 2      # so that the columns of a picture fall on cells, at angle 0
        if self.angles * cells * height * width > LARGEST:
            raise ArgumentError(f"{self.angles} projections of {height} x {width} are a matrix of more than {LARGEST} "
                                "numbers; take fewer angles or smaller pictures", "operator")
        turn = torch.arange(self.angles, dtype=torch.float64) * math.pi / self.angles
        down, across = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2,
                                      indexing="ij")
        place = across.flatten() * turn.cos()[:, None] + down.flatten() * turn.sin()[:, None] + (cells - 1) / 2
        weights = (1 - (place[:, None] - torch.arange(cells)[:, None]).abs()).clamp(min=0)      # (angles, cells, pixels)
        matrix = weights.reshape(-1, height * width)
        return Matrix(matrix[matrix.sum(1) > 1e-9], shape)
