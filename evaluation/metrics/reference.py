"""The data that samples are compared with, and a cache of what is computed from them alone.

A cached statistic belongs to the contents of the examples, the weights of the feature network and the statistic's own name:
its file's name and its contents hold the SHA-256 of all of these, so the statistics of other data are never taken for these.
A file that is damaged is computed again.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.data import Codec, Dataset
from scorefield.evaluation.metrics.features import Features
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import write_atomically

VERSION = 1      # of the statistics: a change of how one is computed makes the cached ones those of another version
BATCH = 256
Arrays = dict[str, np.ndarray]


class Reference:
    """The training examples of a data set, and the held-out ones for the floor.

        reference = Reference(dataset, make_codec(dataset.levels))

    codec     of the model: for points, what encodes them as the model sees them
    features  the network whose features are compared; None compares the examples themselves
    cache     a folder for the statistics; None keeps them in memory only
    n         how many training examples, evenly spaced among all; None: all
    device    where the feature network and the distances are computed

    ArgumentError if the feature network does not take pictures of this shape.
    """

    def __init__(self, dataset: Dataset, codec: Codec, features: Features | None = None, cache: Path | None = None,
                 n: int | None = None, device: torch.device | str = "cpu"):
        if n is not None and n < 2:
            raise ArgumentError(f"a reference needs at least 2 training examples, got {n}", "reference_samples")
        self.dataset, self.codec, self.features, self.cache = dataset, codec, features, cache
        self.device = torch.device(device)
        self.arithmetic = torch.device("cpu") if self.device.type == "mps" else self.device      # float64
        total = len(dataset.train)
        self.size = total if n is None else min(n, total)
        self.held_out = len(dataset.test)
        if self.size < 2:
            raise ArgumentError(f"data set {dataset.name!r} has {total} training examples; a reference needs at least 2",
                                "dataset")
        if features is not None:
            features.check(dataset)
        self._index = {"train": torch.arange(self.size) * total // self.size, "test": torch.arange(self.held_out)}
        self._known: dict[str, Arrays] = {}
        self._digest: str | None = None
        self._last: tuple[Tensor, int, dict[str, Tensor]] | None = None

    def vectors_of(self, x: Tensor, space: str, first: int = 0) -> Tensor:
        """What metrics compare: examples (B, *shape) as vectors (B, D) on the CPU.

        In the space "features" these are the network's features, float32. In "data", and without a network, they are the
        elements, of integer levels as shares k / (levels - 1).
        """
        self._check(x, first)
        if self._last is None or self._last[0] is not x or self._last[1] != x._version:
            self._last = x, x._version, {}      # a reference to x, so that no other tensor takes its place
        known = self._last[2]
        space = "data" if self.features is None else space
        if space not in known:
            known[space] = self._elements(x) if space == "data" else self._features(x)
        return known[space]

    def vectors(self, split: str, space: str, n: int | None = None) -> Tensor:
        """The vectors (N, D) of a split, or of n of its examples, evenly spaced."""
        space = "data" if self.features is None else space
        if space == "data":
            name = f"elements_{split}"
            if name not in self._known:      # as quick to read as a cache of them
                rows = [self._elements(self._read(split, index)) for index in self._batches(split)]
                self._known[name] = {"x": torch.cat(rows).numpy()}
            x = torch.from_numpy(self._known[name]["x"])
        else:
            x = torch.from_numpy(self.arrays(f"features_{split}", lambda: {"x": torch.cat(
                [self._features(self._read(split, i)) for i in self._batches(split)]).numpy()})["x"])
        return x if n is None or n == len(x) else x[torch.arange(n) * len(x) // n]

    def number(self, name: str, compute: Callable[[], float]) -> float:
        """A cached number."""
        return float(self.arrays(name, lambda: {"value": np.array(compute(), dtype=np.float64)})["value"])

    def arrays(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """A cached statistic: arrays by name. `name` must say all that it depends on beside the data and the network."""
        if name not in self._known:
            self._known[name] = self._stored(name, compute)
        return self._known[name]

    @property
    def digest(self) -> str:
        """SHA-256 of the examples of both splits as they are compared, and of the feature network."""
        if self._digest is None:
            hasher = hashlib.sha256(f"{VERSION} {self.codec if self.dataset.levels is None else self.dataset.levels} "
                                    f"{self.features.digest if self.features else None}".encode())
            for split in ("train", "test"):
                for index in self._batches(split):
                    x = self._read(split, index)
                    hasher.update(f"{split} {x.dtype} {tuple(x.shape)}".encode())
                    hasher.update(x.contiguous().numpy().tobytes())
            self._digest = hasher.hexdigest()
        return self._digest

    def _stored(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        if self.cache is None:
            return compute()
        key = hashlib.sha256(f"{name} {self.digest}".encode()).hexdigest()
        path = self.cache / f"{name}_{key[:16]}.npz"
        try:
            with np.load(path) as file:
                arrays = {k: file[k] for k in file.files}      # checks each array's checksum
            if str(arrays.pop("key")) == key:
                return arrays
        except Exception:      # missing or damaged: the parsers of damaged files raise errors of every type
            pass
        arrays = compute()
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: np.savez(file, key=np.array(key), **arrays))
        except OSError as error:
            warnings.warn(f"the statistics of the data could not be kept in {self.cache} ({error})", stacklevel=2)
        return arrays

    def _batches(self, split: str) -> tuple[Tensor, ...]:
        return self._index[split].split(BATCH)

    def _read(self, split: str, index: Tensor) -> Tensor:
        """Examples as `vectors_of` takes them."""
        x = (self.dataset.train if split == "train" else self.dataset.test)[index][0]
        return x if self.dataset.levels is not None else self.codec.encode(x)

    def _check(self, x: Tensor, first: int) -> None:
        shape, levels = self.dataset.shape, self.dataset.levels
        if x.shape[1:] != shape:
            raise ArgumentError(f"the samples have shape {tuple(x.shape[1:])}, but the examples of data set "
                                f"{self.dataset.name!r} have {shape}", "samples")
        if x.is_floating_point() is (levels is not None):
            wanted = ("reals, as the model draws them" if levels is None
                      else f"integers 0 .. {levels - 1}, as the codec decodes them")
            raise ArgumentError(f"samples for data set {self.dataset.name!r} must be {wanted}, got {x.dtype}", "samples")
        if levels is not None and len(x) and not 0 <= int(x.min()) <= int(x.max()) < levels:
            raise ArgumentError(f"samples must be integers 0 .. {levels - 1}, got {int(x.min())} to {int(x.max())}",
                                "samples")
        if levels is None and not bool(x.isfinite().all()):
            bad = int((~x.flatten(1).isfinite().all(1)).nonzero()[0])
            raise ArgumentError(f"sample {first + bad} is not finite", "samples")

    def _elements(self, x: Tensor) -> Tensor:
        x = x.detach().cpu().flatten(1)
        return x if x.is_floating_point() else x.float() / (self.dataset.levels - 1)

    def _features(self, x: Tensor) -> Tensor:
        assert self.features is not None
        return self.features.vectors(x.to(self.device), self.dataset.levels)
