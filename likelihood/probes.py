"""Random vectors v with E[v v^T] = I for the Hutchinson estimate v^T J v of a trace, along a trajectory of nodes.

An adaptive solver needs a smooth field, and so the same v at every node. On a fixed grid each node may have its own: the
estimate of sum_i a_i tr J_i keeps its mean, and the errors of nodes average out instead of adding up. The vectors:

    rademacher   independent signs: the variance of v^T J v is 2 sum_(j != k) S_jk^2, with S = (J + J^T) / 2
    gaussian     N(0, I): the variance is that plus 2 sum_j S_jj^2
    hadamard     v = s * h_r, elementwise: s one vector of random signs for an example, h_r a row of the Hadamard matrix of
                 order N (Sylvester's, N the next power of two; its first D columns), another row at each node, at random

Each row of "hadamard" is distributed as rademacher. Those of two nodes have the covariance -2 sum S_jk S'_jk / (N - 1) over
j != k, as N orthogonal rows give the exact trace together; so nodes whose J are alike average out faster than independent
ones. After N nodes the rows and s are drawn anew.

Hutchinson 1990; FFJORD (Grathwohl et al. 2019) for one v along a trajectory. Hadamard rows as probes are those of Fika and
Koukouvinos 2017 ("Stochastic estimates for the trace of functions of matrices via Hadamard matrices").
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scorefield.numerics.noise import PROBES, NoiseStream, Seed

HADAMARD = "hadamard"
PROBE_KINDS = ("rademacher", "gaussian", HADAMARD)
Probes = Callable[[], Tensor]      # the vectors (number, batch, *event) of the next node


def probes_along(x: Tensor, kind: str | None, number: int, seeds: Sequence[Seed], nodes: int, fresh: bool) -> Probes:
    """Draws for x (batch, *event): new vectors at each of `nodes` nodes if fresh, else the same at all of them.

    kind  one of PROBE_KINDS, "hadamard" only if fresh; None: "hadamard" if fresh, else "rademacher"

    The vectors of an example depend on its seed and on the number of the node alone.
    """
    noise = NoiseStream(seeds, PROBES)
    if fresh and kind in (None, HADAMARD):
        return _HadamardRows(x, number, noise, nodes)
    draw = noise.normal if kind == "gaussian" else noise.rademacher

    def vectors() -> Tensor:
        return torch.stack([draw(x) for _ in range(number)])

    if fresh:
        return vectors
    kept = vectors()
    return lambda: kept


class _HadamardRows:
    """v of node i is s times row r_i, for `number` independent s and orders of rows; any number of nodes."""

    def __init__(self, x: Tensor, number: int, noise: NoiseStream, nodes: int):
        self.x, self.number, self.noise, self.node = x, number, noise, 0
        d = x[0].numel()
        self.order = 1 << (d - 1).bit_length()
        self.block = min(self.order, nodes)      # nodes until rows and s are drawn anew
        self.columns = torch.arange(d, device=x.device)
        self.signs = self.rows = x

    def __call__(self) -> Tensor:
        place = self.node % self.block
        if place == 0:
            self.signs = torch.stack([self.noise.rademacher(self.x) for _ in range(self.number)])
            rows = torch.stack([self.noise.distinct(self.block, self.order) for _ in range(self.number)])
            self.rows = rows.to(self.x.device)      # (number, batch, block)
        self.node += 1
        odd = _parity(self.rows[:, :, place, None] & self.columns).view_as(self.signs)
        return torch.where(odd, -self.signs, self.signs)


def _parity(n: Tensor) -> Tensor:
    """Whether each integer of `n` (not negative) has an odd number of binary ones."""
    for shift in (32, 16, 8, 4, 2, 1):
        n = n ^ (n >> shift)
    return (n & 1).bool()
