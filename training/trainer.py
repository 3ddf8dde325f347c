"""The training loop: batches, updates of the weights, the log, evaluations, checkpoints, going on.

    repeat  batch, draw of this step
            update of the weights and of their average (update.py)

What is trained and on what comes from outside: a model, an objective, batches. Whatever step n draws depends on (seed, n)
alone. So a resumed run continues exactly as if it had not stopped, and a run shared by several processes sees the batches
and noise of a single one.
"""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scorefield.checkpoints.formats.run import newest_checkpoint, read_state
from scorefield.models.layers import recompute_activations
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.processes import World
from scorefield.sde_lib.sde import SDE
from scorefield.training.log import Log
from scorefield.training.objectives.objective import Batch, Objective
from scorefield.training.saving import Saver, read_shares
from scorefield.training.sharding import shard
from scorefield.training.update import Update, learning_rate


class Interrupted(Exception):
    """Training was stopped by a signal, after saving a checkpoint at `step`."""

    def __init__(self, step: int):
        super().__init__(f"interrupted at step {step}")
        self.step = step


class Model(Protocol):
    """What can be trained: a module that sees a network through an SDE, as a Denoiser does, and can do so with another."""

    network: nn.Module
    sde: SDE

    def with_network(self, network: nn.Module) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """A list to which the first SIGINT or SIGTERM is added, instead of stopping us; the second one stops us.

    Python takes signals only on its main thread. On another thread the list stays empty.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: Any) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Trainer:
    """One run in the folder `run`: set up from its newest checkpoint, then `train()`.

    model      on its device; `model.network` has the weights, under whose names they are saved
    objective  a step minimises its loss
    batches    step -> the batch of that step and its draw
    settings   an object with the attributes of a config's section `training`
    world      this process among those that train together
    evaluate   figures of the averaged model on held-out data, by name, every `eval_every` steps
    preview    a picture of the averaged model's samples, uint8 (3, height, width), every `sample_every` steps
    progress   whether there is something on the terminal

    Distribution wraps the network before the optimiser and the average are made.
    """

    def __init__(self, model: Model, objective: Objective, batches: Callable[[int], tuple[Batch, Any]], settings: Any,
                 run: Path, device: torch.device, world: World | None = None,
                 evaluate: Callable[[Any], dict[str, float]] | None = None,
                 preview: Callable[[Any], Tensor] | None = None, progress: bool = True):
        self.model, self.objective, self.batches, self.settings = model, objective, batches, settings
        self.run, self.device, self.world, self.progress = run, device, world or World(), progress
        self.evaluate, self.preview = evaluate, preview
        self.network = model.network
        if settings.activation_checkpointing:
            recompute_activations(self.network)
        if settings.compile:
            self.network.compile()
        self.sharded = settings.sharding == "fsdp" and self.world.size > 1
        model.network = (shard(self.network, device, self.world) if self.sharded
                         else self.world.wrap(self.network, device))
        self.update = Update(model, self.network, objective, settings, device)
        self.averaged = model.with_network(self.update.ema.module)
        self.step, self.seconds = 0, 0.0
        self.saver = Saver(run, self.world, settings.keep, self.sharded, settings.sharded_saves)
        self.checkpoint = newest_checkpoint(run)
        if not self.world.agree(str(self.checkpoint and self.checkpoint.name), device):
            raise ArgumentError("the processes of torchrun must share the run's folder and see the same newest checkpoint",
                                "workdir")
        if self.checkpoint is not None:
            self._restore(read_shares(self.checkpoint, self.network, self.world) if self.sharded
                          else read_state(self.checkpoint))

    def train(self) -> Path | None:
        """Train to settings.steps; returns the last checkpoint.

        Raises Interrupted after a signal, ArithmeticError if the loss stops being finite (nothing is saved then).
        """
        self.model.train()
        with (_signals_noted() as signals, self.saver,
              Log(self.run, self.step, self.settings.steps, self.world, self.progress) as log):
            while self.step < self.settings.steps:
                loss, norm = self.update(*self.batches(self.step), self.step)
                self.step += 1
                log.add(loss, norm)
                stop = (self.world.size == 1 or self.step % 10 == 0) and self.world.any(bool(signals), self.device)
                self._report(log, stop)
                if stop:
                    raise Interrupted(self.step)
        self.checkpoint = self.saver.newest or self.checkpoint
        self.world.leave()
        return self.checkpoint

    def _report(self, log: Log, stop: bool) -> None:
        """Log, evaluate, preview and save if one of them is due after this step; else return at once."""
        settings = self.settings

        def due(every: int) -> bool:
            return bool(every) and (self.step % every == 0 or self.step == settings.steps)

        saving = stop or due(settings.checkpoint_every)
        evaluate = self.evaluate if due(settings.eval_every) else None
        preview = self.preview if due(settings.sample_every) else None
        if not (saving or evaluate or preview or due(settings.log_every)):
            return
        line = log.summary(self.step) | {"learning_rate": learning_rate(settings, self.step - 1)}
        if not (math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])):
            raise ArithmeticError(f"the loss is not finite between steps {log.since} and {self.step}; try a lower "
                                  "training.learning_rate; the last checkpoint is kept")
        self.seconds += log.elapsed
        line["seconds"] = self.seconds
        if self.world.first or self.sharded:      # a network in parts works only in all processes
            line |= evaluate(self.averaged) if evaluate else {}
            picture = preview(self.averaged) if preview else None
            if self.world.first:
                log.write(line, picture)
            if saving:
                self.saver.save(self.step, self._state())
        log.restart(self.step)

    def _state(self) -> dict[str, Any]:
        return {"step": self.step, "seconds": self.seconds, **self.update.state()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]
        self.update.restore(state)
