"""Which checkpoints of a run stay: the newest, the best by a figure, and the last sound one.

A checkpoint is sound if its loss is finite and at most SANE times the lowest of the run: that on held-out data where it was
evaluated, else the mean of training since the line of the log before. So a run that is ruined, by a learning rate or data,
still has a checkpoint to go back to, however many were saved since.

The figures of the checkpoints lie in RUN/kept.json. Without it, or if it is damaged, only the newest are known.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scorefield.checkpoints.formats.run import checkpoints_of, remove_checkpoint
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import read_json, write_json

RECORD = "kept.json"
SANE = 3.0
LOSSES = ("held_out_loss", "loss")      # what tells whether a checkpoint is sound: the first that it has
HIGHEST = "max:"                        # before the name of a figure of which the highest is the best

Figures = Mapping[str, float]


def best_of(figures: Mapping[int, Figures], by: str) -> int | None:
    """The step whose figure `by` is the lowest, or the highest for "max:NAME"; None if no step has it.

        best_of({100: {"fid": 9.0}, 200: {"fid": 8.0}}, "fid")      # 200
    """
    sign, name = (-1, by.removeprefix(HIGHEST)) if by.startswith(HIGHEST) else (1, by)
    known = {step: sign * value for step, of in figures.items()
             if (value := of.get(name)) is not None and math.isfinite(value)}
    return min(known, key=lambda step: (known[step], -step), default=None)


def is_sound(of: Figures, lowest: Figures) -> bool:
    """Whether a checkpoint's loss is finite and at most SANE times the lowest of its kind."""
    name = next((name for name in LOSSES if name in of), None)
    if name is None:
        return False
    value, low = of[name], lowest.get(name)
    if value is None or not math.isfinite(value):
        return False
    return low is None or value <= low + (SANE - 1) * abs(low)


class Keeping:
    """The record of a run's checkpoints, and what is removed of them.

    keep  how many of the newest stay
    best  the figure by which the best one stays too, such as "held_out_loss" or "max:held_out_accuracy"; "": none
    """

    def __init__(self, run: Path, keep: int, best: str = LOSSES[0]):
        self.run, self.keep, self.by = run, keep, best
        self.figures: dict[int, dict[str, float]] = {}
        self.lowest: dict[str, float] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):      # it is a help, no more
            stored = read_json(run / RECORD)
            figures = {int(step): _numbers(of) for step, of in stored["checkpoints"].items()}
            self.figures, self.lowest = figures, _numbers(stored["lowest"])

    def saved(self, step: int, figures: Figures) -> list[Path]:
        """Note the figures of a checkpoint that was written, and remove those that need not stay; returns these."""
        self.figures[step] = {name: float(value) for name, value in figures.items()}
        for name in LOSSES:
            if name in figures and math.isfinite(figures[name]):
                self.lowest[name] = min(self.lowest.get(name, math.inf), float(figures[name]))
        there = [(number, path) for number, path in checkpoints_of(self.run) if number <= step]      # later ones are strays
        staying = self.staying(number for number, _ in there)
        removed = [path for number, path in there if number not in staying]
        self.figures = {number: of for number, of in self.figures.items() if number in staying}
        write_json(self.run / RECORD, {"best_by": self.by, "best": self.best, "last_sound": self.last_sound,
                                       "lowest": self.lowest,
                                       "checkpoints": {str(n): of for n, of in sorted(self.figures.items())}})
        for path in removed:
            remove_checkpoint(path)
        return removed

    def staying(self, steps: Iterable[int]) -> set[int]:
        """Which of the steps stay."""
        there = sorted(steps)
        self.figures = {step: of for step, of in self.figures.items() if step in there}
        return {*there[-self.keep:], *(step for step in (self.best, self.last_sound) if step is not None)}

    @property
    def best(self) -> int | None:
        """The step of the best checkpoint, if one has the figure."""
        return best_of(self.figures, self.by) if self.by else None

    @property
    def last_sound(self) -> int | None:
        """The step of the newest sound checkpoint, if there is one."""
        return max((step for step, of in self.figures.items() if is_sound(of, self.lowest)), default=None)

    def advice(self) -> str:
        """How to go back, as a clause; "" without a sound checkpoint."""
        there = dict(checkpoints_of(self.run))
        step = max((step for step in there if is_sound(self.figures.get(step, {}), self.lowest)), default=None)
        if step is None:
            return ""
        of = self.figures[step]
        name = next(name for name in LOSSES if name in of)
        return f"{there[step]} is the last sound checkpoint ({name} {of[name]:.4g}); to go back to it, give from_step {step}"


def _numbers(figures: Any) -> dict[str, float]:
    return {str(name): math.nan if value is None else float(value) for name, value in figures.items()}


def go_back(run: Path, step: int) -> list[Path]:
    """Remove the checkpoints after that of `step`, so that training goes on there; returns these.

    Raises ValueError if the run has no checkpoint of that step.
    """
    there = dict(checkpoints_of(run))
    if step not in there:
        raise ArgumentError(f"{run} has no checkpoint of step {step}; it has those of "
                            f"{', '.join(map(str, there)) or 'no step'}", "from_step")
    later = [path for number, path in there.items() if number > step]
    for path in later:
        remove_checkpoint(path)
    return later
