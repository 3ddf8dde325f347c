"""Feature networks: pictures in, vectors out.

A metric of pictures compares the features of a network: Inception's, a classifier's of the project, or any of the user's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.data import Dataset
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import digest


class Features:
    """A network (or any function) from pictures (B, C, H, W) to features (B, D).

        features = Features(lambda pictures: pictures.flatten(1).float() / 255, name="pixels")

    network  is called with uint8 pictures, 0 .. levels-1. With `classes` it gives a pair: features, and logits (B, classes)
    name     for messages
    shape    (C, H, W) that the network takes; None: any
    levels   of the pictures that it takes; those of a data set with others are scaled and rounded
    classes  that its logits are of; None: it has none, and is good for no inception_score
    weights  SHA-256 of its weights, for the cache; that of a torch module is computed
    """

    def __init__(self, network: Callable[[Tensor], Any], name: str = "features", shape: tuple[int, ...] | None = None,
                 levels: int = 256, classes: int | None = None, weights: str | None = None):
        self.network, self.name, self.shape, self.levels, self.classes = network, name, shape, levels, classes
        self._weights = weights
        if isinstance(network, nn.Module):
            network.eval()

    @property
    def digest(self) -> str:
        """SHA-256 of the name, the levels and the weights."""
        if self._weights is None:
            self._weights = digest(self.network.state_dict()) if isinstance(self.network, nn.Module) else ""
        return digest([self.name, self.levels, self._weights])

    def check(self, dataset: Dataset) -> None:
        """ArgumentError unless the network takes the examples of a data set."""
        if dataset.levels is None or len(dataset.shape) != 3:
            raise ArgumentError(f"the feature network {self.name!r} takes pictures of integer levels, but data set "
                                f"{dataset.name!r} has examples of shape {dataset.shape}"
                                f"{' that are reals' if dataset.levels is None else ''}", "features")
        if self.shape is not None and dataset.shape != self.shape:
            raise ArgumentError(f"the feature network {self.name!r} takes pictures of shape {self.shape}, but those of data "
                                f"set {dataset.name!r} have {dataset.shape}", "features")

    @torch.no_grad()
    def outputs(self, x: Tensor, levels: int | None) -> dict[str, Tensor]:
        """The features (B, D), and the logits if it has classes, of pictures with these levels; float32, on the CPU.

        ArgumentError if the network does not take the pictures, or gives anything else or numbers that are not finite.
        """
        if levels is not None and levels != self.levels:
            x = (x.double() * ((self.levels - 1) / (levels - 1))).round().to(torch.uint8)
        if isinstance(self.network, nn.Module):
            self.network.to(x.device)
        try:
            with torch.backends.cudnn.flags(allow_tf32=False):      # whose ten bits a Frechet distance shows
                y = self.network(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ArgumentError(f"the feature network {self.name!r} does not take pictures of shape {tuple(x.shape[1:])} "
                                f"({textwrap.shorten(str(error), 200)})", "features") from error
        parts = y if isinstance(y, tuple) and self.classes is not None else (y,)
        found = {}
        for part, name, wanted in zip(parts, ("features", "logits"), ("D", self.classes), strict=False):
            if not isinstance(part, Tensor) or part.ndim != 2 or len(part) != len(x) or wanted not in ("D", part.shape[1]):
                got = f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"a {type(part).__name__}"
                raise ArgumentError(f"the feature network {self.name!r} must give {name} of shape ({len(x)}, {wanted}), got "
                                    f"{got}", "features")
            if name == "features" and not bool(part.isfinite().all()):
                raise ArgumentError(f"the feature network {self.name!r} gave features that are not finite", "features")
            found[name] = part.float().cpu()
        return found


def features_of(name: str | None, dataset: Dataset) -> Features | None:
    """The feature network of that name for a data set; None for points, and where there is none."""
    if name is None:
        return None
    raise ArgumentError(f"unknown feature network {name!r}", "features")
