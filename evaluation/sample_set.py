"""Samples in batches, on disk or in memory, so that there may be more of them than memory holds.

While samples are drawn, each batch is a file of its own (`BEGIN.npz`, whole or not there at all), which processes share and
a killed command finds again. The finished set is one .npz, written batch by batch:

    x         (n, *shape): the samples as data: uint8 levels of pictures, channels first; float32 points in the data's units
    label     (n,): their classes, if they were given labels
    nfe       (n,): evaluations of the network that each one took
    seconds   (n,): of work, those of its batch divided by the batch's samples
    identity  of all that the samples depend on but their number. Samples of another identity are never taken
    seal      digest of the other arrays but the identity, so that an edited file is drawn anew
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.numerics.files import json_digest, read_arrays, write_arrays, write_atomically

SEAL = "seal"      # the key of the digest of all other content, so that an edited file is not believed
Unit = tuple[int, int]      # the numbers of a batch's samples, from the first to before the last


@dataclass(frozen=True, eq=False)
class Batch:
    """x (batch, *shape) as data, label (batch,) or None, evaluations a sample, seconds for all."""

    x: Tensor
    label: Tensor | None
    nfe: float
    seconds: float


class SampleSet:
    """n samples in order, a batch at a time. What `generate` returns; `len` is n.

        for x, label in samples:      # x (batch, *shape) as data, label (batch,) or None
            metric.update(x)

    units     the batches
    identity  of all that the samples depend on but their number
    memory, folder, stored  where a batch may lie: in memory, as a file of its own, or in the file of a finished set
    known     the batches that are known to be there, each with its evaluations a sample and its seconds
    """

    def __init__(self, units: Sequence[Unit], identity: str, folder: Path | None = None, stored: Stored | None = None):
        self.units, self.identity, self.folder, self.stored = tuple(units), identity, folder, stored
        self.memory: dict[Unit, Batch] = {}
        self.known: dict[Unit, tuple[float, float]] = {}

    def __len__(self) -> int:
        return self.units[-1][1]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for batch in self.batches():
            yield batch.x, batch.label

    def batches(self) -> Iterator[Batch]:
        """Every batch with its cost; ValueError if one is missing or damaged."""
        with contextlib.ExitStack() as open_files:
            rows = None if self.stored is None else open_files.enter_context(self.stored.rows())
            for unit in self.units:
                stored = rows is not None and self._is_stored(unit)
                batch = self.memory.get(unit) or (rows(unit) if rows is not None and stored else self._read(unit))
                if batch is None:
                    raise ValueError(f"samples {unit[0]} to {unit[1] - 1} are missing or damaged in {self.folder}; give the "
                                     "same command again to draw them")
                yield batch

    def first(self, n: int) -> tuple[Tensor, Tensor | None]:
        """The first n samples, or all if there are fewer, and their labels."""
        x, labels, have = [], [], 0
        for data, label in self:
            x.append(data[:n - have])
            labels += [] if label is None else [label[:n - have]]
            have += len(x[-1])
            if have >= n:
                break
        return torch.cat(x), torch.cat(labels) if labels else None

    @property
    def nfe(self) -> float:
        """Network evaluations a sample, the mean over all."""
        return sum(self.known[unit][0] * (unit[1] - unit[0]) for unit in self.units) / len(self)

    @property
    def seconds(self) -> float:
        """Of work on these samples, in all commands and processes."""
        return sum(self.known[unit][1] for unit in self.units)

    def has(self, unit: Unit) -> bool:
        """Whether a batch is there, whole and of this identity."""
        if unit in self.known:
            return True
        if self._is_stored(unit):
            assert self.stored is not None
            self.known[unit] = self.stored.cost(unit)
        elif (batch := self._read(unit)) is not None:
            self.known[unit] = batch.nfe, batch.seconds
        return unit in self.known

    def add(self, unit: Unit, batch: Batch) -> None:
        """Keep a batch: in the folder, or in memory if there is none."""
        if self.folder is None:
            self.memory[unit] = batch
        else:
            arrays: dict[str, Any] = {"x": batch.x.numpy(), "nfe": batch.nfe, "seconds": batch.seconds,
                                      "identity": self.identity}
            arrays |= {} if batch.label is None else {"label": batch.label.numpy()}
            write_arrays(self.path(unit), arrays)
        self.known[unit] = batch.nfe, batch.seconds

    def path(self, unit: Unit) -> Path:
        assert self.folder is not None
        return self.folder / f"{unit[0]:08d}.npz"

    def write(self, path: Path) -> None:
        """Write the set as one .npz, a batch at a time; whole or not at all."""
        def column(values: Callable[[Batch], Any], dtype: Any) -> Callable[[Batch], np.ndarray]:
            return lambda batch: np.full(len(batch.x), values(batch), dtype)

        columns: dict[str, Callable[[Batch], np.ndarray]] = {"x": lambda batch: batch.x.numpy()}
        first = next(self.batches())
        if first.label is not None:
            columns["label"] = lambda batch: batch.label.numpy() if batch.label is not None else np.empty(0, np.int64)
        columns["nfe"] = column(lambda batch: batch.nfe, np.float64)
        columns["seconds"] = column(lambda batch: batch.seconds / len(batch.x), np.float64)

        def blocks(name: str) -> Iterator[Any]:
            rows = columns[name]
            like = rows(first)
            yield _header((len(self), *like.shape[1:]), like.dtype)
            for batch in self.batches() if name in ("x", "label") else self._costs_as_batches():
                yield np.ascontiguousarray(rows(batch)).data

        def write(file: Any) -> None:
            digests = {}
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name in columns:
                    hasher = hashlib.sha256()
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        for block in blocks(name):
                            entry.write(block)
                            hasher.update(block)
                    digests[f"{name}.npy"] = hasher.hexdigest()
                for name, text in (("identity", self.identity), (SEAL, json_digest(digests))):
                    with archive.open(f"{name}.npy", "w") as entry:
                        np.lib.format.write_array(entry, np.array(text), allow_pickle=False)

        write_atomically(path, write)

    def _costs_as_batches(self) -> Iterator[Batch]:
        """The batches without their samples."""
        for unit in self.units:
            yield Batch(torch.empty(unit[1] - unit[0], 0), None, *self.known[unit])

    def _is_stored(self, unit: Unit) -> bool:
        return self.stored is not None and self.stored.holds(unit)

    def _read(self, unit: Unit) -> Batch | None:
        """A batch from its file; None if it is missing, damaged or of another identity."""
        if self.folder is None or not self.path(unit).exists():
            return None
        try:
            arrays = read_arrays(self.path(unit))
            if str(arrays["identity"]) != self.identity or len(arrays["x"]) != unit[1] - unit[0]:
                return None
            label = torch.from_numpy(arrays["label"]) if "label" in arrays else None
            return Batch(torch.from_numpy(arrays["x"]), label, float(arrays["nfe"]), float(arrays["seconds"]))
        except Exception:      # the parsers of damaged files raise errors of every type
            return None


class Stored:
    """The file of a finished set, from which batches are read in their order without holding them all.

    n           how many samples it holds
    batch_size  of the batches in which they were drawn
    """

    def __init__(self, path: Path, batch_size: int):
        with np.load(path) as file:
            self.nfe, self.seconds, self.identity = file["nfe"], file["seconds"], str(file["identity"])
            self.label = torch.from_numpy(file["label"]) if "label" in file.files else None
        self.path, self.n, self.batch_size = path, len(self.nfe), batch_size

    def holds(self, unit: Unit) -> bool:
        """Whether these samples were drawn as this batch: adaptive solvers choose their steps for a batch as a whole."""
        return unit[1] <= self.n and (unit[1] - unit[0] == self.batch_size or unit[1] == self.n)

    def cost(self, unit: Unit) -> tuple[float, float]:
        """Evaluations a sample and seconds of a batch."""
        return float(self.nfe[unit[0]]), float(self.seconds[unit[0]:unit[1]].sum())

    @contextlib.contextmanager
    def rows(self) -> Iterator[Callable[[Unit], Batch]]:
        """A function that reads the next batch; batches must be asked for in their order, without a gap."""
        with zipfile.ZipFile(self.path) as archive, archive.open("x.npy") as entry:
            np.lib.format.read_magic(entry)
            (_, *shape), _, dtype = np.lib.format.read_array_header_1_0(entry)
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

            def read(unit: Unit) -> Batch:
                count = unit[1] - unit[0]
                content = bytearray(entry.read(count * size))
                x = torch.from_numpy(np.frombuffer(content, dtype).reshape(count, *shape))
                return Batch(x, None if self.label is None else self.label[unit[0]:unit[1]], *self.cost(unit))

            yield read


def find_stored(path: Path, identity: str, batch_size: int) -> Stored | None:
    """The finished set in a file; None if it is missing, damaged, edited or of another identity (`identity_of`).

    Sets of before version 0.2 have no seal, and are not known to be as they were written.
    """
    try:
        digests = {}
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                hasher = hashlib.sha256()
                with archive.open(name) as entry:      # checks the entry's checksum
                    while block := entry.read(1 << 20):
                        hasher.update(block)
                digests[name] = hasher.hexdigest()
        if digests.pop(f"{SEAL}.npy", None) is not None:
            with np.load(path) as file:
                if str(file[SEAL]) != json_digest({k: v for k, v in digests.items() if k != "identity.npy"}):
                    return None
        stored = Stored(path, batch_size)
    except Exception:      # the parsers of damaged files raise errors of every type
        return None
    return stored if stored.identity == identity and stored.n else None


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False,
                                                   "shape": shape})
    return written.getvalue()
