"""The divergence of a vector field, sharing one forward evaluation with the field itself.

    exact        sum_i d field_i / d x_i, by products of the Jacobian with every basis vector, `chunk` at a time
    hutchinson   v^T J v for random v with E[v v^T] = I (Hutchinson 1990; Grathwohl et al. 2019, FFJORD)

With `gradients`, both results can be differentiated again, with respect to x and to what the field depends on.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from scorefield.numerics.attention import by_formula

Field = Callable[[Tensor], Tensor]


def with_exact_divergence(field: Field, x: Tensor, chunk: int = 32, gradients: bool = False) -> tuple[Tensor, Tensor]:
    """field(x) (batch, *event) and its divergence (batch,); memory grows with `chunk` products at once."""
    value, x = _forward(field, x, gradients, batched=True)
    d = x[0].numel()
    divergence = x.new_zeros(len(x))
    if not value.requires_grad:      # a constant field
        return value, divergence
    for start in range(0, d, chunk):
        stop = min(start + chunk, d)
        basis = torch.zeros(stop - start, d, dtype=x.dtype, device=x.device)
        basis[:, start:stop].fill_diagonal_(1.0)
        cotangents = basis.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
        rows = products(value, x, cotangents, gradients)
        divergence += (rows * cotangents).flatten(2).sum((0, 2))
    return value if gradients else value.detach(), divergence


def products(value: Tensor, x: Tensor, cotangents: Tensor, gradients: bool = False) -> Tensor:
    """The products v^T dvalue/dx, (number, *x.shape), of cotangents v (number, *value.shape); the graph is kept.

    They are made at once, or one by one where PyTorch cannot batch them: through a network in channels_last on CPUs.
    """
    with contextlib.suppress(RuntimeError):
        return torch.autograd.grad(value, x, cotangents, retain_graph=True, create_graph=gradients, is_grads_batched=True)[0]
    return torch.stack([torch.autograd.grad(value, x, v, retain_graph=True, create_graph=gradients)[0] for v in cotangents])


def with_hutchinson_divergence(field: Field, x: Tensor, probes: Tensor,
                               gradients: bool = False) -> tuple[Tensor, Tensor]:
    """field(x) (batch, *event) and v^T J v (number of probes, batch), for probes (number, batch, *event)."""
    value, x = _forward(field, x, gradients)
    if not value.requires_grad:
        return value, x.new_zeros(len(probes), len(x))
    estimates = []
    for i, probe in enumerate(probes):
        product, = torch.autograd.grad(value, x, probe, retain_graph=gradients or i + 1 < len(probes),
                                       create_graph=gradients)
        estimates.append((product * probe).flatten(1).sum(1))
    return value if gradients else value.detach(), torch.stack(estimates)


def _forward(field: Field, x: Tensor, gradients: bool, batched: bool = False) -> tuple[Tensor, Tensor]:
    with torch.enable_grad(), by_formula(gradients or batched):
        if not (gradients and x.requires_grad):
            x = x.detach().requires_grad_()
        return field(x), x
