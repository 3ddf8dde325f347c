"""The work of restoring: which measurements or answers are made together, and how each such part is made.

Under twisted_smc a part is some measurements whose particles a network sees at once; under other samplers, some answers.
Answer i of measurement m depends on (seed, m, i) alone; under adaptive solvers, which choose their steps for a part, up to
their tolerance.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from scorefield.evaluation.parts import Arrays, Parts
from scorefield.evaluation.progress import Progress
from scorefield.models import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import json_digest
from scorefield.numerics.noise import particle_seeds
from scorefield.numerics.processes import World
from scorefield.samplers import Sampler, TwistedSMC, WeightedResult, prior_sample

if TYPE_CHECKING:
    from scorefield.evaluation.restore import Problem

GOLDEN = 0x9E3779B97F4A7C15


class Done(Protocol):
    """The results of all parts, each by its range."""

    @property
    def units(self) -> Sequence[range]: ...

    def __getitem__(self, unit: range, /) -> Arrays: ...


@dataclass(frozen=True, eq=False)
class Restoration:
    """What is to be done to restore, as `evaluation.restore.restore` is told.

        work = Restoration(model, problem, sampler, "tmpd", samples=8)
        parts = work.begun(folder, identity="digits of the model's weights")
        work.run(parts)
        restored(work, parts)      # of evaluation.restore

    Raises ArgumentError for what does not fit together, before any work.
    """

    model: ScoreModel
    problem: Problem
    sampler: Sampler
    method: str = "tmpd"
    samples: int = 8
    seed: int = 0
    batch_size: int = 128
    device: torch.device | str = "cpu"
    steps: int = dataclasses.field(init=False)
    guided: ScoreModel = dataclasses.field(init=False)      # of the first measurement

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ArgumentError(f"samples must be at least 1, got {self.samples}", "samples")
        sampler = self.sampler
        if isinstance(sampler, TwistedSMC) and sampler.particles > self.batch_size and sampler.chunk is None:
            object.__setattr__(self, "sampler", dataclasses.replace(sampler, chunk=self.batch_size))
        first = self.problem.given(self.model, torch.arange(1), self.method)      # refuses what does not fit
        object.__setattr__(self, "guided", first)
        object.__setattr__(self, "steps", len(self.sampler.times(first)) - 1)

    @property
    def weighted(self) -> bool:
        return isinstance(self.sampler, TwistedSMC)

    @property
    def units(self) -> list[range]:
        """The parts: numbers of measurements, or of answers, those of a measurement one after the other."""
        n, size = len(self.problem.y), self.batch_size
        if isinstance(self.sampler, TwistedSMC):
            size = max(1, size // self.sampler.particles)
        else:
            n *= self.samples
        return [range(start, min(start + size, n)) for start in range(0, n, size)]

    def identity_of(self, model: Any) -> str:
        """Digits of all that the answers depend on; `model` are plain values that stand for the model, and a Function."""
        of = [model, self.problem.identity, type(self.sampler).__name__, vars(self.sampler), self.method, self.samples,
              self.seed, self.batch_size, torch.device(self.device).type]
        return json_digest(of, repr)[:16]

    def begun(self, folder: Path | None = None, identity: str = "") -> Parts:
        """The parts, with what of them is in the folder already."""
        return Parts(self.units, "measurements" if self.weighted else "answers", folder, identity)

    def run(self, parts: Parts, world: World | None = None, progress: bool = False) -> None:
        """Make this process's share of the parts that are missing. ArithmeticError if answers are not finite."""
        world, done = world or World(), parts.done
        missing = [unit for unit in parts.units if not parts.has(unit)]
        if progress and world.first and missing and done:
            print(f"continuing: {done} of {len(parts)} {parts.what} are done already", flush=True)
        with Progress(self.steps * len(missing), "step", progress and world.first, parts.what, len(parts)) as bar:
            parts.work(lambda unit: self.made(unit, bar), world, bar)

    def made(self, unit: range, bar: Progress) -> Arrays:
        """A part."""
        start = time.perf_counter()
        found = self._weighted(unit, bar) if self.weighted else self._plain(unit, bar)
        return {**found, "seconds": np.float64(time.perf_counter() - start)}

    def _weighted(self, unit: range, bar: Progress) -> dict[str, Any]:
        sampler = self.sampler
        assert isinstance(sampler, TwistedSMC)
        model = self.problem.given(self.model, torch.tensor(unit), self.method)
        seeds = particle_seeds(self.seed, len(unit), sampler.particles, unit.start)
        result = sampler(model, prior_sample(model.sde, self.problem.event, seeds, self.device), seeds, callback=bar.step)
        # each measurement's answers by a seed of its own, so that they do not depend on the others
        chosen = [_of_one(result, i).chosen(self.samples, (self.seed + m * GOLDEN) % 2**64)[0] for i, m in enumerate(unit)]
        tensors = {"x": torch.stack(chosen), "mean": result.mean(), "std": result.std(), "log_evidence": result.log_evidence,
                   "log_evidence_error": result.log_evidence_error, "effective_samples": result.effective_samples}
        # more than steps * particles where particles are resampled and seen again
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()} | {
            "evaluations": np.float64(result.nfe * len(seeds))}

    def _plain(self, unit: range, bar: Progress) -> dict[str, Any]:
        every = particle_seeds(self.seed, len(self.problem.y), self.samples)
        rows, seeds = torch.tensor(unit) // self.samples, every[unit.start:unit.stop]
        model = self.problem.given(self.model, rows, self.method)
        result = self.sampler(model, prior_sample(model.sde, self.problem.event, seeds, self.device), seeds,
                              callback=bar.step)
        return {"x": result.x.cpu().numpy(), "evaluations": np.float64(result.nfe * len(seeds))}

    def joined(self, parts: Done) -> dict[str, Any]:
        """All parts together: the fields of evaluation.restore.Restored."""
        every = [parts[unit] for unit in parts.units]
        sums = {name: float(sum(part[name] for part in every)) for name in ("evaluations", "seconds")}
        arrays = {name: torch.from_numpy(np.concatenate([np.asarray(part[name]) for part in every])) for name in every[0]
                  if name not in sums}
        if not self.weighted:
            x = arrays["x"].unflatten(0, (len(self.problem.y), self.samples))
            arrays = {"x": x, "mean": x.mean(1), "std": x.std(1, correction=0)}
        return {**arrays, "evaluations": sums["evaluations"] / len(self.problem.y), "seconds": sums["seconds"]}


def _of_one(result: WeightedResult, i: int) -> WeightedResult:
    """The particles of one measurement."""
    particles = result.log_weights.shape[1]
    names: Sequence[str] = ("log_weights", "effective_samples", "log_evidence", "log_evidence_error")
    return dataclasses.replace(result, x=result.x[i * particles:(i + 1) * particles], trajectory=None, predictions=None,
                               **{name: getattr(result, name)[i:i + 1] for name in names})
