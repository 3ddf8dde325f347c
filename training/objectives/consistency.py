"""Consistency models in discrete time: f(x_t, t) is the end of the flow through x_t, from any time at once.

Song et al. 2023, "Consistency Models", algorithms 2 and 3. Along the flow f does not change, and f(x, 0) = x. So for
neighbours t > s of a grid

    loss = E  lambda(t) d( f(x_t, t), stopgrad f(x_s, s) ),      f = x_0 as the network predicts it

    distillation   x_s is on the teacher's flow from x_t, after one or several steps of DDIM or of Heun's method
    training       x_s = alpha_s x_0 + sigma_s eps, of the same x_0 and eps as x_t; no teacher

The improvements of Song and Dhariwal 2024, "Improved Techniques for Training Consistency Models", are here or can be chosen:
no average of the weights in the target; the pseudo-Huber distance sqrt(|e|^2 + c^2) - c with c = .00054 sqrt(D); intervals
doubled in equal parts of the training (`first_intervals`); lambda = 1 / (l_t - l_s), l = sigma / alpha
(`interval_weight=inverse`); times by a normal density of ln l (`levels=lognormal`). By default every interval counts 1 as in
Song et al. 2023: with the Huber distance the sum over a grid then bounds the error at t_max, whatever the grid.

An error at each interval adds to those nearer to the data, and what is learned there has to travel through all of them. So
with few updates few intervals are better; `teacher_steps` keeps the teacher's steps short where intervals are long.

The grid ends with t_sample and the data: from there on the target is x_s itself. Both evaluations have the same dropout.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.models.denoiser import Denoiser
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.grids import make_grid
from scorefield.numerics.options import option, worded
from scorefield.numerics.text import choose
from scorefield.sde_lib.sde import SDE, expand_as
from scorefield.training.objectives.levels import Even, LogNormal, make_levels
from scorefield.training.objectives.objective import Batch
from scorefield.training.objectives.score_matching import told
from scorefield.training.objectives.taught import Lesson, Progress, Taught
from scorefield.training.times import TIME_SAMPLERS

SOLVERS, INTERVAL_WEIGHTS = ("ddim", "heun"), ("even", "inverse")
MOST_INTERVALS = 100_000


@dataclass(frozen=True)
class SquaredNorm:
    """|e|^2 / D of errors e (batch, *event)."""

    def __call__(self, error: Tensor) -> Tensor:
        return error.square().flatten(1).mean(1)


@dataclass(frozen=True)
class HuberNorm:
    """(sqrt(|e|^2 + c^2 D) - c sqrt(D)) / sqrt(D) of errors e (batch, *event): of the whole vector, not of each element."""

    c: float = option(0.00054, "c / sqrt(D): error from which on the distance grows linearly")

    def __post_init__(self) -> None:
        if not 0 < self.c < math.inf:
            raise ArgumentError(f"c of the distance must be above 0, got {self.c}", "distance")

    def __call__(self, error: Tensor) -> Tensor:
        square = error.square().flatten(1).mean(1)
        return square / ((square + self.c**2).sqrt() + self.c)      # without cancellation


DISTANCES: dict[str, type[SquaredNorm | HuberNorm]] = {"squared": SquaredNorm, "huber": HuberNorm}


@dataclass(frozen=True, eq=False)
class Intervals:
    """The first times of the intervals of a grid, whose number grows with the updates: `grid` (n + 1,) ends with 0.

    first, last  number of intervals at the beginning and at the end of `updates`
    weight       lambda: "even", the number of intervals, so that their mean is a sum, or "inverse"
    substeps     of the teacher in each interval
    """

    sde: SDE
    kind: str
    levels: Even | LogNormal
    sampling: str
    first: int
    last: int
    updates: int | None
    progress: Progress
    weight: str = "even"
    substeps: int = 1

    def number(self) -> int:
        """Of intervals now: doubled in equal parts of the updates (Song and Dhariwal 2024, section 3.4)."""
        if self.first == self.last or self.updates is None:
            return self.last
        part = max(1, int(self.updates / (math.floor(math.log2(self.last / self.first)) + 1)))
        return min(self.first * 2 ** min(self.progress.updates // part, 32), self.last)

    def grid(self) -> Tensor:
        """The times of now, float64 on the CPU: from t_max to t_sample, and 0."""
        times = self.fine()[::self.substeps]
        return torch.cat([times, times.new_zeros(1)])

    def fine(self) -> Tensor:
        """The times of the teacher's steps, from t_max to t_sample."""
        return make_grid(self.kind, self.sde, (self.number() - 1) * self.substeps, self.sde.t_sample)

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times t and lambda(t), float64 (batch,)."""
        grid, u = self.grid(), TIME_SAMPLERS[self.sampling](batch, generator)
        place = self.levels.places(self.sde, grid, u)
        if self.weight == "even":
            return grid[place], torch.full_like(u, len(grid) - 1)
        level = self.sde.sigma(grid) / self.sde.alpha(grid)
        return grid[place], 1 / (level[place] - level[place + 1])

    def after(self, t: Tensor) -> Tensor:
        """The next time of each, t (batch,) on any device."""
        grid = self.grid().to(t.device, t.dtype)
        return grid[(grid[:-1, None] - t).abs().argmin(0) + 1]

    def steps_from(self, t: Tensor) -> Tensor:
        """The times of the teacher's steps from each t (batch,) of the grid to the next, (substeps + 1, batch); of t_sample,
        from which one step leads to 0, t_sample all the time.
        """
        fine = self.fine().to(t.device, t.dtype)
        first = (fine[:, None] - t).abs().argmin(0)
        return fine[(first + torch.arange(self.substeps + 1, device=t.device)[:, None]).clamp(max=len(fine) - 1)]


@dataclass(frozen=True)
class Consistency(Taught):
    """The training loss of a consistency model: distillation with a teacher, training without.

        objective = Consistency(teacher.sde, teacher_model=teacher, intervals=18)

    intervals        of the grid
    first_intervals  of the grid at first, doubled until there are `intervals`; None: as many all the time
    grid             numerics.grids.GRIDS, of the times from t_max to t_sample
    solver           of the teacher's step: "heun", two evaluations, or "ddim", one
    teacher_steps    in each interval
    distance         "huber:c=0.00054" or "squared"
    levels           which intervals are drawn: "even" or "lognormal:mean=-1.1:std=2"
    interval_weight  lambda: "even" or "inverse"
    updates          of the whole training, for `first_intervals`

    The other arguments are those of Taught. Raises ArgumentError for words that do not exist and numbers out of range.
    """

    weighting: str = field(default="simple", init=False)
    importance: bool = field(default=False, init=False)
    intervals: int = field(default=18, kw_only=True)
    first_intervals: int | None = field(default=None, kw_only=True)
    grid: str = field(default="karras", kw_only=True)
    solver: str = field(default="heun", kw_only=True)
    teacher_steps: int = field(default=1, kw_only=True)
    distance: str = field(default="huber", kw_only=True)
    levels: str = field(default="even", kw_only=True)
    interval_weight: str = field(default="even", kw_only=True)
    updates: int | None = field(default=None, kw_only=True)
    of_error: SquaredNorm | HuberNorm = field(init=False, repr=False, compare=False)
    needs_teacher = False

    def __post_init__(self) -> None:
        super().__post_init__()
        first = self.intervals if self.first_intervals is None else self.first_intervals
        if not 2 <= first <= self.intervals <= MOST_INTERVALS:
            raise ArgumentError(f"intervals must lie in 2 .. {MOST_INTERVALS}, and first_intervals between 2 and these; got "
                                f"{self.intervals} and {self.first_intervals}", "intervals", "first_intervals")
        for name, words in (("solver", SOLVERS), ("interval_weight", INTERVAL_WEIGHTS)):
            choose(name, dict.fromkeys(words), getattr(self, name), name)
        most = MOST_INTERVALS // self.intervals
        if not 1 <= self.teacher_steps <= most:
            raise ArgumentError(f"teacher_steps must lie in 1 .. {most}, got {self.teacher_steps}", "teacher_steps")
        kind, options = worded("distance", DISTANCES, self.distance, "distance")
        object.__setattr__(self, "of_error", kind(**options))
        times = Intervals(self.sde, self.grid, make_levels(self.levels), self.time_sampling, first, self.intervals,
                          self.updates, self.progress, self.interval_weight, self.teacher_steps)
        times.grid()      # refuses a grid that does not exist
        object.__setattr__(self, "times", times)

    def loss(self, model: Denoiser, batch: Batch, draw: Lesson) -> Tensor:
        """lambda(t) d(f(x_t, t), f(x_s, s)), (batch,), with a gradient by the first f only."""
        t, s = draw.t, self.times.after(draw.t)      # type: ignore[attr-defined]
        x_t, condition = self.noisy(batch, draw, t), self.lesson(model, batch, draw).condition
        with torch.no_grad(), same_dropout(x_t):
            x_s = self.noisy(batch, draw, s) if self.teacher_model is None else self.flow(x_t, t, s, condition)
            data = s == 0
            end = model.predict(x_s, torch.where(data, t, s), "x0", *told(model, condition))
            end = torch.where(expand_as(data, x_s).bool(), x_s, end)
        start = model.predict(x_t, t, "x0", *told(model, condition))
        return self.of_error(start - end) * draw.weight.to(start)

    @torch.no_grad()
    def flow(self, x: Tensor, t: Tensor, s: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The teacher's flow from x (batch, *event) at t to s, the next time of the grid, (batch,) each."""
        data = expand_as(s == 0, x).bool()
        if self.teacher_steps == 1:
            return self.step(x, t, s, condition)
        end = self.step(x, t, torch.where(s == 0, s, t), condition) if bool(data.any()) else x
        times = self.times.steps_from(t)      # type: ignore[attr-defined]
        for u, v in zip(times, times[1:], strict=False):
            x = self.step(x, u, v, condition)
        return torch.where(data, end, x)

    def step(self, x: Tensor, t: Tensor, s: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The teacher's step of the flow from x (batch, *event) at t to s, (batch,) each: in z = x / alpha over
        sigma / alpha, whose slope is eps, by Euler's method (DDIM) or by Heun's. The step to s = 0 is one of DDIM.
        """
        (alpha, sigma), (alpha_s, sigma_s) = ((self.sde.alpha(u), self.sde.sigma(u)) for u in (t, s))
        keep, move = expand_as(alpha_s / alpha, x), expand_as(sigma_s - sigma * alpha_s / alpha, x)
        eps = self.taught(x, t, "eps", condition)
        first = keep * x + move * eps
        if self.solver == "ddim":
            return first
        data = s == 0
        second = self.taught(first, torch.where(data, t, s), "eps", condition)
        return torch.where(expand_as(data, x).bool(), first, keep * x + move * (eps + second) / 2)


def same_dropout(x: Tensor):
    """In this context random numbers are drawn ahead, and after it drawn again: so two evaluations have one dropout."""
    return torch.random.fork_rng([x.device] if x.device.type == "cuda" else [])
