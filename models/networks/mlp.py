"""A residual multilayer perceptron for points and other small events."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from scorefield.models.conditions import Condition
from scorefield.models.layers import timestep_embedding, zero_init
from scorefield.models.networks.low_res import LowResNetwork
from scorefield.numerics.errors import ArgumentError


class MLP(LowResNetwork):
    """(batch, *event) and time (batch,) to a tensor of the first one's shape.

    shape    of the event; it is flattened
    width    of the hidden layers, an even number of at least 4
    layers   residual blocks: LayerNorm, then Linear, time added, SiLU, Linear; the last Linear of each starts at zero
    classes  if given, it takes a label too, {"label": integers (batch,)} from 0 to `classes`, the last of which means "no
             label"; the label's embedding is added to that of time
    guidance if given, LOW,HIGH: it takes the scale of guidance, too, {"guidance": numbers (batch,)} between these
    low_res  channels of a second event that it takes, too, {"low_res": (batch, low_res, *sides)}, such as a small or damaged
             picture; of points, (batch, low_res): so many numbers that are known of them. 0: none (low_res.py)
    low_res_noise  whether it is told the noise in that, {"low_res_noise": (batch,)}

    Raises ArgumentError if the sizes do not fit. One use:

    >>> from scorefield.models import MLP
    >>> MLP((2,), width=32, layers=2)(torch.zeros(4, 2), torch.full((4,), 500.0)).shape
    torch.Size([4, 2])
    """

    last_layers = ("last",)

    def __init__(self, shape: tuple[int, ...], width: int = 128, layers: int = 4, classes: int | None = None,
                 guidance: Sequence[float] | None = None, low_res: int = 0, low_res_noise: bool = False):
        super().__init__()
        if width < 4 or width % 2 or layers < 1:
            raise ArgumentError("the MLP needs an even width of at least 4 and at least 1 layer, got "
                                f"{width} and {layers}", "width", "layers")
        d = math.prod(shape)
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Linear(d + low_res * math.prod(shape[1:]), width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.outer = nn.ModuleList(zero_init(nn.Linear(width, width)) for _ in range(layers))
        self.last = zero_init(nn.Linear(width, d))
        self._take_labels(classes, width, guidance=guidance)      # last, as it draws numbers
        self._take_low_res(low_res, low_res_noise, width, width)

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        embedding = self.time(timestep_embedding(time, self.width).to(self.first.weight.dtype))
        embedding = self._with_condition(embedding, condition)
        h = self.first(self._joined(x, condition).flatten(1))
        for norm, inner, outer in zip(self.norms, self.inner, self.outer, strict=True):
            h = h + outer(F.silu(inner(norm(h)) + embedding))
        return self.last(F.silu(h)).unflatten(1, (-1, *x.shape[2:]))
