"""Training: the algorithm of Ho et al. 2020 (algorithm 1) for any SDE, weighting and parametrisation.

    repeat  x_0 ~ data, t ~ p, eps ~ N(0, I)
            step on grad  w(t)/p(t) || eps_theta(alpha x_0 + sigma eps, t) - eps ||^2

Whatever step n draws depends on (seed, n) alone, so a resumed run continues exactly as if it had not stopped, and a run
shared by several processes sees the batches and noise of a single one.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from scorefield.checkpoints.formats.run import newest_checkpoint, read_state, write_checkpoint
from scorefield.data import Dataset, batch_indices, codec_of, random_flip
from scorefield.models.build import build_denoiser
from scorefield.models.denoiser import Denoiser, evaluation_mode
from scorefield.models.ema import EMA
from scorefield.models.layers import recompute_activations
from scorefield.numerics.devices import autocast_dtype, keep_freed_memory, set_memory_format
from scorefield.numerics.files import write_atomically
from scorefield.numerics.processes import World, connect
from scorefield.training.objective import Objective

Preview = Callable[[Denoiser], Tensor]      # samples as a picture (3, height, width), uint8


class Interrupted(Exception):
    """Training was stopped by a signal, after saving a checkpoint at `step`."""

    def __init__(self, step: int):
        super().__init__(f"interrupted at step {step}")
        self.step = step


def build_objective(denoiser: Denoiser, training: Any) -> Objective:
    """The objective of config.training; on a chain where the SDE is that of a chain."""
    return Objective(denoiser.sde, training.weighting, training.time_sampling, training.importance,
                     steps=denoiser.sde.steps, data_std=denoiser.input_std)


def learning_rate(training: Any, step: int) -> float:
    """Linear warm-up over `warmup` steps, then constant, or a half cosine that reaches 0 after the last step."""
    rate = training.learning_rate * min(1.0, (step + 1) / max(training.warmup, 1))
    if training.decay == "cosine":
        progress = max(0, step - training.warmup) / max(1, training.steps - training.warmup)
        rate *= 0.5 * (1 + math.cos(math.pi * progress))
    return rate


class Batches:
    """The training batch of any step, this process's share of it: (x0, t, weight, eps) on the device."""

    def __init__(self, config: Any, dataset: Dataset, objective: Objective, device: torch.device, world: World):
        self.config, self.dataset, self.objective, self.device, self.world = config, dataset, objective, device, world
        self.codec = codec_of(config.data, dataset.levels)
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Any] = (-1, None)

    def _fetch(self, step: int) -> Tensor:
        training = self.config.training
        indices = batch_indices(len(self.dataset.train), training.batch_size, step, training.seed)
        return self.dataset.train[indices[self.world.rank::self.world.size]][0]

    def _prefetched(self, step: int) -> Tensor:
        """As _fetch, with the next batch read from disk while the network works on this one."""
        at, fetched = self._next
        self._next = (step + 1, self._pool.submit(self._fetch, step + 1))
        return fetched.result() if at == step else self._fetch(step)

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        examples = self._fetch(step) if getattr(self.dataset.train, "in_memory", False) else self._prefetched(step)
        seed = int(np.random.SeedSequence([self.config.training.seed, step]).generate_state(1, np.uint64)[0])
        _seed_dropout((seed + self.world.rank) % 2**64, self.device)
        host = torch.Generator().manual_seed(seed)
        here = torch.Generator(self.device).manual_seed(seed)
        batch = self.config.training.batch_size
        share = slice(self.world.rank, None, self.world.size)
        t, weight = torch.stack(self.objective.draw_times(batch, host))[:, share].to(
            self.device, torch.float32 if self.device.type == "mps" else torch.float64)
        shape = (batch, *self.dataset.shape)
        eps = torch.randn(shape, generator=here, device=self.device)[share]
        u = torch.rand(shape, generator=here, device=self.device)[share] if self.codec.noisy else None
        x0 = self.codec.encode(examples.to(self.device), u)
        if self.dataset.flip:
            x0 = random_flip(x0, host)
        return x0, t, weight, eps


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Dropout knows only the global generator of its device; torch.manual_seed sets those of all, in half a ms."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@torch.no_grad()
def held_out_loss(denoiser: Denoiser, objective: Objective, dataset: Dataset, config: Any, device: torch.device,
                  limit: int = 1024) -> float:
    """The objective on (at most `limit`) held-out examples, with times and noise that are the same in every call."""
    n, total, codec = min(limit, len(dataset.test)), 0.0, codec_of(config.data, dataset.levels)
    generator = torch.Generator().manual_seed(0)
    times, weights = objective.draw_times(n, generator)
    with evaluation_mode(denoiser):
        for part in torch.arange(n).split(config.training.batch_size):
            shape = (len(part), *dataset.shape)
            u = torch.rand(shape, generator=generator) if codec.noisy else None
            x0 = codec.encode(dataset.test[part][0], u).to(device)
            eps = torch.randn(shape, generator=generator).to(device)
            total += float(objective.loss(denoiser, x0, times[part], weights[part], eps).sum())
    return total / n


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """A list to which the first SIGINT or SIGTERM is added, instead of stopping us; the second one stops us."""
    noted: list[int] = []

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

    preview  makes a picture of samples for TensorBoard every `sample_every` steps
    """

    def __init__(self, config: Any, dataset: Dataset, run: Path, device: torch.device, preview: Preview | None = None):
        training = config.training
        self.config, self.dataset, self.run, self.device, self.preview = config, dataset, run, device, preview
        self.world = connect(device)
        keep_freed_memory(device)
        torch.manual_seed(training.seed)
        self.denoiser = build_denoiser(config, dataset.shape).to(device)
        self.denoiser.autocast = autocast_dtype(training.precision, device)
        self.network = self.denoiser.network
        set_memory_format(self.network, device, self.denoiser.autocast, training.memory_format)
        self.objective = build_objective(self.denoiser, training)
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=0.0, betas=(training.beta1, training.beta2),
                                          eps=training.adam_eps, fused=device.type != "mps")
        self.ema = EMA(self.network, training.ema_decay)
        self.averaged = self.denoiser.with_network(self.ema.module)
        self.step, self.seconds = 0, 0.0
        self.checkpoint = newest_checkpoint(run)
        if self.checkpoint is not None:
            self._restore(read_state(self.checkpoint))
        if training.activation_checkpointing:
            recompute_activations(self.network)
        if training.compile:
            self.network.compile()
        self.denoiser.network = self.world.wrap(self.network, device)

    def _state(self) -> dict[str, Any]:
        return {"step": self.step, "seconds": self.seconds, "network": self.network.state_dict(),
                "ema": self.ema.module.state_dict(), "ema_updates": self.ema.updates,
                "optimizer": self.optimizer.state_dict()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.step, self.seconds, self.ema.updates = state["step"], state["seconds"], state["ema_updates"]
        self.network.load_state_dict(state["network"])
        self.ema.module.load_state_dict(state["ema"])
        if state["optimizer"] is not None:      # an imported checkpoint may have none; what Adam is told is the config's
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
            for parameter, entry in self.optimizer.state.items():      # fused Adam goes by memory, whatever the strides
                for moment in ("exp_avg", "exp_avg_sq"):
                    entry[moment] = torch.empty_like(parameter).copy_(entry[moment])

    def train(self) -> Path | None:
        """Train to config.training.steps; returns the last checkpoint.

        Raises Interrupted after a signal, ArithmeticError where the loss stops being finite (nothing is saved then).
        """
        batches = Batches(self.config, self.dataset, self.objective, self.device, self.world)
        self.denoiser.train()
        with _signals_noted() as signals, _Log(self.run, self.step, self.config.training.steps, self.world) as log:
            while self.step < self.config.training.steps:
                loss, norm = self._update(*batches(self.step))
                self.step += 1
                log.add(loss, norm)
                stop = (self.world.size == 1 or self.step % 10 == 0) and self.world.any(bool(signals), self.device)
                self._report(log, stop)
                if stop:
                    raise Interrupted(self.step)
        self.world.leave()
        return self.checkpoint

    def _update(self, x0: Tensor, t: Tensor, weight: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the optimiser and of the average; the loss and the gradient's norm, still on the device."""
        training = self.config.training
        loss = self.objective.loss(self.denoiser, x0, t, weight, eps).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, training.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(training, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.network)
        return loss.detach(), norm

    def _report(self, log: "_Log", stop: bool) -> None:
        """Log, evaluate, preview and save where one of them is due after this step; else return at once."""
        training = self.config.training

        def due(every: int) -> bool:
            return bool(every) and (self.step % every == 0 or self.step == training.steps)

        saving, evaluating, sampling = stop or due(training.checkpoint_every), due(training.eval_every), False
        if self.preview is not None:
            sampling = due(training.sample_every)
        if not (saving or evaluating or sampling or due(training.log_every)):
            return
        line = log.summary(self.step) | {"learning_rate": learning_rate(training, self.step - 1)}
        if not (math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])):
            raise ArithmeticError(f"the loss is not finite between steps {log.since} and {self.step}; try a lower "
                                  "training.learning_rate; the last checkpoint is kept")
        self.seconds += log.elapsed
        line["seconds"] = self.seconds
        if self.world.first:
            if evaluating:
                line["held_out_loss"] = held_out_loss(self.averaged, self.objective, self.dataset, self.config,
                                                      self.device)
            log.write(line, self.preview(self.averaged) if sampling and self.preview is not None else None)
            if saving:
                self.checkpoint = write_checkpoint(self.run, self.step, self._state(), training.keep)
        log.restart(self.step)


class _Log:
    """Sums of loss and gradient norm since the last line, kept on the device; lines to stats.jsonl, TensorBoard and the
    terminal (a bar there, plain lines where there is none)."""

    def __init__(self, run: Path, step: int, steps: int, world: World):
        self.world, self.steps = world, steps
        self.stats = _reopen(run / "stats.jsonl", step) if world.first else None
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step) if world.first else None
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=None if world.first else True)
        self.restart(step)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.bar.close()
        if self.stats is not None and self.writer is not None:
            self.stats.close()
            self.writer.close()

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
        self.stats.write(json.dumps(line) + "\n")
        self.stats.flush()
        step = int(line["step"])
        values = {name: value for name, value in line.items() if name != "step"}
        for name, value in values.items():
            self.writer.add_scalar(f"training/{name}", value, step)
        if picture is not None:
            self.writer.add_image("samples", picture, step)
        text = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
        if self.bar.disable:
            print(f"step {step} of {self.steps}  {text}", flush=True)
        else:
            self.bar.set_postfix_str(text)


def _reopen(path: Path, step: int) -> TextIO:
    """The file of statistics, to be appended to, without the lines of steps that a killed run did not save."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if kept != lines:
        write_atomically(path, lambda file: file.write("".join(kept).encode()))
    return open(path, "a")
