"""The probability of levels under a Gaussian: the decoder of pixels (Ho et al. 2020, equation 13)."""

import math

import torch
from torch import Tensor


def discretised_log_prob(k: Tensor, mean: Tensor, std: float | Tensor, levels: int, low: float = -1.0, high: float = 1.0,
                         dequantized: bool = False) -> Tensor:
    """log P(k) in nats, (batch,), for N(mean, std^2 I) gathered into levels (Ho et al. 2020, equation 13).

    k and mean (batch, *event); std a number, or of their shape. Neighbouring levels meet half-way between their centres; the
    outer ones go on to infinity. Worked out in float64 on the CPU, as not every accelerator has it, and in the lower tail,
    where the distribution function keeps its relative accuracy.
    """
    width = (high - low) / (levels if dequantized else levels - 1)
    edges = low + width * (torch.arange(levels + 1, dtype=torch.float64) - (0.0 if dequantized else 0.5))
    far = 1e6 * (high - low) if torch.is_grad_enabled() else math.inf      # which has no gradient
    edges[0], edges[-1] = -far, far
    k, centre = k.long().cpu(), mean.double().cpu()
    std = std.double().cpu() if isinstance(std, Tensor) else std
    a, b = (edges[k] - centre) / std, (edges[k + 1] - centre) / std
    upper = a + b > 0
    a, b = torch.where(upper, -b, a), torch.where(upper, -a, b)
    log_b = torch.special.log_ndtr(b)
    log_p = log_b + torch.log(-torch.expm1(torch.special.log_ndtr(a) - log_b))
    return log_p.flatten(1).sum(1).to(mean)
