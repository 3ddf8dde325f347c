"""What training tells on its way: lines in stats.jsonl, figures in trackers, and a bar or lines on the terminal."""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from scorefield.numerics.processes import World
from scorefield.training.meters import Meters
from scorefield.training.stats import Stats
from scorefield.training.trackers import TRACKERS, Tracker

# Figures that a terminal has no room for; waiting for data is shown there where it is more than a little.
QUIET = ("examples_per_second", "memory_gib", "share_of_peak", "loss_q1", "loss_q2", "loss_q3", "loss_q4")
MUCH_WAITING = 0.02


class Log:
    """Sums of loss and gradient norm since the last line, kept on the device, and where lines go.

    progress  whether to print progress: a bar on a terminal, else plain lines
    meters    what adds further figures
    trackers  names of those that get the figures and pictures
    """

    def __init__(self, run: Path, step: int, steps: int, world: World, progress: bool = True, meters: Meters | None = None,
                 trackers: Sequence[str] = ("tensorboard",)):
        self.world, self.steps, self.progress, self.meters = world, steps, progress, meters
        run.mkdir(parents=True, exist_ok=True)
        self.stats = Stats(run, step, _say) if world.first else None
        self.trackers: list[Tracker] = [TRACKERS[name](run, step) for name in trackers] if world.first else []
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=None if world.first and progress else True)
        self.restart(step)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.bar.close()
        for file in (self.stats, *self.trackers):
            with contextlib.suppress(Exception):      # what could not be written was told when it was
                if file is not None:
                    file.close()

    def restart(self, step: int) -> None:
        self.since, self.start, self.elapsed = step, time.perf_counter(), 0.0
        self.sums: Tensor | None = None

    def add(self, loss: Tensor, norm: Tensor) -> None:
        both = torch.stack([loss, norm])
        self.sums = both if self.sums is None else self.sums + both
        self.bar.update()

    def summary(self, step: int) -> dict[str, float]:
        """Means since the last line, over all processes; `elapsed` is the time that they took, in seconds."""
        assert self.sums is not None
        loss, norm = (self.world.mean(self.sums) / (step - self.since)).tolist()
        self.elapsed = time.perf_counter() - self.start
        more = {} if self.meters is None else self.meters.figures(step - self.since, self.elapsed)
        speed = (step - self.since) / self.elapsed
        return {"step": step, "loss": loss, "grad_norm": norm, "steps_per_second": speed, **more}

    def write(self, line: dict[str, float], picture: Tensor | None) -> None:
        assert self.stats is not None
        self.stats.write(line)
        step = int(line["step"])
        values = {name: value for name, value in line.items() if name != "step"}
        self._track(step, values, picture)
        text = "  ".join(f"{name} {value:.5g}" for name, value in values.items() if _is_shown(name, value))
        if not self.bar.disable:
            self.bar.set_postfix_str(text)
        elif self.progress:
            print(f"step {step} of {self.steps}  {text}", flush=True)

    def say(self, text: str) -> None:
        """A line for the user, beside the bar."""
        if self.progress:
            tqdm.write(text, file=sys.stderr)

    def _track(self, step: int, values: Mapping[str, float], picture: Tensor | None) -> None:
        """To the trackers. The loss of one is said once, and training goes on: the figures are in stats.jsonl, too."""
        for tracker in list(self.trackers):
            try:
                tracker.log(step, {f"training/{name}": value for name, value in values.items()})
                if picture is not None:
                    tracker.image(step, "samples", picture)
            except Exception as error:      # their threads raise errors of every type, also again
                self.trackers.remove(tracker)
                self.say(f"{tracker.name} is lost at step {step} ({error}); training goes on without it")


def _is_shown(name: str, value: float) -> bool:
    return "/" not in name and name not in QUIET and (name != "data_wait" or value > MUCH_WAITING)


def _say(text: str) -> None:
    """A line that does not disturb the bar."""
    tqdm.write(text, file=sys.stderr)
