"""The training loop: batches, updates of the weights, the log, evaluations, checkpoints, going on.

    repeat  batch, draw of this step
            update of the weights and of their average (update.py)

What is trained and on what comes from outside: a model, an objective, batches. Whatever step n draws depends on (seed, n)
alone. So a resumed run continues exactly as if it had not stopped, and a run shared by several processes sees the batches
and noise of a single one.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from scorefield.checkpoints.formats.run import Sound, newest_sound
from scorefield.checkpoints.snapshots import drop_snapshots, write_snapshot
from scorefield.configs.training import names_of
from scorefield.models.layers import recompute_activations
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.processes import Agreement, World
from scorefield.numerics.stopping import Noted, noting
from scorefield.sde_lib.sde import SDE
from scorefield.training.keeping import SANE, Keeping
from scorefield.training.log import Log
from scorefield.training.machine import Machine
from scorefield.training.meters import Meters
from scorefield.training.objectives.objective import Batch, Objective, memory_of
from scorefield.training.readers import reading
from scorefield.training.saving import Saver
from scorefield.training.sharding import gathered, shard, shared_out
from scorefield.training.update import Update
from scorefield.training.watch import Watch, diagnosis, finite

BARREN = 100         # steps in a row that may all be skipped
FAILED = 255         # what a process tells the others when it fails, in place of the number of a signal
NEVER = 2**60        # the number of a step that is none
T = TypeVar("T")


class Interrupted(Exception):
    """Training was stopped by the signal `number`, after saving a checkpoint at `step`."""

    def __init__(self, step: int, number: int):
        super().__init__(f"interrupted at step {step}")
        self.step, self.number = step, number


class Model(Protocol):
    """What can be trained: a module that sees a network through an SDE, as a Denoiser does, and can do so with another."""

    network: nn.Module
    sde: SDE

    def with_network(self, network: nn.Module) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...


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
    config     what the run's config.json holds; each checkpoint holds it, too
    start      where to go on: the newest sound checkpoint of `run` unless given
    meters     what adds figures to the lines of the log; `meters.objective` is the objective then
    measure    as evaluate, of samples, every `metrics_every` steps

    Distribution wraps the network, or shards it (sharding.py), before the optimiser and the averages are made. A network in
    shares works only in all processes at once: they then evaluate, preview and save together.
    """

    def __init__(self, model: Model, objective: Objective, batches: Callable[[int], tuple[Batch, Any]], settings: Any,
                 run: Path, device: torch.device, world: World | None = None,
                 evaluate: Callable[[Any], dict[str, float]] | None = None,
                 preview: Callable[[Any], Tensor] | None = None, progress: bool = True,
                 config: Mapping[str, Any] | None = None, start: Sound | None = None, meters: Meters | None = None,
                 measure: Callable[[Any], dict[str, float]] | None = None):
        self.model, self.objective, self.batches, self.settings = model, objective, batches, settings
        self.run, self.device, self.world, self.progress = run, device, world or World(), progress
        self.evaluate, self.preview, self.measure = evaluate, preview, measure
        self.config, self.meters = config, meters
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
        self.machine: Machine | None = None      # what was measured for this run, if `set_up` made it
        self.step, self.seconds = 0, 0.0
        self.keeping = Keeping(run, settings.keep, "" if settings.keep_best == "none" else settings.keep_best)
        self.watch, self.agree, self.signals = Watch(), Agreement(World()), Noted()
        self.bad, self.barren = torch.zeros((), device=device), 0      # steps that were skipped since the last line
        self.failure: Exception | None = None      # ends the loop before its next step
        self.saver = Saver(run, self.world, config, self.sharded, settings.sharded_saves)
        found = start or newest_sound(run)
        self.checkpoint = None if found is None else found.path
        if not self.world.agree(str(found and found.path.name), device):
            raise ArgumentError("the processes of torchrun must share the run's folder and see the same newest checkpoint",
                                "workdir")
        if found is not None:
            self._restore(shared_out(found.state, self.network) if self.sharded else found.state)
        self.started, self.saved = self.step, self.step if self.checkpoint else -1

    def train(self) -> Path | None:
        """Train to settings.steps; returns the last checkpoint.

        Raises Interrupted after a signal, ArithmeticError for a step that broke, ValueError for data that are not finite,
        and what else data or output raise. In each case the state after the last whole step is saved first, unless it is not
        finite; notes of the exception say so, and how to go on.
        """
        self.model.train()
        if self.world.first:
            drop_snapshots(self.run, self.step)
        with noting() as self.signals, self._log() as log, self.saver, reading(self.batches):
            self.agree, told = Agreement(self.world), 0
            self.watch.restart(self.step)
            while self.step < self.settings.steps:
                batch = self._tried(lambda: self.batches(self.step))
                if self.saver.done:
                    self._await_writer()
                told = self.agree(FAILED if self.failure is not None else self.signals.number)
                if told:
                    break
                assert batch is not None
                self._update(batch, log)
                self._report(log)
            self._await_writer()
            told = told or self.agree(FAILED if self.failure is not None else 0)      # in the last step
            if told:
                self._report(log, ending=True)
                self._await_writer()
        self.world.leave()
        if self.failure is not None:
            raise self._with_what_is_kept(self.failure)
        if told == FAILED:
            raise OSError("training has ended, since another process failed; that one says why")
        if told:
            raise Interrupted(self.step, told)
        return self.checkpoint

    def _log(self) -> Log:
        return Log(self.run, self.step, self.settings.steps, self.world, self.progress, self.meters,
                   names_of(self.settings.trackers, "training.trackers"))

    def _tried(self, work: Callable[[], T]) -> T | None:
        """The result; or None, and the error ends training before its next step, in all processes, after saving."""
        try:
            return work()
        except Exception as error:
            if self.failure is None:
                self.failure = error
            else:
                self.failure.add_note(f"besides: {error}")
            return None

    def _update(self, batch: tuple[Batch, Any], log: Log) -> None:
        try:
            loss, norm = self.update(*batch, self.step)
        except Exception as error:
            if self.world.size > 1:      # the others wait in the middle of this step
                raise
            self._tried(partial(_raise, error))
            return
        memory_of(self.objective).stepped(self.world)
        self.step += 1
        if self.settings.on_nonfinite == "skip":
            bad = ~(loss + norm).isfinite()
            self.bad += bad
            loss, norm = loss.masked_fill(bad, 0.0), norm.masked_fill(bad, 0.0)
        else:
            self.watch.add(loss, norm)
        log.add(loss, norm)

    def _report(self, log: Log, ending: bool = False) -> None:
        """Log, evaluate, preview and save if one of them is due after this step; else return at once.

        ending  save, whatever is due
        """
        settings = self.settings

        def due(every: int) -> bool:
            return not ending and bool(every) and (self.step % every == 0 or self.step == settings.steps)

        saving = ending or due(settings.checkpoint_every)
        broke = ending and self._in_any(isinstance(self.failure, ArithmeticError))      # is what it leaves sound?
        evaluate = self.evaluate if due(settings.eval_every) or (broke and settings.eval_every) else None
        preview = self.preview if due(settings.sample_every) else None
        measure = self.measure if due(settings.metrics_every) else None
        looking = (saving or evaluate or preview or measure or due(settings.log_every) or due(settings.snapshots_every))
        if looking or (self.device.type == "cpu" and self.world.size == 1):      # where it costs no wait, after each step
            self._find_broken_step(log)
        if not looking or (self.failure is not None and not ending):
            return
        line = self._line(log) if self.step > log.since else {}
        if self.world.first or self.sharded:
            figures = (self._looked_at(evaluate) or {}) | (self._looked_at(measure) or {})
            picture = self._looked_at(preview)
            if line and self.world.first:
                self._tried(lambda: log.write(line | figures, picture))
            if due(settings.snapshots_every):
                self._write_snapshot()
            if saving:
                self._save(figures if ending else line | figures, log)      # the mean of a few steps tells little
        log.restart(self.step)
        self.watch.restart(self.step)

    def _line(self, log: Log) -> dict[str, Any]:
        """The figures of the steps since the last line."""
        line = log.summary(self.step) | {"learning_rate": self.update.rate(self.step - 1)}
        line |= self._tried(self.update.figures) or {}
        self.seconds += log.elapsed
        line["seconds"] = self.seconds
        if self.settings.on_nonfinite == "skip":
            steps, bad = self.step - log.since, int(self.bad)
            line["skipped"] = int(self.update.skipped)
            for name in ("loss", "grad_norm"):      # means of the steps that were not skipped
                line[name] = line[name] * steps / (steps - bad) if bad < steps else math.nan
            self.bad.zero_()
            self.barren = self.barren + steps if bad == steps else 0
            if self.barren >= BARREN:
                self._tried(partial(_raise, ArithmeticError(
                    f"each of the last {self.barren} steps to step {self.step} was skipped: its gradient was not finite"
                    "; lower training.learning_rate")))
        return line

    def _find_broken_step(self, log: Log) -> None:
        """Find the first step that was not finite; go back to before it where its update and all after it were left out."""
        loss, norm = (-self.agree(-int(min(NEVER, first))) for first in self.watch.first())
        step = min(loss, norm)
        if step == NEVER:
            return
        if norm < NEVER:
            self.update.take_back(self.step - norm)
            self.step = norm
        log.restart(self.step)
        self.watch.restart(self.step)
        if self._in_any(not finite(self.network.state_dict())):      # the update before it did that
            step, (why, of_data) = step - 1, ("its update made weights that are not finite", False)
        else:
            why, of_data = diagnosis(step, self.batches, self.objective, self.model.with_network(self.network))
        advice = "mend or remove these examples" if of_data else "lower training.learning_rate"
        error = (ValueError if of_data else ArithmeticError)(
            f"step {step + 1} broke: {why}; {advice}, or leave such steps out with training.on_nonfinite=skip")
        self._tried(partial(_raise, error))

    def _save(self, figures: Mapping[str, float], log: Log) -> None:
        """Begin to write a checkpoint of this step, unless it is there already, or what it holds is not finite."""
        self._await_writer()
        if self._in_any(self.step == self.saved or not self.update.whole):
            return
        state = self._state()
        if self._in_any(not finite(state)):
            if self.failure is None:
                self._tried(partial(_raise, ArithmeticError(
                    f"step {self.step} broke: its update made weights that are not finite; lower training.learning_rate")))
            return
        self._tried(lambda: self.saver.save(self.step, state, partial(self._keep, self.step, figures, log)))

    def _keep(self, step: int, figures: Mapping[str, float], log: Log) -> None:
        """Remove the checkpoints that need not stay beside that of `step`; in the thread that has written it."""
        self.keeping.saved(step, figures)
        if figures and (advice := self.keeping.advice()) and self.keeping.last_sound != step:
            log.say(f"step {step} is not sound: its loss is more than {SANE:g} times the lowest of the run; {advice}")

    def _await_writer(self) -> None:
        """Until no checkpoint is being written. What the writer has raised ends training before its next step."""
        self._tried(self.saver.wait)
        if self.saver.newest is not None:
            self.checkpoint, self.saved = self.saver.newest, self.saver.step

    def _write_snapshot(self) -> None:
        averages = self.update.snapshot()
        if self.sharded:
            averages = gathered(averages, self.world.first)
        if self.world.first:
            self._tried(lambda: write_snapshot(self.run, self.step, averages, self.settings.snapshots_precision))

    def _in_any(self, flag: bool) -> bool:
        """Whether the flag is set, here or, of a network in shares, in any process: all must then do the same."""
        return bool(self.agree(int(flag))) if self.sharded else flag

    def _with_what_is_kept(self, error: Exception) -> Exception:
        """The error, with notes that say what is saved, and how to go on; only the first process knows."""
        if not self.world.first:
            return error
        if self.checkpoint is None:
            error.add_note("nothing was saved")
        else:
            error.add_note(f"{self.checkpoint} holds step {max(self.saved, self.started)}; the same command goes on from "
                           "there")
            if self.keeping.last_sound not in (self.saved, None):
                error.add_note(self.keeping.advice())
        return error

    def _looked_at(self, look: Callable[[Any], T] | None) -> T | None:
        """What is made of the averaged model, which may take long; None if a signal comes meanwhile.

        A network in shares is looked at to the end, and errors are raised, since the others wait in the middle of it.
        """
        if look is None:
            return None
        if self.sharded:
            return look(self.averaged)
        return self._tried(lambda: self.signals.unless_stopped(lambda: look(self.averaged)))

    def _state(self) -> dict[str, Any]:
        remembered = memory_of(self.objective).state()
        return {"step": self.step, "seconds": self.seconds, **self.update.state(),
                **({} if remembered is None else {"objective": dict(remembered)})}

    def _restore(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]
        self.update.restore(state)
        memory_of(self.objective).restore(state.get("objective"))


def _raise(error: Exception) -> None:
    raise error
