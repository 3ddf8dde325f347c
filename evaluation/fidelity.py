"""How near a picture is to the true one: PSNR and SSIM, of pictures in which 0 is black and 1 is white."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefield.numerics.errors import ArgumentError

WINDOW, STD = 11, 1.5      # of SSIM's Gaussian weights, in pixels
C1, C2 = 0.01**2, 0.03**2


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (batch,): -10 log10 of the mean square error; infinite for equal pictures.

    Both (batch, *event); numbers outside [0, 1] count as the nearest of these. One use:

    >>> from scorefield.evaluation.fidelity import psnr
    >>> round(float(psnr(torch.full((1, 1, 4, 4), 0.6), torch.full((1, 1, 4, 4), 0.5))), 3)
    20.0
    """
    error = (x.double().clamp(0, 1) - truth.double().clamp(0, 1)).flatten(1).square().mean(1)
    return -10 * error.log10()


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity, (batch,): the mean over all places of the window, and over channels.

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", section III-B: Gaussian
    weights of 11 x 11 pixels and standard deviation 1.5, cut to the largest odd size that fits into smaller pictures. Both
    (batch, channels, height, width), clamped as in `psnr`. ArgumentError for other shapes.
    """
    if x.ndim != 4 or x.shape != truth.shape:
        raise ArgumentError(f"ssim is of pictures (batch, channels, height, width), got {tuple(x.shape)} and "
                            f"{tuple(truth.shape)}", "x")
    x, y = x.double().clamp(0, 1), truth.double().clamp(0, 1)
    rows, columns = (_weights(side, x) for side in x.shape[2:])
    kernel = (rows[:, None] * columns).expand(x.shape[1], 1, -1, -1)

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(z, kernel, groups=z.shape[1])

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    similarity = (2 * mx * my + C1) * (2 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return similarity.flatten(1).mean(1)


def _weights(side: int, like: Tensor) -> Tensor:
    size = min(WINDOW, side - (side + 1) % 2)
    place = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    weights = (-place.square() / (2 * STD**2)).exp()
    return weights / weights.sum()
