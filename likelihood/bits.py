"""Bits per dimension of integer data (Theis, van den Oord and Bethge 2016; Song et al. 2021, appendix E).

Integers k in 0 .. L-1 are scaled into [lo, hi] as x = lo + (hi - lo)(k + u)/L with u uniform on [0, 1), so that each
owns a cell of volume ((hi - lo)/L)^D, and Jensen's inequality gives

    -log2 P(k) <= E_u[-log2 p(x)] + D log2(L / (hi - lo))

The second term, over D, is the offset: 7 for bytes in [-1, 1], 8 for bytes in [0, 1].
"""

import math

from torch import Tensor


def bits_per_dim(log_prob: Tensor, dimensions: int, levels: int | None = 256, low: float = -1.0,
                 high: float = 1.0) -> Tensor:
    """-log2 p / D + log2(L / (hi - lo)), in bits, for log-densities in nats of any shape.

    dimensions   D, the number of elements of an event
    levels       L, the number of integer levels of the data, scaled to [low, high]; None for continuous data, whose
                 density has no offset
    """
    if dimensions < 1 or (levels is not None and levels < 2) or not low < high:
        raise ValueError(f"need dimensions >= 1, levels >= 2 and low < high, got {dimensions}, {levels}, {low}, {high}")
    offset = 0.0 if levels is None else math.log2(levels / (high - low))
    return -log_prob / (dimensions * math.log(2)) + offset
