"""The map between stored data and the real numbers that a model sees, and the bits that this change of variables adds.

Stored data are pictures or points. An element of a picture is an integer k = 0 .. L-1; these L values are its levels (256
for bytes). Points are real vectors. Elementwise:

    Pixels             x = low + (high - low) k / (L - 1)      levels 0 and L-1 lie on the ends of the interval
    DequantizedPixels  x = low + (high - low) (k + u) / L      level k is a bin; u is uniform on [0, 1)
    Points             x = (y - mean) / std                    of each column or channel; the identity by default

Let x = f(y) have slope 1/s in an element. Then -log2 p_Y(y) = -log2 p_X(x) + log2 s there. The mean of log2 s over the
D elements is the codec's `offset`: bits/dim of the data = -log2 p_X(x) / D + offset. For integers the density in a bin of
width 1 bounds the probability of its level (Theis, van den Oord and Bethge 2016, section 3.1), with s = L / (high - low).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        """Data (batch, *shape), and u in [0, 1), (batch, *noise(shape)), if the codec is noisy, to x (batch, *event).

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
    def of_pictures(self) -> Codec:
        """The codec of the data as an autoencoder sees them; where there is none, this codec itself."""
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

    def noise(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of u for one example of data of `shape`, if the codec is noisy."""
        return shape

    def noise_like(self, data: Tensor) -> Tensor:
        """A tensor of any values in the shape of u for data (batch, *shape)."""
        return torch.empty(len(data), *self.noise(tuple(data.shape[1:])))

    def terms(self, data: Tensor, x: Tensor) -> dict[str, Tensor]:
        """What log p of data (batch, *shape) has beside log p(x), in nats, (batch,) each by name, float64 on the CPU:
        nothing where x tells all.

        x  (batch, *event), as `encode` made it of the data
        """
        return {}


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
    """Real data, standardised with `mean` and `std`: one number each, or one for each entry of an example's first axis.

    These are the columns of a table (D,), and the channels of a series (C, L) or a picture (C, H, W).

        codec = Points.standardising(table)      # (N, D)
        x = codec.encode(table)                  # each column has mean 0 and standard deviation 1

    columns  their names, where they have some

    Numbers are computed in float64 and x is float32. The identity, which is the default, leaves the data as they are.
    """

    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    columns: tuple[str, ...] = ()
    levels = None

    def __post_init__(self) -> None:
        if not all(0 < s < math.inf for s in self._each(self.std)):
            raise ArgumentError(f"std must be positive and finite, got {self.std}", "std")
        if not all(map(math.isfinite, self._each(self.mean))):
            raise ArgumentError(f"mean must be finite, got {self.mean}", "mean")
        lengths = {len(each) for each in (self.mean, self.std) if isinstance(each, tuple)}
        if len(lengths | ({len(self.columns)} if self.columns and lengths else set())) > 1:
            raise ArgumentError("mean, std and columns must be equally many", "mean", "std", "columns")

    @classmethod
    def standardising(cls, data: Tensor, columns: Sequence[str] = ()) -> Points:
        """The codec with the mean and the standard deviation (of the population, so x has mean square 1) of `data`
        (N, *shape), for each entry of the first axis of an example, over all else.

        Raises ArgumentError if one of these has the same value everywhere; it names the column, or the number of the entry.
        """
        mean, std = [], []
        for i in range(data.shape[1]):
            values = data[:, i].flatten()
            low, high = float(values.min()), float(values.max())
            if low == high:
                kind = "column" if data.ndim == 2 else "channel"
                name = repr(columns[i]) if columns else str(i)
                raise ArgumentError(f"{kind} {name} is {low:g} in all training examples; a constant cannot be standardised "
                                    f"and has no density, so leave that {kind} out", "data")
            centre, spread = _moments(values, low, high)
            mean.append(centre)
            std.append(spread)
        return cls(tuple(mean), tuple(std), tuple(columns))

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any] | None) -> Points:
        """The codec that `stored` describes; the identity for None. Raises ValueError or TypeError for anything else."""
        if stored is None:
            return cls()
        mean, std = (tuple(map(float, stored[n])) if isinstance(stored[n], list) else float(stored[n])
                     for n in ("mean", "std"))
        columns = stored.get("columns", [])
        if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
            raise ValueError("columns are not a list of names")
        return cls(mean, std, tuple(columns))

    def stored(self) -> dict[str, Any]:
        """The codec as JSON holds it; `from_stored` returns the same codec, to the last bit."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def require_shape(self, shape: Sequence[int], levels: int | None) -> None:
        """Raise ArgumentError unless data of this shape and these levels can be standardised so."""
        numbers = {len(v) for v in (self.mean, self.std, self.columns or 0.0) if isinstance(v, tuple)}
        if levels is not None or not numbers <= {shape[0]}:
            raise ArgumentError(f"examples of shape {tuple(shape)} and {levels or 'no'} levels cannot be standardised by "
                                f"{numbers or 1} numbers", "standard")

    def encode(self, data: Tensor, u: Tensor | None = None) -> Tensor:
        return data if self._identity else self._mapped(data, lambda y, mean, std: (y - mean) / std, torch.float32)

    def decode(self, x: Tensor) -> Tensor:
        """The data, in `dtype`."""
        return x if self._identity else self._mapped(x, lambda x, mean, std: x * std + mean, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """That of the data: float64 where float32 would round a number by over 1e-4 of its standard deviation, as it does
        times in seconds since 1970, and for numbers near the ends of its range; else float32.
        """
        n = max(len(self._each(self.mean)), len(self._each(self.std)))
        pairs = zip(as_tuple(self.mean, n), as_tuple(self.std, n), strict=True)
        fits = all(abs(mean) <= 1000 * std and 1e-30 < std < 1e30 for mean, std in pairs)
        return torch.float32 if fits else torch.float64

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
        return as_tuple(value, 1)

    def _mapped(self, values: Tensor, rule: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        wide = (values.cpu() if values.device.type == "mps" else values).double()      # MPS has no float64
        mean, std = (torch.tensor(v, dtype=torch.float64, device=wide.device) for v in (self.mean, self.std))
        mean, std = (v.reshape(-1, *[1] * (wide.ndim - 2)) if v.ndim else v for v in (mean, std))
        mapped = rule(wide, mean, std).to(dtype)
        return mapped if mapped.dtype == torch.float64 else mapped.to(values.device)


def as_tuple(value: float | tuple[float, ...], n: int) -> tuple[float, ...]:
    """A tuple unchanged, a number n times."""
    return value if isinstance(value, tuple) else (value,) * n


def _moments(values: Tensor, low: float, high: float, size: int = 2**20) -> tuple[float, float]:
    """Mean and standard deviation in float64, part by part. Sums are of numbers relative to the middle and the half width
    of their range, so that neither a large mean nor huge numbers spoil them.
    """
    middle, half = low / 2 + high / 2, high / 2 - low / 2

    def total(rule: Callable[[Tensor], Tensor]) -> float:
        return math.fsum(float(rule((part.double() - middle) / half).sum()) for part in values.split(size)) / len(values)

    mean = total(lambda z: z)
    return middle + half * mean, half * math.sqrt(total(lambda z: (z - mean).square()))


def make_codec(levels: int | None, low: float = -1.0, high: float = 1.0, dequantize: bool = False,
               standard: Points | None = None) -> Codec:
    """The codec of a run, from its data's levels and the fields of its config's section `data`.

    standard  that of data without levels; None: the identity

    Raises ArgumentError for `dequantize` without levels.
    """
    if levels is None:
        if dequantize:
            raise ArgumentError("points have no levels to dequantise: set data.dequantize to False", "data.dequantize")
        return standard or Points()
    return (DequantizedPixels if dequantize else Pixels)(levels, low, high)
