"""Learning-rate schedules: the share f of `training.learning_rate` that the update after n updates gets.

    warm-up       f = (n + 1) / warmup                                     until n = warmup, in all schedules
    constant      f = 1
    cosine        f = (1 + cos(pi p)) / 2, p = (n - warmup) / (N - warmup)  Loshchilov and Hutter 2017, equation 5
    inverse_sqrt  f = 1 / sqrt(max(n / reference, 1))                       Karras et al. 2024 (EDM2), section 2.2
    cooldown      f = 1, and over the last `cooldown` updates, q = (n - N + cooldown) / cooldown,
                  f = 1 - q (linear) or 1 - sqrt(q) (sqrt)                  Haegele et al. 2024, equation 1

N is `training.steps`. When a run goes on with another N, or another schedule, the rate must not jump. So a checkpoint holds
a `Plan`: from which update on the schedule runs, and from which level. A schedule that has not come to 0 goes on from the
level at which the run stands: a cosine falls from there to 0, a cooldown stays there until its last updates. One that has
come to 0 (below a thousandth) starts anew with its warm-up. A change of `learning_rate` itself is meant as one, and scales
all that follows.

To add a schedule, write a class with `factor` and add a line to SCHEDULES: its fields become fields of a config's section
`training`.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import filled, option

SHAPES = ("linear", "sqrt")
FINISHED = 1e-3      # a schedule below this has come to its end


@dataclass(frozen=True)
class Plan:
    """Where a schedule starts and ends.

    steps  updates in the whole run
    start  the update at which it starts
    level  f there; 0: it starts with a warm-up to 1
    """

    steps: int
    start: int = 0
    level: float = 0.0

    def begin(self, warmup: int) -> int:
        """The first update after the warm-up."""
        return self.start if self.level else self.start + warmup

    def top(self, step: int, warmup: int) -> float:
        """f without any decay."""
        return self.level or min(1.0, (step - self.start + 1) / max(warmup, 1))


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The warm-up, then 1: `Constant().factor(step=0, warmup=10, plan=Plan(100))` is 0.1."""

    planned: ClassVar[bool] = False      # whether f depends on the number of updates in the whole run

    def factor(self, step: int, warmup: int, plan: Plan) -> float:
        return plan.top(step, warmup)


class Cosine(Constant):
    """Half a cosine that reaches 0 after the last update."""

    planned: ClassVar[bool] = True

    def factor(self, step: int, warmup: int, plan: Plan) -> float:
        begin = plan.begin(warmup)
        progress = min(1.0, max(0, step - begin) / max(1, plan.steps - begin))
        return plan.top(step, warmup) * (0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True, kw_only=True)
class InverseSquareRoot(Constant):
    """1 until `reference` updates, then falling with the square root. It has no end, so a run may go on for ever."""

    reference: int = option(70_000, "updates after which the rate falls with the square root of their number")

    def __post_init__(self) -> None:
        if not 0 < self.reference < 2**63:
            raise ArgumentError(f"reference must be above 0, got {self.reference}", "reference")

    def factor(self, step: int, warmup: int, plan: Plan) -> float:
        first = max(plan.start, self.reference) if plan.level else self.reference
        return plan.top(step, warmup) * math.sqrt(min(1.0, first / max(step, 1)))


@dataclass(frozen=True, kw_only=True)
class Cooldown(Constant):
    """1 until the last `cooldown` updates, then down to 0: warm-up, stable, decay."""

    cooldown: int = option(20_000, "last updates of the run, over which the rate falls to 0")
    cooldown_shape: str = option("sqrt", "how it falls over the share q of these: linear (1 - q) or sqrt (1 - sqrt q)")
    planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.cooldown < 2**63:
            raise ArgumentError(f"cooldown must be above 0, got {self.cooldown}", "cooldown")
        if self.cooldown_shape not in SHAPES:
            raise ArgumentError(f"unknown cooldown_shape {self.cooldown_shape!r}; choose from {', '.join(SHAPES)}",
                                "cooldown_shape")

    def factor(self, step: int, warmup: int, plan: Plan) -> float:
        first = max(plan.steps - self.cooldown, plan.begin(warmup))
        share = min(1.0, max(0, step - first) / max(1, plan.steps - first))
        return plan.top(step, warmup) * (1 - (share if self.cooldown_shape == "linear" else math.sqrt(share)))


SCHEDULES: dict[str, Any] = {"constant": Constant, "cosine": Cosine, "inverse_sqrt": InverseSquareRoot,
                             "cooldown": Cooldown}


class LearningRate:
    """The learning rate of each update of a run, and what a checkpoint holds of it.

    settings  an object with the attributes of a config's section `training`: `LearningRate(config.training)(step=0)`
    """

    def __init__(self, settings: Any):
        self.schedule = filled(SCHEDULES[settings.decay], settings)
        self.settings, self.plan = settings, Plan(settings.steps)

    def __call__(self, step: int) -> float:
        return self.settings.learning_rate * self.schedule.factor(step, self.settings.warmup, self.plan)

    def state(self, step: int) -> dict[str, Any]:
        """What the rate depends on after `step` updates beside the settings, with those that the plan was made for."""
        return {"decay": self.settings.decay, "options": asdict(self.schedule), **asdict(self.plan),
                "factor": self.schedule.factor(step, self.settings.warmup, self.plan)}

    def restore(self, state: dict[str, Any] | None, step: int) -> None:
        """Go on after `step` updates. If the settings are others than those of the state, plan anew from where it stands.

        A state of None is that of a checkpoint which knows no plan: the settings then hold from update 0 on.
        """
        if state is None:
            return
        before = Plan(state["steps"], state["start"], state["level"])
        changed = (state["decay"], state["options"]) != (self.settings.decay, asdict(self.schedule))
        self.plan = Plan(self.settings.steps, before.start, before.level)
        warming = not before.level and step < before.begin(self.settings.warmup)
        if not warming and (changed or (self.schedule.planned and before.steps != self.settings.steps)):
            self.plan = Plan(self.settings.steps, step, state["factor"] if state["factor"] >= FINISHED else 0.0)
