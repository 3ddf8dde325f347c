"""The data that samples are compared with, and a cache of what is computed from them alone.

A cached statistic belongs to the contents of the examples, the weights of the feature network and the statistic's own name:
its file's name and its contents hold the SHA-256 of all of these, so the statistics of other data are never taken for these.
A file that is damaged is computed again.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.data import Codec, Dataset
from scorefield.evaluation.metrics.features import Features
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import write_atomically

VERSION = 1      # of the statistics: a change of how one is computed makes the cached ones those of another version
BATCH = 256
PROBES = 16      # examples by which a cached statistic is told from that of another network
ROUNDING = 1e-2      # of a standard deviation: what two machines may differ by in a feature
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
        self._last: tuple[Tensor, int, dict[str, Tensor]] | None = None
        self._kept: set[str] = set()
        self._width: int | None = None

    def vectors_of(self, x: Tensor, space: str, first: int = 0) -> Tensor:
        """What metrics compare: examples (B, *shape) as vectors (B, D) on the CPU.

        In the spaces "features" and "logits" these are what the network gives, float32. In "data", and without a network,
        they are the elements: reals, or integer levels, of which `reals` makes shares of the range. `first` is the number of
        the first of them, for messages.
        """
        version = -1 if x.is_inference() else x._version      # of a tensor of inference mode a change is not seen
        if self._last is None or self._last[0] is not x or self._last[1] != version or version < 0:
            self._check(x, first)
            self._last = x, version, {}      # a reference to x, so that no other tensor takes its place
        known = self._last[2]
        if self.features is None or space == "data":
            if "data" not in known:
                known["data"] = x.detach().cpu().flatten(1)
            return known["data"]
        if space not in known:
            known.update(self._outputs(x))
        return known[space]

    def vectors(self, split: str, space: str, n: int | None = None) -> Tensor:
        """The vectors (N, D) of a split, or of n of its examples, evenly spaced."""
        if self.features is not None and space != "data":
            x = torch.from_numpy(self.arrays(f"network_{split}", lambda: self._network_outputs(split))[space])
        else:
            if f"data_{split}" not in self._known:      # as quick to read as what a cache would hold
                self._known[f"data_{split}"] = self._elements(split)
            x = torch.from_numpy(self._known[f"data_{split}"]["data"])
        return x if n is None or n == len(x) else x[torch.arange(n) * len(x) // n]

    def reals(self, x: Tensor) -> Tensor:
        """Vectors as reals: integer levels as shares k / (levels - 1) of their range, float32. Metrics call it for a block
        at a time, since pictures as reals take four times the memory.
        """
        return x if self.dataset.levels is None or x.is_floating_point() else x.float() / (self.dataset.levels - 1)

    def keep(self, space: str) -> None:
        """Say that all vectors of the training examples in this space will be needed at once."""
        self._kept.add(space)

    def batches(self, split: str, space: str) -> Iterator[Tensor]:
        """The vectors of a split, in parts. Unless somebody needs them at once, the network's are not kept."""
        if self.features is None or space in self._kept | {"data"}:
            yield from self.vectors(split, space).split(BATCH)
        else:
            yield from (self._outputs(self._read(split, index))[space] for index in self._batches(split))

    def numbers(self, split: str) -> Tensor:
        """The numbers (N,) of the compared examples of a split among all of it."""
        return self._index[split]

    def number(self, name: str, compute: Callable[[], float]) -> float:
        """A cached number."""
        return float(self.arrays(name, lambda: {"value": np.array(compute(), dtype=np.float64)})["value"])

    def arrays(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """A cached statistic: arrays by name. `name` must say all that it depends on beside the data and the network."""
        if name not in self._known:
            self._known[name] = self._stored(name, compute)
        return self._known[name]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the examples of both splits as they are compared, and of the feature network."""
        hasher = hashlib.sha256(f"{VERSION} {self.codec if self.dataset.levels is None else self.dataset.levels} "
                                f"{self.features.digest if self.features else None}".encode())
        for split in ("train", "test"):
            for index in self._batches(split):
                x = self._read(split, index)
                hasher.update(f"{split} {x.dtype} {tuple(x.shape)}".encode())
                hasher.update(x.contiguous().numpy().tobytes())
        return hasher.hexdigest()

    def _stored(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        if self.cache is None:
            return compute()
        key = hashlib.sha256(f"{name} {self.digest}".encode()).hexdigest()
        path = self.cache / f"{name}_{key[:16]}.npz"
        try:
            with np.load(path) as file:
                arrays = {k: file[k] for k in file.files}      # checks each array's checksum
            if str(arrays.pop("key")) == key and self._of_this_network(arrays.pop("probe")):
                return arrays
        except Exception:      # missing or damaged: the parsers of damaged files raise errors of every type
            pass
        arrays = compute()
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            contents: dict[str, Any] = {"key": np.array(key), "probe": self._probe, **arrays}
            write_atomically(path, lambda file: np.savez(file, **contents))
        except OSError as error:
            warnings.warn(f"the statistics of the data could not be kept in {self.cache} ({error})", stacklevel=2)
        return arrays

    @cached_property
    def _probe(self) -> np.ndarray:
        """The network's features of a few training examples."""
        if self.features is None:
            return np.zeros(0)
        return self._outputs(self._read("train", self._index["train"][:PROBES]))["features"].numpy()

    def _of_this_network(self, probe: np.ndarray) -> bool:
        """Whether a network with these features of the probes is this one.

        Its weights are in the digest, if it has some, but what it does with them is not.
        """
        return probe.shape == self._probe.shape and bool(np.allclose(probe, self._probe, rtol=0,
                                                                     atol=ROUNDING * max(float(self._probe.std()), 1e-30))
                                                         if probe.size else True)

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

    def _elements(self, split: str) -> Arrays:
        out: Tensor | None = None
        for place, index in zip(torch.arange(len(self._index[split])).split(BATCH), self._batches(split), strict=True):
            x = self._read(split, index).cpu().flatten(1)
            out = x.new_empty(len(self._index[split]), x.shape[1]) if out is None else out
            out[place] = x
        assert out is not None
        return {"data": out.numpy()}

    def _network_outputs(self, split: str) -> Arrays:
        parts = [self._outputs(self._read(split, index)) for index in self._batches(split)]
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

    def _outputs(self, x: Tensor) -> dict[str, Tensor]:
        assert self.features is not None
        outputs = self.features.outputs(x.to(self.device), self.dataset.levels)
        width = outputs["features"].shape[1]
        if self._width not in (None, width):
            raise ArgumentError(f"the feature network {self.features.name!r} gave {self._width} features, then {width}; it "
                                "must give as many for every picture", "features")
        self._width = width
        return outputs
