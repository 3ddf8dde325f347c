"""The map between stored data and the real numbers that a model sees, and the bits that this change of variables adds.

Stored data are pictures or points. An element of a picture is an integer k = 0 .. L-1; these L values are its levels (256
for bytes). Points are real vectors. Elementwise:

    Pixels             x = low + (high - low) k / (L - 1)      levels 0 and L-1 lie on the ends of the interval
    DequantizedPixels  x = low + (high - low) (k + u) / L      level k is a bin; u is uniform on [0, 1)
    Points             x = (y - mean) / std                    the identity by default

Let x = f(y) have slope 1/s in an element. Then -log2 p_Y(y) = -log2 p_X(x) + log2 s there. The mean of log2 s over the
D elements is the codec's `offset`: bits/dim of the data = -log2 p_X(x) / D + offset. For integers the density in a bin of
width 1 bounds the probability of its level (Theis, van den Oord and Bethge 2016, section 3.1), with s = L / (high - low).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.data.transforms import dequantize, quantize, require_within, to_unit
from scorefield.numerics.errors import ArgumentError


class Codec(ABC):
    """What every codec offers.

        codec = make_codec(levels=256, low=-1.0, high=1.0, dequantize=True)
        x = codec.encode(k, torch.rand(k.shape))
        k = codec.decode(x)

    levels  L if the data are integers 0 .. L-1; None for points
    noisy   whether `encode` needs uniform noise u
    """

    levels: int | None
    noisy: bool = False

    @abstractmethod
    def encode(self, data: Tensor, u: Tensor | None = None) -> Tensor:
        """Data (batch, *shape), and u in [0, 1) of that shape if the codec is noisy, to x (batch, *event).

        An event is one example as the model sees it; `event` gives its shape.
        """

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """The data that x stands for: the inverse of `encode` for every u."""

    @property
    @abstractmethod
    def offset(self) -> float:
        """Bits per dimension that the change of variables adds to -log2 p(x) / D, with x from the codec `dense`."""

    @property
    def dense(self) -> Codec:
        """The codec with which the data have a density in x: the dequantised one for Pixels, else this codec itself."""
        return self

    @property
    def discrete(self) -> bool:
        """Whether `encode` maps each level to one value of x. A model of x is then a model of the levels themselves."""
        return self.dense is not self

    @abstractmethod
    def check(self, data: Tensor, name: str, first: int = 0) -> None:
        """Raise ValueError unless `data` (batch, *shape) can be encoded.

        The error names the bad example of `name`, counted from `first`, and its value.
        """

    def event(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of x for one example of data of `shape`."""
        return shape


@dataclass(frozen=True)
class Pixels(Codec):
    """Level k is the number low + (high - low) k / (levels - 1). Raises ArgumentError for levels < 2 or low >= high."""

    levels: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ArgumentError(f"levels must be at least 2, got {self.levels}", "levels")
        if not self.low < self.high:
            raise ArgumentError(f"low must be below high, got {self.low} and {self.high}", "low", "high")

    def encode(self, data: Tensor, u: Tensor | None = None) -> Tensor:
        return to_unit(data, self.levels, self.low, self.high)

    def decode(self, x: Tensor) -> Tensor:
        """The nearest levels, uint8."""
        return quantize(x, self.levels, self.low, self.high, dequantized=self.noisy)

    @property
    def offset(self) -> float:
        return math.log2(self.levels / (self.high - self.low))

    @property
    def dense(self) -> Codec:
        return DequantizedPixels(self.levels, self.low, self.high)

    def check(self, data: Tensor, name: str, first: int = 0) -> None:
        require_within(data, 0, self.levels - 1, name, f"its levels are 0 .. {self.levels - 1}", first)


@dataclass(frozen=True)
class DequantizedPixels(Pixels):
    """Level k is the bin of the numbers low + (high - low) (k + u) / levels."""

    noisy = True

    def encode(self, data: Tensor, u: Tensor | None = None) -> Tensor:
        """In the dtype of u."""
        if u is None:
            raise ArgumentError("dequantised pixels need uniform noise u in the shape of the data", "u")
        return dequantize(data, u, self.levels, self.low, self.high)

    @property
    def dense(self) -> Codec:
        return self


@dataclass(frozen=True)
class Points(Codec):
    """Real data, standardised with `mean` and `std`: one number each, or one for each element of a flattened example."""

    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    levels = None

    def __post_init__(self) -> None:
        if not all(0 < s < math.inf for s in self._each(self.std)):
            raise ArgumentError(f"std must be positive and finite, got {self.std}", "std")

    @classmethod
    def standardising(cls, data: Tensor) -> Points:
        """The codec with the mean and the standard deviation of each element of `data` (N, *shape)."""
        flat = data.flatten(1).double()
        return cls(tuple(flat.mean(0).tolist()), tuple(flat.std(0).tolist()))

    def encode(self, data: Tensor, u: Tensor | None = None) -> Tensor:
        return data if self._identity else (data - self._like(data, self.mean)) / self._like(data, self.std)

    def decode(self, x: Tensor) -> Tensor:
        return x if self._identity else x * self._like(x, self.std) + self._like(x, self.mean)

    @property
    def offset(self) -> float:
        logs = [math.log2(s) for s in self._each(self.std)]
        return math.fsum(logs) / len(logs)

    def check(self, data: Tensor, name: str, first: int = 0) -> None:
        limit = torch.finfo(data.dtype).max
        require_within(data, -limit, limit, name, "examples must be finite", first)

    @property
    def _identity(self) -> bool:
        return self.mean == 0 and self.std == 1

    @staticmethod
    def _each(value: float | tuple[float, ...]) -> tuple[float, ...]:
        return value if isinstance(value, tuple) else (value,)

    def _like(self, x: Tensor, value: float | tuple[float, ...]) -> Tensor:
        numbers = torch.tensor(value, dtype=x.dtype, device=x.device)
        return numbers.reshape(x.shape[1:]) if numbers.ndim else numbers


def make_codec(levels: int | None, low: float = -1.0, high: float = 1.0, dequantize: bool = False) -> Codec:
    """The codec of a run, from its data's levels and the fields of its config's section `data`.

    Raises ArgumentError for `dequantize` without levels.
    """
    if levels is None:
        if dequantize:
            raise ArgumentError("points have no levels to dequantise: set data.dequantize to False", "data.dequantize")
        return Points()
    return (DequantizedPixels if dequantize else Pixels)(levels, low, high)
