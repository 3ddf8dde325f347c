"""What training tells on its way: lines in stats.jsonl, figures in TensorBoard, and a bar or lines on the terminal."""

import contextlib
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from scorefield.numerics.files import utf8_name
from scorefield.numerics.processes import World
from scorefield.training.stats import Stats


class Log:
    """Sums of loss and gradient norm since the last line, kept on the device, and where lines go.

    progress  whether to print progress: a bar on a terminal, else plain lines
    """

    def __init__(self, run: Path, step: int, steps: int, world: World, progress: bool = True):
        self.world, self.steps, self.progress, self.run, self.drawing = world, steps, progress, run, True
        run.mkdir(parents=True, exist_ok=True)
        self.stats = Stats(run, step, _say) if world.first else None
        self.writer = event_writer(run, purge_step=step) if world.first else None
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=None if world.first and progress else True)
        self.restart(step)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.bar.close()
        for file in (self.stats, self.writer):
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
        return {"step": step, "loss": loss, "grad_norm": norm, "steps_per_second": (step - self.since) / self.elapsed}

    def write(self, line: dict[str, float], picture: Tensor | None) -> None:
        assert self.stats is not None and self.writer is not None
        self.stats.write(line)
        step = int(line["step"])
        values = {name: value for name, value in line.items() if name != "step"}
        self._draw(step, values, picture)
        text = "  ".join(f"{name} {value:.5g}" for name, value in values.items() if "/" not in name)
        if not self.bar.disable:
            self.bar.set_postfix_str(text)
        elif self.progress:
            print(f"step {step} of {self.steps}  {text}", flush=True)

    def say(self, text: str) -> None:
        """A line for the user, beside the bar."""
        if self.progress:
            tqdm.write(text, file=sys.stderr)

    def _draw(self, step: int, values: Mapping[str, float], picture: Tensor | None) -> None:
        """Into TensorBoard. Its loss is said once, and training goes on: the figures are in stats.jsonl, too."""
        if not self.drawing:
            return
        assert self.writer is not None
        try:
            for name, value in values.items():
                self.writer.add_scalar(f"training/{name}", value, step)
            if picture is not None:
                self.writer.add_image("samples", picture, step)
            if not (self.run / "tensorboard").is_dir():
                raise FileNotFoundError(f"{self.run / 'tensorboard'} is gone")
        except Exception as error:      # its thread raises errors of every type, also again
            self.drawing = False
            self.say(f"TensorBoard is lost at step {step} ({error}); training goes on without it")


def event_writer(run: Path, purge_step: int | None = None) -> Any:
    """TensorBoard's SummaryWriter of a run's folder. It takes names in UTF-8 alone; others are reached through a link."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    (run / "tensorboard").mkdir(parents=True, exist_ok=True)
    names = contextlib.ExitStack()
    writer = SummaryWriter(names.enter_context(utf8_name(run / "tensorboard")), purge_step=purge_step)
    weakref.finalize(writer, names.close)
    return writer


def _say(text: str) -> None:
    """A line that does not disturb the bar."""
    tqdm.write(text, file=sys.stderr)
