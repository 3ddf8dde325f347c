"""What is left of a picture, for degradations of data (data/degradations.py) and operators (guidance/operators) alike:
resampling, weighted sums of channels, halves and boxes.

The rows of R (h, H) are the weights of a resampling kernel k of the width `factor`,

    R_ij proportional to k((j + 1/2 - c_i) / factor)      c_i = (i + 1/2) factor      rows sum to 1

box is the mean of a block, linear a triangle, bicubic Keys's kernel with a = -1/2 (Keys 1981), which is how super-resolution
makes its small pictures. Without antialiasing the kernel keeps the width of one pixel (Keys's with a = -3/4, as PyTorch's).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

KERNELS = ("box", "linear", "bicubic")
HALVES = {"left": (-1, 0), "right": (-1, 1), "top": (-2, 0), "bottom": (-2, 1)}      # axis, and which part of it


def resampling_matrix(n: int, factor: int, kernel: str = "box", antialias: bool = True) -> Tensor:
    """The weights (n / factor, n) of a row or column of pictures made `factor` times smaller, float64; rows sum to 1."""
    small = n // factor
    scale = factor if antialias or kernel == "box" else 1
    centre = (torch.arange(small, dtype=torch.float64) + 0.5) * factor
    reach = 2 * scale + 1      # pixels beyond the border repeat those on it without antialiasing, and weigh 0 with it
    place = torch.arange(-reach, n + reach, dtype=torch.float64)
    distance = ((place + 0.5 - centre[:, None]) / scale).abs()
    if kernel == "box":
        weights = (distance < 0.5).double()
    elif kernel == "linear":
        weights = (1 - distance).clamp(min=0)
    else:
        weights = _keys(distance, -0.5 if antialias else -0.75)
    matrix = weights[:, reach:-reach].clone()
    if not antialias:
        matrix[:, 0] += weights[:, :reach].sum(1)
        matrix[:, -1] += weights[:, -reach:].sum(1)
    return matrix / matrix.sum(1, keepdim=True)


def _keys(d: Tensor, a: float) -> Tensor:
    near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
    return torch.where(d < 1, near, torch.where(d < 2, far, 0))


def resampled(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """R x C^T for each channel of pictures x (batch, channels, H, W): (batch, channels, h, w)."""
    return rows.to(x) @ x @ columns.to(x).T


def weighted_channels(x: Tensor, weights: Tensor) -> Tensor:
    """The sum of the channels of x (batch, channels, height, width) by weights (channels,): (batch, 1, height, width)."""
    return torch.einsum("c,bchw->bhw", weights.to(x), x)[:, None]


def without_half(plane: Sequence[int], half: str) -> Tensor:
    """Which elements of a plane are known if one half is missing, bool (*plane); of an odd side the middle is missing, too.

    half  a key of HALVES
    """
    axis, part = HALVES[half]
    n = plane[axis]
    known = (torch.arange(n) < n // 2) if part else (torch.arange(n) >= n - n // 2)
    return known.reshape([-1 if i == len(plane) + axis else 1 for i in range(len(plane))]).expand(tuple(plane))


def in_box(plane: Sequence[int], share: float, u: Tensor | None = None) -> Tensor:
    """Which elements of a plane lie in a box of that share of each side, bool (*plane), in the middle; or (batch, *plane),
    at the places of u (batch, axes) in [0, 1), each of which is as likely.
    """
    inside = torch.ones((), dtype=torch.bool, device=None if u is None else u.device)
    for axis, n in enumerate(plane):
        width = round(share * n)
        start = torch.tensor((n - width) // 2) if u is None else (u[:, axis] * (n - width + 1)).long()
        place = torch.arange(n, device=start.device)
        along = (place >= start[..., None]) & (place < start[..., None] + width)
        inside = inside & along.reshape(*along.shape[:-1], *[n if i == axis else 1 for i in range(len(plane))])
    return inside
