"""Measurements of data: y = A(x) + noise, for x (batch, *shape) and y (batch, *measured).

A linear operator knows its adjoint and the eigenvectors and eigenvalues of A A^T = U diag(e) U^T. So every function of A A^T
costs two changes of basis, and with it come

    pseudo-inverse        A^+ y = A^T (A A^T)^+ y
    regularised solves    (a A A^T + b I)^-1 y, and its determinant

which are all that posterior sampling needs of an operator (guidance/posterior). Its singular values are the roots of e.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from scorefield.numerics.errors import ArgumentError

SINGULAR = 1e-10      # eigenvalues of A A^T below so much of the largest count as 0


class Operator(nn.Module):
    """What every operator offers.

    shape     of the event that is measured
    measured  the shape of a measurement
    linear    whether it is a linear map, with `adjoint` and `pseudo_inverse`

    `operator(x)` measures x (batch, *shape), without noise, and gives (batch, *measured); it can be differentiated. Raises
    ArgumentError for events of another shape.
    """

    linear: ClassVar[bool] = False

    def __init__(self, shape: Sequence[int], measured: Sequence[int]):
        super().__init__()
        self.shape, self.measured = tuple(shape), tuple(measured)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ArgumentError(f"the operator measures events of shape {self.shape}, x has {tuple(x.shape[1:])}",
                                "operator")
        return self._measure(x)

    def check_measurement(self, y: Tensor) -> None:
        """ArgumentError (of argument "y") unless y is (batch, *measured)."""
        if tuple(y.shape[1:]) != self.measured or not len(y):
            raise ArgumentError(f"y must have shape (batch, {', '.join(map(str, self.measured))}), what the operator gives "
                                f"for events of shape {self.shape}; got {tuple(y.shape)}", "y")

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, (batch, *shape): <A x, y> = <x, A^T y>. ArgumentError if the operator is not linear."""
        raise ArgumentError(f"{type(self).__name__} is not linear, so it has no adjoint and no pseudo-inverse", "operator")

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y, (batch, *shape): the smallest x among those whose A x is nearest to y. ArgumentError as `adjoint`."""
        return self.adjoint(y)

    @property
    def size(self) -> int:
        """The number of elements of a measurement."""
        return math.prod(self.measured)

    @abstractmethod
    def _measure(self, x: Tensor) -> Tensor:
        """A(x), for x of the right shape."""


class Function(Operator):
    """Any differentiable function of x (batch, *shape) that gives (batch, *measured).

    It is tried once, on zeros. Raises ArgumentError for a function that gives no batch of tensors. One use:

    >>> from scorefield.guidance.operators import Function
    >>> Function(lambda x: x.square().sum(1, keepdim=True), (2,)).measured
    (1,)
    """

    def __init__(self, function: Callable[[Tensor], Tensor], shape: Sequence[int]):
        tried = function(torch.zeros(2, *shape))
        if not isinstance(tried, Tensor) or tried.shape[:1] != (2,):
            got = tuple(tried.shape) if isinstance(tried, Tensor) else type(tried).__name__
            raise ArgumentError(f"for x of shape (2, {', '.join(map(str, shape))}) the function must return (2, ...), got "
                                f"{got}", "function")
        super().__init__(shape, tried.shape[1:])
        self.function = function

    def _measure(self, x: Tensor) -> Tensor:
        return self.function(x)


class LinearOperator(Operator):
    """A linear map. A subclass writes `_measure`, `_transpose`, and the change of basis to the eigenvectors of A A^T.

    eigenvalues  of A A^T, of shape `measured`, float64: one for each coefficient of `_analyse`
    """

    linear = True
    eigenvalues: Tensor

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        return self._transpose(y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        e = self.eigenvalues
        return self._transpose(self.filtered(y, torch.where(self.reached, 1 / e, 0)))

    def consistent(self, x: Tensor, y: Tensor) -> Tensor:
        """The x + A^+ (y - A x) nearest to x whose measurement is y (or nearest to y)."""
        return x + self.pseudo_inverse(y - self(x))

    @property
    def reached(self) -> Tensor:
        """Which eigenvalues are not 0, of shape `measured`."""
        return self.eigenvalues > SINGULAR * self.eigenvalues.max()

    @property
    def singular(self) -> bool:
        """Whether some measurements are those of no x."""
        return not bool(self.reached.all())

    def dense(self) -> Tensor:
        """A as a matrix (size, D), float64; for small sizes."""
        d = math.prod(self.shape)
        basis = torch.eye(d, dtype=torch.float64, device=self.eigenvalues.device).reshape(d, *self.shape)
        return self(basis).flatten(1).T

    def filtered(self, y: Tensor, factors: Tensor) -> Tensor:
        """U diag(factors) U^T y: factors 1 / (a e + b) give (a A A^T + b I)^-1 y.

        factors  of shape `measured` or (batch, *measured), made of `eigenvalues`
        """
        return self._synthesise(factors.to(y.device, y.dtype) * self._analyse(y))

    @abstractmethod
    def _transpose(self, y: Tensor) -> Tensor:
        """A^T y."""

    def _analyse(self, y: Tensor) -> Tensor:
        """The coefficients U^T y, (batch, *measured), which may be complex; y itself where A A^T is diagonal."""
        return y

    def _synthesise(self, coefficients: Tensor) -> Tensor:
        """U c."""
        return coefficients


def of_picture(shape: Sequence[int], what: str) -> tuple[int, int, int]:
    """Channels, height and width of an event; ArgumentError (of argument "operator") if it is no picture."""
    if len(shape) != 3:
        raise ArgumentError(f"{what} is for pictures of shape (channels, height, width), got events of shape {tuple(shape)}",
                            "operator")
    channels, height, width = shape
    return channels, height, width
