"""Integer levels to real numbers and back, random flips, and the order of training batches. Pure functions.

The elements of a picture take L values, its levels. They are stored as integers k = 0 .. L-1 and are mapped to the interval
[low, high] in two ways; `quantize` inverts both:

    to_unit       x = low + (high - low) k / (L - 1)     levels 0 and L-1 lie on the ends of the interval
    dequantize    x = low + (high - low) (k + u) / L     level k is a bin of width (high - low) / L

The second turns a distribution over integers into a density and so defines bits/dim (Theis, van den Oord and
Bethge, "A note on the evaluation of generative models", 2016, section 3.1).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def to_unit(k: Tensor, levels: int, low: float, high: float) -> Tensor:
    """Integer levels k (any shape, 0 .. levels-1) to float32 in [low, high]."""
    return _place(k.float(), levels - 1, low, high)


def dequantize(k: Tensor, u: Tensor, levels: int, low: float, high: float) -> Tensor:
    """Integer levels k and noise u in [0, 1), of one shape, to real numbers in [low, high), in the dtype of u.

    The result stays in the bin of k: if rounding would move it to the next bin, it is the last number before that bin.
    So `quantize(..., dequantized=True)` returns k for every u.
    """
    k = k.to(u.dtype)
    end = _place(k + 1, levels, low, high)
    return torch.minimum(_place(k + u, levels, low, high), torch.nextafter(end, torch.full_like(end, low)))


def quantize(x: Tensor, levels: int, low: float, high: float, dequantized: bool) -> Tensor:
    """Real numbers x (any shape, float32 or float64) to uint8 levels: inverts `dequantize` if `dequantized`, else `to_unit`.

    Values outside [low, high] become the nearest level, 0 or levels-1. At most 256 levels.
    """
    cells, offset = (levels, 0.0) if dequantized else (levels - 1, 0.5)
    k = torch.arange(1, levels, dtype=x.dtype, device=x.device)
    # Comparing with edges made by the same arithmetic is exact; floor(L (x - low) / (high - low)) is not.
    edges = _place(k - offset, cells, low, high)
    return torch.bucketize(x.contiguous(), edges, right=True, out_int32=True).to(torch.uint8)


def _place(k: Tensor, cells: int, low: float, high: float) -> Tensor:
    return low + (high - low) * (k / cells)


def require_within(x: Tensor, low: float, high: float, name: str, allowed: str, first: int = 0) -> None:
    """Raise ValueError if x (N, *event) is NaN or outside [low, high], with the value and the index from `first` on."""
    bad = ~((x >= low) & (x <= high)).flatten(1)
    if bool(bad.any()):
        i = int(bad.any(1).nonzero()[0])
        raise ValueError(f"{name}: example {first + i} holds {x[i].flatten()[bad[i]][0].item()}; {allowed}")


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images x (batch, ..., width), each mirrored left to right with probability 1/2; one draw per image."""
    return mirrored(x, coins(len(x), generator))


def coins(n: int, generator: torch.Generator) -> Tensor:
    """Whether each of n images is to be mirrored, (n,)."""
    return torch.rand(n, generator=generator, device=generator.device) < 0.5


def mirrored(x: Tensor, which: Tensor) -> Tensor:
    """Images x (batch, ..., width), those of `which` (batch,) mirrored left to right."""
    return torch.where(which.to(x.device).view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Indices (batch_size,), int64, of the examples in training batch `step` = 0, 1, ... of a set of n.

    The batches cut one endless sequence of permutations of range(n), one per epoch. So no example is dropped if an epoch
    ends inside a batch. The result depends only on the arguments, so a run resumes without any saved state. Raises
    ValueError if n or batch_size is below 1, or step or seed below 0.
    """
    if n < 1 or batch_size < 1 or step < 0 or seed < 0:
        given = f"n={n}, batch_size={batch_size}, step={step}, seed={seed}"
        raise ValueError(f"batch_indices({given}) needs n and batch_size >= 1, step and seed >= 0")
    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // n, (stop - 1) // n + 1)
    return torch.cat([_permutation(n, seed, e)[max(start - e * n, 0) : stop - e * n] for e in epochs])


@lru_cache(maxsize=4)      # an epoch and the next, of both ends of a bridge
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))
