"""Attention that is differentiated more than once."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any


def by_formula(needed: bool = True) -> AbstractContextManager[Any]:
    """A context in which PyTorch's attention is computed by its formula, if that is `needed`: its fused kernels have neither
    second derivatives nor batched ones. Memory then grows with the square of the number of places.

        with by_formula(create_graph):
            output = network(x, time)
    """
    if not needed:
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)
