"""Units in which the pictures of the papers report errors."""

from __future__ import annotations

import torch
from torch import Tensor

from scorefield.data import Codec, Points
from scorefield.data.codec import DequantizedPixels, Pixels


def data_scale(codec: Codec, event: tuple[int, ...]) -> Tensor:
    """How much of the data's scale one unit of the model is: float64, to be multiplied with errors (batch, *event).

    Of pictures, levels: 127.5 where 0 .. 255 are the numbers from -1 to 1. Of points, the standard deviation of each column
    or channel.
    """
    if isinstance(codec, Pixels):
        steps = codec.levels if isinstance(codec, DequantizedPixels) else codec.levels - 1
        return torch.tensor(steps / (codec.high - codec.low), dtype=torch.float64)
    std = codec.std if isinstance(codec, Points) else 1.0
    scale = torch.tensor(std, dtype=torch.float64)
    return scale.reshape(-1, *[1] * (len(event) - 1)) if scale.ndim else scale


def unit_range(codec: Codec) -> float:
    """The width, in units of the model, that counts as 1: the range of pictures; of points, one unit of the model."""
    return codec.high - codec.low if isinstance(codec, Pixels) else 1.0
