"""Euclidean distances of many pairs, in blocks that bound the memory.

|a - b|^2 = |a|^2 + |b|^2 - 2 <a, b> is a product of matrices. It loses digits where a and b are near each other but far from
zero, so vectors are centred first. It is computed in float64 in few dimensions and in float32, which is twice as fast, in
many; distances to nearest neighbours are then computed again as they are defined, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError

FEW = 64           # dimensions
PAIRS = 2**22      # in memory at a time; on a GPU, 16 times as many
ELEMENTS = 2**26   # of one block of vectors as reals
SPARE = 6          # nearest neighbours that are computed again beyond those wanted: float32 may change their order


def mean_of(y: Tensor, reals: Callable[[Tensor], Tensor] = lambda rows: rows) -> Tensor:
    """The mean (D,) of rows y (m, D), float64."""
    blocks = y.split(max(1, ELEMENTS // y.shape[1]))
    return sum((reals(rows).sum(0, dtype=torch.float64) for rows in blocks), y.new_zeros((), dtype=torch.float64)) / len(y)


def precision_of(y: Tensor) -> torch.dtype:
    """Of the products of rows."""
    return torch.float64 if y.shape[1] <= FEW else torch.float32


def less_mean(x: Tensor, mean: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """x - mean, rounded to dtype only then if either is finer, on the device."""
    if torch.float64 in (dtype, x.dtype):
        return (x.double() - mean).to(dtype).to(device)
    return (x - mean.float()).to(device)


def centred(x: Tensor, y: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y less the mean of y, in the precision of their products, on the device."""
    mean, dtype = mean_of(y), precision_of(y)
    return less_mean(x, mean, dtype, device), less_mean(y, mean, dtype, device)


def squared_distances(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """|a_i - b_j|^2 of rows a (n, D) and b (m, D): (n, m), in `out` if it is given."""
    squares = torch.addmm(b.square().sum(1), a, b.T, alpha=-2, out=out)
    return squares.add_(a.square().sum(1)[:, None]).clamp_min_(0)


def by_rows(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The squared distances of rows of x to all of y, block by block, with the place of the rows. Each block overwrites the
    one before.
    """
    pairs = PAIRS if x.device.type == "cpu" else 16 * PAIRS
    rows = min(len(x), max(1, pairs // len(y)))
    buffer = x.new_empty(rows, len(y))
    for begin in range(0, len(x), rows):
        block = x[begin:begin + rows]
        yield slice(begin, begin + len(block)), squared_distances(block, y, buffer[:len(block)])


def nearest(x: Tensor, y: Tensor, k: int, device: torch.device, same: bool = False,
            reals: Callable[[Tensor], Tensor] = lambda rows: rows) -> tuple[Tensor, Tensor]:
    """The distances (n, k), float64 and ascending, from each x (n, D) to its k nearest of y (m, D), and their indices.

    same   x is y, and no row is its own neighbour
    reals  what makes reals of rows: y as bytes takes a quarter of the memory, and only a block of it at a time more

    ArgumentError if there are fewer than k others.
    """
    if len(y) - same < k:
        raise ArgumentError(f"{k} nearest neighbours need at least {k + same} training examples, got {len(y)}",
                            "reference_samples")
    mean, dtype, wanted = mean_of(y, reals), precision_of(y), min(k + SPARE, len(y) - same)
    a, blocks = less_mean(reals(x), mean, dtype, device), y.split(max(1, ELEMENTS // y.shape[1]))
    squares, candidates = a.new_full((len(x), wanted), torch.inf), torch.zeros(len(x), wanted, dtype=torch.int64)
    for begin, block in zip(range(0, len(y), len(blocks[0])), blocks, strict=True):
        for place, found in by_rows(a, less_mean(reals(block), mean, dtype, device)):
            if same:
                own = torch.arange(place.start, place.stop, device=device) - begin
                inside = (own >= 0) & (own < len(block))
                found[inside.nonzero()[:, 0], own[inside]] = torch.inf
            near = found.topk(min(wanted, len(block)), largest=False)
            both = torch.cat([squares[place], near.values], 1).topk(wanted, largest=False)
            squares[place] = both.values
            candidates[place] = torch.cat([candidates[place], near.indices.cpu() + begin], 1).gather(1, both.indices.cpu())
    distances, index = torch.empty(len(x), k, dtype=torch.float64), torch.empty(len(x), k, dtype=torch.int64)
    for place in torch.arange(len(x)).split(max(1, PAIRS // (wanted * x.shape[1]))):
        exact = reals(x[place]).double()[:, None] - reals(y[candidates[place]]).double()
        ascending, order = exact.square().sum(2).sqrt().cpu().sort(dim=1, stable=True)
        distances[place], index[place] = ascending[:, :k], candidates[place].gather(1, order)[:, :k]
    return distances, index
