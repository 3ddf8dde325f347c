"""Where the figures of a run go beside stats.jsonl: trackers, chosen by `training.trackers`. To add one, write a class and
add a line to TRACKERS.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import uuid
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import read_json, utf8_name, write_json


class Tracker(Protocol):
    """What takes the figures of a run. It is made with the run's folder and the step at which the run starts or goes on.

    name  for messages
    """

    name: str

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures by name, such as training/loss, after `step` updates."""

    def image(self, step: int, name: str, picture: Tensor) -> None:
        """A picture, uint8 (3, height, width)."""

    def close(self) -> None:
        """Everything is written when this returns."""


class TensorBoard:
    """Event files in the folder tensorboard of the run."""

    name = "TensorBoard"

    def __init__(self, run: Path, step: int):
        self.folder, self.writer = run / "tensorboard", event_writer(run, purge_step=step)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        if not self.folder.is_dir():      # its own thread finds that out much later
            raise FileNotFoundError(f"{self.folder} is gone")

    def image(self, step: int, name: str, picture: Tensor) -> None:
        self.writer.add_image(name, picture, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Weights & Biases, by its package wandb. A run that goes on goes on there, too: wandb.json keeps its id.

    wandb's own variables say where and how: WANDB_PROJECT (scorefield unless set), WANDB_MODE=offline, WANDB_API_KEY.
    """

    name, needs = "Weights & Biases", "wandb"

    def __init__(self, run: Path, step: int):
        wandb: Any = importlib.import_module("wandb")      # an extra
        kept = run / "wandb.json"
        known = read_json(kept, "; remove it, and the run goes on as a new one in wandb") if kept.is_file() and step else {}
        name = str(known.get("id") or uuid.uuid4().hex[:16])
        config = read_json(run / "config.json") if (run / "config.json").is_file() else {}
        self.module = wandb
        self.run = wandb.init(project=os.environ.get("WANDB_PROJECT") or "scorefield", id=name, resume="allow",
                              name=run.resolve().name, dir=str(run), config=config)
        write_json(kept, {"id": name})

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def image(self, step: int, name: str, picture: Tensor) -> None:
        self.run.log({name: self.module.Image(picture.permute(1, 2, 0).cpu().numpy())}, step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, type[Any]] = {"tensorboard": TensorBoard, "wandb": WandB}


def require_trackers(names: Sequence[str]) -> None:
    """ArgumentError unless the packages of these trackers are installed; before anything is written."""
    for name in names:
        package = getattr(TRACKERS[name], "needs", None)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ArgumentError(f"training.trackers={','.join(names)} needs the package {package}, which is not installed: "
                                f"pip install {package}, or leave {name} out", "training.trackers")


def event_writer(run: Path, purge_step: int | None = None) -> Any:
    """TensorBoard's SummaryWriter of a run's folder. It takes names in UTF-8 alone; others are reached through a link."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    (run / "tensorboard").mkdir(parents=True, exist_ok=True)
    names = contextlib.ExitStack()
    writer = SummaryWriter(names.enter_context(utf8_name(run / "tensorboard")), purge_step=purge_step)
    weakref.finalize(writer, names.close)
    return writer
