"""The contract of a sampler, and the loop that all share.

A sampler is a frozen dataclass of its own settings. Its `solve` is a generator: the state at each time of the grid in
turn, written like the algorithm in its paper. The loop here does the rest: it counts evaluations, records, calls
back, and refuses a state that is not finite.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from scorefield.models.score_model import MeanGuidance, Posterior, ScoreModel, evaluation_mode
from scorefield.models.student import COUPLED, Student
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.grids import GRIDS, make_grid
from scorefield.numerics.noise import NoiseStream, Seed
from scorefield.numerics.options import option
from scorefield.sde_lib.sde import SDE, expand_as

Callback = Callable[[int, float, Tensor], None]      # (step, t, x)
# help of options that several samplers have, with defaults of their own
STEPS, GRID = "steps of the grid", f"{', '.join(GRIDS)}, or a list of times, which sets steps"
AUTO = "auto"      # uniform in time, or of a chain its own indices, and a last step from index 0 to the data
PLACES = 999      # steps of the grid from which an optimal one is taken in continuous time
OPTIMAL = "optimal"      # as auto, but those indices (or of 1000 times) whose bound is best (ScoreModel.best_indices)
ETA = "noise of the reverse process: 1 is the reverse-time SDE, 0 the probability flow"


def prior_sample(sde: SDE, event_shape: Sequence[int], seeds: Sequence[Seed], device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32) -> Tensor:
    """x at t_max, drawn from the SDE's prior, (len(seeds), *event_shape): `prior_sample(model.sde, (1, 8, 8), range(10))`.

    seeds  one for each sample; what a seed gives depends on nothing else
    """
    return sde.prior.sample(event_shape, seeds, device, dtype)


@dataclass(frozen=True)
class Result:
    """x (batch, *event) at the last time; nfe, evaluations of the network; where asked, how it came there.

    times (n,) and trajectory (n, batch, *event) include both ends; a final denoising step is not a part of them.
    predictions are the x_0 that the model predicted, (predictions without denoising, batch, *event), in their order.
    """

    x: Tensor
    nfe: int
    times: Tensor
    trajectory: Tensor | None = None
    predictions: Tensor | None = None


class CountedModel:
    """A score model that counts evaluations of its network in `nfe` and, if asked to, keeps every x_0 it predicts.

    A prediction at t costs `model.evaluations_at(t)` of them.
    """

    def __init__(self, model: ScoreModel, keep: bool = False):
        self.model, self.sde, self.nfe = model, model.sde, 0
        self.predictions: list[Tensor] | None = [] if keep else None

    def predict(self, x: Tensor, t: float | Tensor, kind: str, model: ScoreModel | None = None) -> Tensor:
        """As ScoreModel's, of the model or of another one that stands for it."""
        model = model or self.model
        self.nfe += model.evaluations_at(t)
        return self._noted(model.predict(x, t, kind), x, t, kind)

    def with_share(self, x: Tensor, t: float | Tensor, kind: str, model: ScoreModel | None = None) -> tuple[Tensor, Tensor]:
        """As ScoreModel's, of the model or of another one that stands for it."""
        model = model or self.model
        self.nfe += model.evaluations_at(t)
        output, share = model.with_share(x, t, kind)
        return self._noted(output, x, t, kind), share

    def _noted(self, output: Tensor, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        """A prediction, which is another tensor than x; its x_0 is kept if that is asked for."""
        if output.data_ptr() == x.data_ptr():      # a model that returns its input, which samplers change in place
            output = output.clone()
        if self.predictions is not None:
            alpha, sigma = expand_as(self.sde.alpha(t), x), expand_as(self.sde.sigma(t), x)
            x0 = {"x0": lambda: output.clone(), "eps": lambda: (x - sigma * output) / alpha,
                  "score": lambda: (x + sigma**2 * output) / alpha}[kind]()
            self.predictions.append(x0)
        return output

    def gradient(self, guidance: MeanGuidance, x: Tensor, t: float | Tensor) -> Tensor:
        """The gradient that guides the unguided model, (batch, *event)."""
        self.nfe += guidance.evaluations_at(t)
        return guidance.gradient(x, t)

    def posterior(self, x: Tensor, t: float | Tensor) -> Posterior:
        """As ScoreModel's."""
        self.nfe += self.model.evaluations_at(t)
        posterior = self.model.posterior(x, t)
        if self.predictions is not None:
            self.predictions.append(posterior.mean.clone())
        return posterior

    def eps(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.predict(x, t, "eps")

    def x0(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.predict(x, t, "x0")

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.predict(x, t, "score")


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """The base of all samplers. Their options are the fields, each with a line of help (`sampler_options(name)`)."""

    t_end: float | None = option(None, "time at which to stop; by default t_sample of the SDE")
    denoise: bool | None = option(None, "return the x_0 predicted at t_end, with one more evaluation; a chain's grid auto "
                                        "does, as its last step")
    only = "score models"      # what it may sample, for messages

    @property
    def settings(self) -> dict[str, Any]:
        """The options by name, as plain values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    @abstractmethod
    def order(self) -> float:
        """Of convergence: weak where stochastic (strong for torchsde), strong where not."""

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether it draws noise, and so needs seeds."""

    def end(self, model: ScoreModel) -> float:
        """t_end if it is set, else t_sample of the model's SDE."""
        return model.sde.t_sample if self.t_end is None else self.t_end

    def denoises(self, model: ScoreModel) -> bool:
        """Whether the x_0 predicted at the last time is returned."""
        return bool(self.denoise)

    def takes(self, student: Student | None, times: Tensor) -> bool:
        """Whether it may sample what was distilled for this (models/student.py) on a grid; None stands for score models."""
        return student is None or (student.kind == COUPLED and not self.stochastic)

    def check(self, model: ScoreModel, times: Tensor) -> None:
        """ArgumentError unless this sampler, on this grid, is one that the model was made for."""
        if self.takes(model.student, times):
            return
        if model.student is None:
            raise ArgumentError(f"this sampler is for {self.only}, and the model is a score model; choose another sampler",
                                "sampler")
        if model.student.kind == COUPLED:
            raise ArgumentError(f"the model is {model.student}: choose {model.student.advice}", "sampler")
        raise ArgumentError(f"the model is {model.student}, and only its own sampler may use it: {model.student.advice}",
                            "sampler", *model.student.options)

    @abstractmethod
    def times(self, model: ScoreModel) -> Tensor:
        """The times at which states come out, float64, from first to last; ValueError if the settings allow none."""

    @abstractmethod
    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        """Yield the state at times[1], times[2], ... , starting from x at times[0], which stays as it is.

        Where no gradients are recorded, the next step may change a state that was yielded in place.
        """

    def __call__(self, model: ScoreModel, x_T: Tensor, seeds: Sequence[Seed] | None = None, trajectory: bool = False,
                 callback: Callback | None = None, predictions: bool = False, gradients: bool = False) -> Result:
        """Carry x_T (batch, *event) from the first time of the grid to the last, and project what comes out (model.project).

        seeds     one for each sample, for stochastic samplers (noise.py); ValueError if they are missing
        trajectory, predictions  keep the state at every time, and every x_0 that the model predicted
        callback  called after each step as callback(step, t, x), steps counted from 1; x is the sampler's own, to be
                  copied by who keeps it, and not projected yet
        gradients  record what autograd needs to differentiate the result with respect to x_T and the model's parameters;
                  memory grows with every evaluation. Adaptive step sizes are taken as given

        Raises ArithmeticError if the state stops being finite, with the step and its time.
        """
        times = self.times(model)
        self.check(model, times)
        with evaluation_mode(model), torch.set_grad_enabled(gradients):
            counted = CountedModel(model, predictions)
            states = self._run(counted, x_T, times, seeds, trajectory, callback)
            nfe = counted.nfe
            x = states[-1]
            if not bool(x.isfinite().all()):
                self._report_failure(model, x_T, times, seeds)
            if denoise := self.denoises(model):
                x, nfe = model.x0(x, times[-1]), nfe + model.evaluations_at(times[-1])
                if not bool(x.isfinite().all()):
                    raise ArithmeticError(f"the data predicted by the denoising step at t = {float(times[-1]):.6g} are not "
                                          "finite; nothing was kept")
            x = model.project(x)
            if not denoise:
                states[-1] = x
        return Result(x, nfe, times, torch.stack(states) if trajectory else None,
                      torch.stack(counted.predictions) if counted.predictions is not None else None)

    def _noise(self, x_T: Tensor, seeds: Sequence[Seed] | None) -> NoiseStream | None:
        if not self.stochastic:
            return None
        if seeds is None or len(seeds) != len(x_T):
            raise ValueError(f"{type(self).__name__} is stochastic: pass seeds, one for each of the {len(x_T)} samples")
        return NoiseStream(seeds)

    def _run(self, model: CountedModel, x: Tensor, times: Tensor, seeds: Sequence[Seed] | None, keep: bool,
             callback: Callback | None) -> list[Tensor]:
        states = [x]
        for step, state in enumerate(self.solve(model, x, times, self._noise(x, seeds)), start=1):
            if not keep:
                states.clear()
            states.append(state.clone() if keep else state)
            if callback is not None:
                callback(step, float(times[step]), state)
        return states

    def _report_failure(self, model: ScoreModel, x_T: Tensor, times: Tensor, seeds: Sequence[Seed] | None) -> None:
        """Run once more, looking at every step; the loop itself never waits for the device."""

        def check(step: int, t: float, x: Tensor) -> None:
            bad = (~x.isfinite()).flatten(1).any(1)
            if bool(bad.any()):
                raise ArithmeticError(f"{int(bad.sum())} of {len(x)} samples are not finite after step {step} of "
                                      f"{len(times) - 1}, at t = {t:.6g}; nothing was kept")

        check(0, float(times[0]), x_T)
        with torch.no_grad():
            self._run(CountedModel(model), x_T, times, seeds, False, check)
        raise ArithmeticError("the samples were not finite, but a second run was: the model is not deterministic")


@dataclass(frozen=True, kw_only=True)
class GridSampler(Sampler):
    """A sampler with a fixed time grid. On the indices of a chain, a default of more steps than it has takes all of them."""

    steps: int = option(100, STEPS)
    grid: str | Sequence[float] = option(AUTO, f"auto, optimal, {GRID}")

    def denoises(self, model: ScoreModel) -> bool:
        return self._ends_at_the_data(model) if self.denoise is None else self.denoise

    def _ends_at_the_data(self, model: ScoreModel) -> bool:
        """Whether the last of the steps is that of a chain from its index 0 to the data."""
        return self.grid in (AUTO, OPTIMAL) and model.sde.steps is not None and self.t_end is None and self.denoise is None

    def times(self, model: ScoreModel) -> Tensor:
        return self.grid_of(model, self.steps)

    def grid_of(self, model: ScoreModel, steps: int) -> Tensor:
        """The grid of that many steps; ValueError also if the grid conflicts with another option."""
        if not isinstance(self.grid, str):
            if self.steps not in (type(self).steps, len(self.grid) - 1):
                raise ArgumentError(f"a list of {len(self.grid)} times fixes the steps; leave out steps={self.steps}",
                                    "steps")
            if self.t_end not in (None, self.grid[-1]):
                raise ArgumentError(f"a list of times fixes the end; leave out t_end={self.t_end}", "t_end")
        elif self.grid in ("strided_leading", "strided_trailing") and self.t_end is not None:
            raise ArgumentError(f"grid {self.grid!r} fixes the end; leave out t_end={self.t_end}", "t_end")
        sde = model.sde
        if self.grid not in (AUTO, OPTIMAL):
            return make_grid(self.grid, sde, steps, self.end(model))
        if sde.steps is None:
            if self.grid == AUTO:
                return make_grid("uniform", sde, steps, self.end(model))
            times = make_grid("logsnr", sde, PLACES, self.end(model))
            return times[model.best_indices(times, steps + 1)]
        if not self._ends_at_the_data(model):
            if self.grid == OPTIMAL:
                raise ArgumentError("grid 'optimal' of a chain ends at the data; leave out t_end and denoise", "grid")
            return make_grid("strided", sde, steps, self.end(model))
        if steps == type(self).steps:      # nobody has chosen it
            steps = min(steps, sde.steps)
        if not 2 <= steps <= sde.steps:
            raise ArgumentError(f"a chain of {sde.steps} indices takes 2 to {sde.steps} steps on them, got {steps}; grid "
                                "uniform takes any number", "steps")
        every = make_grid("strided", sde, sde.steps - 1, sde.t_max / sde.steps)
        if self.grid == OPTIMAL:
            return every[model.best_indices(every, steps)]
        return make_grid("strided", sde, steps - 1, sde.t_max / sde.steps)
