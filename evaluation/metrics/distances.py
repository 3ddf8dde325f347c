"""Euclidean distances of many pairs, in blocks that bound the memory.

|a - b|^2 = |a|^2 + |b|^2 - 2 <a, b> is a product of matrices. It loses digits where a and b are near each other but far from
zero, so vectors are centred first. It is computed in float64 in few dimensions and in float32, which is twice as fast, in
many; distances to nearest neighbours are then computed again as they are defined, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

FEW = 64           # dimensions
PAIRS = 2**22      # in memory at a time; on a GPU, 16 times as many
SPARE = 6          # nearest neighbours that are computed again beyond those wanted: float32 may change their order


def centred(x: Tensor, y: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y less the mean of y, in the precision of their products, on the device."""
    mean, dtype = y.double().mean(0), torch.float64 if y.shape[1] <= FEW else torch.float32
    return tuple((z.double() - mean).to(dtype).to(device) if dtype == torch.float64 or z.dtype == torch.float64
                 else (z - mean.float()).to(device) for z in (x, y))      # type: ignore[return-value]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 of rows a (n, D) and b (m, D): (n, m)."""
    squares = torch.addmm(b.square().sum(1), a, b.T, alpha=-2)
    return squares.add_(a.square().sum(1)[:, None]).clamp_min_(0)


def row_blocks(x: Tensor, columns: int) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of x, with their places; each is few enough for a matrix with so many columns."""
    pairs = PAIRS if x.device.type == "cpu" else 16 * PAIRS
    rows = max(1, pairs // max(1, columns))
    for begin in range(0, len(x), rows):
        yield slice(begin, begin + rows), x[begin:begin + rows]


def nearest(x: Tensor, y: Tensor, k: int, device: torch.device, same: bool = False) -> tuple[Tensor, Tensor]:
    """The distances (n, k), float64 and ascending, from each x (n, D) to its k nearest of y (m, D), and their indices.

    same  x is y, and no row is its own neighbour
    """
    a, b = centred(x, y, device)
    wanted = min(k + SPARE, len(y) - same)
    found = []
    for place, rows in row_blocks(a, max(len(b), wanted * x.shape[1])):
        squares = squared_distances(rows, b)
        if same:
            own = torch.arange(len(rows), device=device)
            squares[own, own + place.start] = torch.inf
        candidates = squares.topk(wanted, largest=False).indices.cpu()
        exact = (x[place].double()[:, None] - y[candidates].double()).square().sum(2).sqrt()
        distances, order = exact.sort(dim=1, stable=True)
        found.append((distances[:, :k], candidates.gather(1, order)[:, :k]))
    return torch.cat([distances for distances, _ in found]), torch.cat([index for _, index in found])
