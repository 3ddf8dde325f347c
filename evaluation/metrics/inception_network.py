"""The Inception network of the literature: Inception v3 with the weights of 2015-12-05, as torch-fidelity computes it.

Published Frechet distances use this one network, with its own weights, pooling and way of resizing; other Inception networks
give other numbers (Parmar et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation"). torch-fidelity
reproduces it and is an extra: pip install 'scorefield[metrics]'. Pictures are uint8 of one or three channels and any size;
grey ones are given three times. The features are the 2048 after the last pooling, the logits the 1008 without bias.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.numerics.errors import ArgumentError, MissingFileError
from scorefield.numerics.files import sha256_of

CLASSES = 1008
HASH = "6726825d"      # with which the SHA-256 of the weights begins, as their names end
OUTPUTS = ("2048", "logits_unbiased")


class Inception(nn.Module):
    """uint8 pictures (B, 1 or 3, H, W), 0 .. 255, to features (B, 2048) and logits (B, 1008)."""

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor = extractor

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        if pictures.shape[1] not in (1, 3):
            raise ValueError("pictures must have 1 or 3 channels")
        features, logits = self.extractor(pictures.expand(-1, 3, -1, -1))
        return features, logits


def find(weights: str | Path | None) -> Path:
    """The file of the weights: the user's, or the one that is downloaded once, into torch.hub's folder."""
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise MissingFileError(f"there is no file {str(path)!r} of Inception's weights", "weights")
        return path
    url = _package().URL_INCEPTION_V3
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=HASH, progress=False)
        except (OSError, RuntimeError) as error:
            raise MissingFileError(f"Inception's weights could not be downloaded from {url} "
                                   f"({textwrap.shorten(str(error), 100)}); give them as a local file, or another feature "
                                   "network", "weights", "features") from None
    return path


def load(path: Path) -> tuple[Inception, str]:
    """The network with the weights in a file of torch.save, and the file's SHA-256.

    ArgumentError unless they are those of the literature.
    """
    sha256 = sha256_of(path)
    if not sha256.startswith(HASH):
        raise ArgumentError(f"{path} does not hold the Inception weights of the literature (its SHA-256 begins with "
                            f"{sha256[:8]}, theirs with {HASH}); give pt_inception-2015-12-05-{HASH}.pth, or "
                            "NVIDIA's TorchScript file inception-2015-12-05.pt", "weights")
    torch.load(path, weights_only=True)      # before torch-fidelity loads it as a pickle that may hold anything
    extractor = _package().FeatureExtractorInceptionV3("inception-v3-compat", list(OUTPUTS),
                                                       feature_extractor_weights_path=str(path))
    return Inception(extractor).eval(), sha256


def _package() -> Any:
    try:
        from torch_fidelity import feature_extractor_inceptionv3  # an extra
    except (ImportError, RuntimeError) as error:      # torchvision raises RuntimeErrors where it does not fit torch
        raise ArgumentError(f"the Inception network needs the package torch-fidelity ({textwrap.shorten(str(error), 100)}): "
                            "pip install 'scorefield[metrics]', or give another feature network, or as weights NVIDIA's "
                            "TorchScript file inception-2015-12-05.pt", "features") from None
    return feature_extractor_inceptionv3
