"""Feature networks: pictures in, vectors out.

A metric of pictures compares the features of a network: Inception's, a classifier's of the project, or any of the user's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scorefield.data import Dataset
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import digest


class Features:
    """A network (or any function) from pictures (B, C, H, W) to features (B, D).

        features = Features(lambda pictures: pictures.flatten(1).float() / 255, name="pixels")

    network  is called with uint8 pictures, 0 .. levels-1
    name     for messages
    shape    (C, H, W) that the network takes; None: any
    levels   of the pictures that it takes; those of a data set with others are scaled and rounded
    digest   SHA-256 of its weights, for the cache. That of a torch module is computed; any other function is asked for one
             only where statistics are cached, and is then told apart by its name
    """

    def __init__(self, network: Callable[[Tensor], Tensor], name: str = "features", shape: tuple[int, ...] | None = None,
                 levels: int = 256, digest_of: str | None = None):
        self.network, self.name, self.shape, self.levels = network, name, shape, levels
        self._digest = digest_of

    @property
    def digest(self) -> str:
        if self._digest is None:
            weights = digest(self.network.state_dict()) if isinstance(self.network, nn.Module) else ""
            self._digest = hashlib.sha256(f"{self.name} {self.levels} {weights}".encode()).hexdigest()
        return self._digest

    def check(self, dataset: Dataset) -> None:
        """ArgumentError unless the network takes the examples of a data set."""
        if dataset.levels is None or len(dataset.shape) != 3:
            raise ArgumentError(f"the feature network {self.name!r} takes pictures of integer levels, but data set "
                                f"{dataset.name!r} has reals of shape {dataset.shape}", "features")
        if self.shape is not None and dataset.shape != self.shape:
            raise ArgumentError(f"the feature network {self.name!r} takes pictures of shape {self.shape}, but those of data "
                                f"set {dataset.name!r} have {dataset.shape}", "features")

    @torch.no_grad()
    def vectors(self, x: Tensor, levels: int | None) -> Tensor:
        """The features (B, D) of pictures with these levels, float32, on the CPU."""
        if levels is not None and levels != self.levels:
            x = (x.double() * ((self.levels - 1) / (levels - 1))).round().to(torch.uint8)
        y = self.network(x)
        if not isinstance(y, Tensor) or y.ndim != 2 or len(y) != len(x):
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ArgumentError(f"the feature network {self.name!r} must give features of shape ({len(x)}, D), got {got}",
                                "features")
        return y.float().cpu()


def features_of(name: str | None, dataset: Dataset) -> Features | None:
    """The feature network of that name for a data set; None for points, and where there is none."""
    if name is None:
        return None
    raise ArgumentError(f"unknown feature network {name!r}", "features")
