"""The parts of a piece of work: each is kept when it is done, so that a killed command does not repeat it, and shared.

A part is a range of numbers, such as those of some measurements, and its result is named arrays. In a folder each lies as a
file of its own, whole or not there at all, with the identity of all that it depends on. Process r of W makes the parts r,
r + W, ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scorefield.evaluation.generate import saying
from scorefield.evaluation.progress import Progress
from scorefield.numerics import stopping
from scorefield.numerics.files import read_arrays, write_arrays
from scorefield.numerics.processes import World

IDENTITY = "identity"
Arrays = Mapping[str, Any]


class Parts:
    """Results of the parts of some work, in a folder or in memory.

        parts = Parts([range(0, 4), range(4, 6)], "measurements", folder, identity="digits of all that they depend on")
        parts.work(make, world)      # make(range(0, 4)) -> {"x": array}
        parts[range(0, 4)]["x"]

    what  the word for the things that the ranges number

    What is there is found when this is made. Processes that share a folder must meet after that (numerics.processes.meet),
    before one of them works: the first one removes the files once it has them all.
    """

    def __init__(self, units: Sequence[range], what: str, folder: Path | None = None, identity: str = ""):
        self.units, self.what, self.folder, self.identity = tuple(units), what, folder, identity
        self._known: dict[range, Arrays] = {}
        for unit in self.units:
            self.has(unit)

    def __getitem__(self, unit: range) -> Arrays:
        return self._known[unit]

    def __len__(self) -> int:
        """How many things the parts have."""
        return sum(map(len, self.units))

    @property
    def done(self) -> int:
        """How many things are there."""
        return sum(len(unit) for unit in self.units if unit in self._known or (self.folder and self._path(unit).exists()))

    def has(self, unit: range) -> bool:
        """Whether a part is there, whole and of this identity."""
        if unit not in self._known and self.folder is not None and self._path(unit).exists():
            try:
                arrays = read_arrays(self._path(unit))
            except Exception:      # the parsers of damaged files raise errors of every type
                return False
            if str(arrays.pop(IDENTITY, "")) == self.identity:
                self._known[unit] = arrays
        return unit in self._known

    def work(self, make: Callable[[range], Arrays], world: World | None = None, bar: Progress | None = None) -> None:
        """Make this process's share of what is missing; the first process then waits for the others.

        Errors and signals say what is kept.
        """
        world = world or World()
        missing = [unit for unit in self.units if unit not in self._known]
        if self.folder is not None and missing:
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with stopping.keeping(self.kept):
                for unit in sorted(set(self.units[world.rank::world.size]) & set(missing), key=lambda unit: unit.start):
                    self._add(unit, make(unit))
                    if bar is not None:
                        bar.show(lambda: self.done)
                while world.first and not all(self.has(unit) for unit in self.units):
                    if bar is not None:
                        bar.show(lambda: self.done)
                    time.sleep(0.2)
        except (ArithmeticError, OSError) as error:
            if said := self.kept():
                raise saying(error, said) from error
            raise

    def _add(self, unit: range, arrays: Arrays) -> None:
        if self.folder is not None:
            write_arrays(self._path(unit), {**arrays, IDENTITY: self.identity})
        self._known[unit] = arrays

    def _path(self, unit: range) -> Path:
        assert self.folder is not None
        return self.folder / f"{unit.start:08d}.npz"

    def kept(self) -> str:
        """What an interrupted command has kept, in words; "" if nothing."""
        done = sum(len(unit) for unit in self.units if self.has(unit))
        return "" if self.folder is None or not done else (
            f"{done} of {len(self)} {self.what} are done and kept; the same command continues from there")
