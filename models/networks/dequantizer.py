"""A flow q(u given k) on [0, 1)^D that dequantises pictures (Ho et al. 2019, "Flow++", section 3.1).

Level k of an element fills the bin of the numbers k + u. With u drawn from q, Jensen's inequality gives

    -log P(k) <= E_q [ -log p(k + u) + log q(u given k) ]

with equality where q is p within the bin, given it; uniform u is the case q = 1. The flow begins with uniform r:

    z = logit r;   z <- a z + b, several times;   u = sigmoid z
    log q = - sum [ log a + log sigmoid'(z at the end) - log sigmoid'(z at the start) ]

a and b of the first step depend on k alone. Those of each further one, a coupling (Dinh et al. 2017, "Density Estimation
Using Real NVP"), see the elements of one colour of a checkerboard and move the others. An untrained flow is the identity, to
the bit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefield.models.layers import zero_init
from scorefield.numerics.errors import ArgumentError

MOST = 2.0       # of |log a| in one step


class Dequantizer(nn.Module):
    """u and log q(u given k) for pictures (batch, channels, height, width) of any size, one element or one channel, too.

    channels   of the pictures
    width      channels of its networks
    couplings  steps after the first one

    Raises ArgumentError for sizes below 1. One use:

    >>> from scorefield.models import Dequantizer
    >>> u, log_q = Dequantizer(channels=1)(torch.zeros(4, 1, 8, 8), torch.rand(4, 1, 8, 8))
    >>> u.shape, log_q.shape
    (torch.Size([4, 1, 8, 8]), torch.Size([4]))
    """

    def __init__(self, channels: int, width: int = 32, couplings: int = 4):
        super().__init__()
        for name, size in (("channels", channels), ("width", width), ("couplings", couplings)):
            if size < 1:
                raise ArgumentError(f"{name} of a dequantizer must be at least 1, got {size}", name)
        self.channels = channels
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.seen = nn.ModuleList(nn.Conv2d(channels, width, 3, padding=1) for _ in range(couplings))
        self.steps = nn.ModuleList(zero_init(nn.Conv2d(width, 2 * channels, 3, padding=1)) for _ in range(couplings + 1))

    def forward(self, centre: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """u in [0, 1], of r's shape and dtype, and log q(u given k) in nats (batch,), of uniform r in [0, 1).

        centre  of each element's bin in the model's units, where k is told apart: codec.dense.encode(k, one half)
        """
        start = z = _logit(r)
        log_q, features = -_log_slope(z), self._features(centre)
        for i in range(len(self.steps)):
            log_a, b = self._step(i, features, z)
            z, log_q = z * log_a.exp() + b, log_q + log_a
        u = r + (z.sigmoid() - start.sigmoid())      # not sigmoid z alone: the identity gives r itself
        return u.clamp(0, 1), -(log_q + _log_slope(z)).flatten(1).sum(1)

    def inverse(self, centre: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """r, and log q(u given k) in nats (batch,): `forward` of that r gives u."""
        return self.inverse_of_logits(centre, _logit(u))

    def inverse_of_logits(self, centre: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """As `inverse`, of z = logit u, which tells apart numbers near the ends that u rounds to one."""
        log_q, features = _log_slope(z), self._features(centre)
        for i in reversed(range(len(self.steps))):
            log_a, b = self._step(i, features, z)
            z, log_q = (z - b) * (-log_a).exp(), log_q + log_a
        return z.sigmoid(), -(log_q - _log_slope(z)).flatten(1).sum(1)

    def _features(self, centre: Tensor) -> Tensor:
        if centre.ndim != 4 or centre.shape[1] != self.channels:
            raise ArgumentError(f"this dequantizer takes pictures (batch, {self.channels}, height, width), got "
                                f"{tuple(centre.shape)}", "k")
        h = self.enter(centre.to(self.enter.weight.dtype))
        for block in self.blocks:
            h = h + block(F.silu(h))
        return h

    def _step(self, i: int, features: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """log a and b of a step. Both are 0 for the elements that a coupling sees, so its inverse sees the same."""
        h = features
        if i:
            moves = _checkerboard(z, i)
            h = h + self.seen[i - 1](((2 * z.sigmoid() - 1) * ~moves).to(h.dtype))
        raw, b = self.steps[i](F.silu(h)).to(z.dtype).chunk(2, 1)
        log_a = MOST * torch.tanh(raw / MOST)
        return (log_a * moves, b * moves) if i else (log_a, b)


def dequantizer_for(channels: int, width: int, axes: int = 2) -> Dequantizer | None:
    """The dequantizer of a network of so many channels; None for width 0. ArgumentError for a series
    and for a width below 0.
    """
    if width and axes != 2:
        raise ArgumentError("a dequantizer is for pictures (channels, height, width); set dequantizer to 0", "dequantizer")
    if width < 0:
        raise ArgumentError(f"dequantizer must be a width, or 0 for none, got {width}", "dequantizer")
    return Dequantizer(channels, width) if width else None


def dequantizer_of(model: nn.Module) -> Dequantizer | None:
    """The dequantizer in a model, however it is wrapped, or None."""
    return next((module for module in model.modules() if isinstance(module, Dequantizer)), None)


def _checkerboard(x: Tensor, colour: int) -> Tensor:
    """Whether an element of a picture has that colour, 0 or 1; neighbours in space and across channels differ."""
    sides = [torch.arange(n, device=x.device) for n in x.shape[1:]]
    return (sides[0][:, None, None] + sides[1][:, None] + sides[2] + colour) % 2 == 0


def _logit(r: Tensor) -> Tensor:
    """Finite at the ends, too, which random numbers reach."""
    least = torch.finfo(r.dtype).eps / 4
    return r.clamp(least, 1 - 2 * least).logit()


def _log_slope(z: Tensor) -> Tensor:
    """log sigmoid'(z)."""
    return F.logsigmoid(z) + F.logsigmoid(-z)
