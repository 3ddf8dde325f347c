"""Operators: what is measured of the data. Each has one word, a key of OPERATORS, with options after colons.

    mask:box=0.5    mask:half=right    grey    downsample:factor=2:kernel=bicubic    blur:std=1    motion:length=5:angle=30
    kernel:path=k.npy    radon:angles=8    matrix:path=a.npy    identity
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.guidance.operators.base import Function, LinearOperator, Operator
from scorefield.guidance.operators.blurs import Blur, Convolution, Kernel, MotionBlur
from scorefield.guidance.operators.masks import Mask, Selection
from scorefield.guidance.operators.matrices import Matrix, MatrixFile, Radon
from scorefield.guidance.operators.resampling import Downsample, Grey, Separable, WeightedChannels
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import worded


class Identity(LinearOperator):
    """The data themselves; what is left to restore is the noise of the measurement."""

    def __init__(self, shape: Sequence[int]):
        super().__init__(shape, shape)
        self.register_buffer("eigenvalues", torch.ones(self.measured, dtype=torch.float64), persistent=False)

    def consistent(self, x: Tensor, y: Tensor) -> Tensor:
        return y.to(x).expand_as(x)

    def _measure(self, x: Tensor) -> Tensor:
        return x

    def _transpose(self, y: Tensor) -> Tensor:
        return y


@dataclass(frozen=True)
class Whole:
    """The data themselves, which noise alone has changed."""

    def make(self, shape: Sequence[int], seed: int = 0) -> Operator:
        return Identity(shape)


OPERATORS: dict[str, type[Any]] = {
    "mask": Mask, "grey": Grey, "downsample": Downsample, "blur": Blur, "motion": MotionBlur, "kernel": Kernel,
    "radon": Radon, "matrix": MatrixFile, "identity": Whole,
}


def make_operator(text: str, shape: Sequence[int], seed: int = 0) -> Operator:
    """The operator that NAME[:OPTION=VALUE ...] describes, for events of this shape.

    seed  of what is drawn: the pixels of a random mask

    Raises ArgumentError (of argument "operator") for an unknown word, option or value, and where it does not fit the shape.
    One use:

    >>> from scorefield.guidance.operators import make_operator
    >>> make_operator("downsample:factor=2", (1, 8, 8)).measured
    (1, 4, 4)
    """
    kind, options = worded("operator", OPERATORS, text, "operator")
    if not shape or math.prod(shape) < 1:
        raise ArgumentError(f"an event has at least one element, got shape {tuple(shape)}", "shape")
    return kind(**options).make(tuple(shape), seed)


__all__ = ["OPERATORS", "Convolution", "Function", "Identity", "LinearOperator", "Matrix", "Operator", "Selection",
           "Separable", "WeightedChannels", "make_operator"]
