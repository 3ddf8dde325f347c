"""The sampler "auto" with a grid and coefficients that were fitted to one model (evaluation/tune.py), read from a file.

Its steps are those of multistep.py, with the prediction m of adams.py:

    x_(i+1) = keep_i x_i + sum_j predict_ij m_(i-j),      corrected once m_(i+1) is known, by coefficients of the same kind
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.models.score_model import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.adams import ExponentialAdams
from scorefield.samplers.base import CountedModel, Sampler
from scorefield.samplers.multistep import Rule, Schedule, run_rules

AGAIN = "tune it again with mode tune"


@dataclass(frozen=True)
class Solver:
    """A fitted solver: times (steps + 1,) and the rule of each step.

    sde       its repr; the coefficients mean nothing to another process
    data_std  of the prediction m (ExponentialAdams)
    made_from what it was fitted to and how, of plain values
    """

    times: Sequence[float]
    rules: Sequence[Rule]
    sde: str
    data_std: float = 1.0
    made_from: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return len(self.rules)

    def stored(self) -> dict[str, Any]:
        """As plain values, for a file."""
        rules = [{"keep": rule.keep, "predict": list(rule.predict), "correct": list(rule.correct),
                  "keep_corrected": rule.keep if rule.keep_corrected is None else rule.keep_corrected}
                 for rule in self.rules]
        return {"times": list(self.times), "rules": rules, "sde": self.sde, "data_std": self.data_std,
                "made_from": dict(self.made_from)}

    @classmethod
    def read(cls, path: str | Path) -> Solver:
        """The solver in a file; ArgumentError (of argument "solver") if there is none or it is damaged."""
        try:
            found = json.loads(Path(path).read_text())
            rules = [Rule(float(rule["keep"]), [*map(float, rule["predict"])], [*map(float, rule["correct"])],
                          keep_corrected=float(rule["keep_corrected"])) for rule in found["rules"]]
            solver = cls([*map(float, found["times"])], rules, str(found["sde"]), float(found["data_std"]),
                         dict(found["made_from"]))
        except FileNotFoundError:
            raise ArgumentError(f"there is no tuned solver {path}; make it with mode tune", "solver") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArgumentError(f"{path} is damaged ({type(error).__name__}: {error}); {AGAIN}", "solver") from None
        decreasing = all(a > b for a, b in zip(solver.times, solver.times[1:], strict=False))
        if len(solver.times) != solver.steps + 1 or not solver.steps or not decreasing:
            raise ArgumentError(f"{path} is damaged: its times do not fit its rules; {AGAIN}", "solver")
        return solver


@dataclass(frozen=True, kw_only=True)
class Tuned(Sampler):
    """A solver fitted to one model and one number of steps: `Tuned(steps=8, solver="runs/mine/solvers/auto_8.json")`.

    From the command line, `solver` is that of the run. Raises ArgumentError for a file of another number of steps, and,
    when it is used, for a model of another SDE.
    """

    steps: int = option(8, "steps, for which a solver was tuned")
    solver: str | None = option(None, "file of the solver; by default that of the run, solvers/auto_<steps>.json")
    order = 2
    stochastic = False

    def __post_init__(self) -> None:
        if self.solver is None:
            raise ArgumentError("sampler tuned needs the file of a solver, which mode tune makes; give solver", "solver")
        if self.t_end is not None or self.denoise:
            raise ArgumentError("a tuned solver has its own end; leave out t_end and denoise", "t_end", "denoise")
        made = Solver.read(self.solver)
        if made.steps != self.steps:
            raise ArgumentError(f"{self.solver} was tuned for {made.steps} steps, not {self.steps}; give these steps, or "
                                "tune one for yours with mode tune", "steps", "solver")
        object.__setattr__(self, "made", made)

    @classmethod
    def of(cls, made: Solver) -> Tuned:
        """The sampler of a solver that is in no file."""
        sampler = object.__new__(cls)
        for name, value in {"t_end": None, "denoise": None, "steps": made.steps, "solver": None, "made": made}.items():
            object.__setattr__(sampler, name, value)
        return sampler

    def times(self, model: ScoreModel) -> Tensor:
        made: Solver = self.made      # type: ignore[attr-defined]
        if repr(model.sde) != made.sde:
            raise ArgumentError(f"{self.solver} was tuned for {made.sde}, and the model has {model.sde}; {AGAIN}", "solver")
        return torch.tensor(made.times, dtype=torch.float64)

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        made: Solver = self.made      # type: ignore[attr-defined]
        yield from run_rules(model, x, times, made.rules, *predicts(model.sde, times, made.data_std))


def predicts(sde: Any, times: Tensor, data_std: float) -> tuple[Any, Any]:
    """The coefficients of x and eps in the prediction m of sampler "auto" at each time."""
    return ExponentialAdams(data_std=data_std).predicts(Schedule.of(sde, times))
