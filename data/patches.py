"""Colour patches of 32x32 pixels from scikit-learn's two photographs, a temple and a flower: colour without a download.

Each photograph is 427 pixels high and 640 wide. It is cut into ten bands of 64 columns. Bands 3 and 8, counted from 0, are
held out, and the bands between them are the training part. A patch lies within one part, so no pixel of a held-out patch is
in a training patch. Patches begin at every eighth pixel:

    training   3 regions of 192, 256 and 64 columns: 21 + 29 + 5 places, in 50 rows, of 2 photographs: 5,500 patches
    held out   2 regions of 64 columns: 5 + 5 places, in 50 rows, of 2 photographs: 1,000 patches
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SIZE, STRIDE, BAND = 32, 8, 64
HELD_OUT = (3, 8)      # bands; with these the mean and the spread of both parts are nearly the same


def cut(photograph: np.ndarray) -> tuple[Tensor, Tensor]:
    """The training and the held-out patches, uint8 (N, 3, 32, 32), of a photograph (height, width, 3), row by row."""
    bands = torch.arange(photograph.shape[1]) // BAND
    held_out = torch.isin(bands, torch.tensor(HELD_OUT))
    patches = torch.from_numpy(photograph.copy()).unfold(0, SIZE, STRIDE).unfold(1, SIZE, STRIDE)
    inside = held_out.unfold(0, SIZE, STRIDE).float().mean(1)      # of each column of patches: the share that is held out
    train, test = (patches[:, inside == share].flatten(0, 1).contiguous() for share in (0, 1))
    return train, test


def photographs() -> list[np.ndarray]:
    """The two photographs, uint8 (427, 640, 3)."""
    from sklearn.datasets import load_sample_image  # slow to import

    return [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
