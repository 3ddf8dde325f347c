"""What a model is made for that has no score or only its own sampler: a student, a flow of coupled pairs, or a bridge.

A student of progressive distillation predicts the x_0 to which one long step of DDIM must point, and a consistency model the
end of the flow through x_t. Neither is E[x_0 given x_t], so neither has a score: only its own sampler may use it, a
likelihood none. A bridge (bridge.py) has another flow than its reference process, so it is sampled by its own rule, too.

A model of coupled pairs (flow matching by optimal transport or reflow) has a flow, which deterministic samplers and
likelihoods follow, and no score, which noise, bounds and classifiers need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.grids import make_grid
from scorefield.sde_lib.sde import SDE

STEPS, FLOW_END, COUPLED, ENDS = "steps", "flow_end", "coupled", "ends"      # the kinds of students, of flows and bridges
COUPLINGS = (INDEPENDENT, OPTIMAL_TRANSPORT, REFLOW) = ("independent", "optimal_transport", "reflow")
MOST_STEPS = 100_000


@dataclass(frozen=True)
class Student:
    """What one sampler needs to know of a student.

    kind    STEPS: it predicts for the steps of one grid of DDIM; FLOW_END: it predicts the end of the flow from any time;
            COUPLED: it has a flow and no score; ENDS: it predicts the end of a path of a bridge
    sampler a key of samplers.SAMPLERS, and its options, by which the student is sampled
    times   the grid of the first kind, float64 (steps + 1,)
    """

    kind: str
    sampler: str
    options: Mapping[str, Any]
    times: Tensor | None = None

    def __str__(self) -> str:
        if self.kind == COUPLED:
            return "a flow of coupled pairs, which has no score"
        if self.times is None:
            return "a Schroedinger bridge" if self.kind == ENDS else "a consistency model"
        return f"a student of {len(self.times) - 1} steps of DDIM on the grid {self.options['grid']!r}"

    @property
    def advice(self) -> str:
        """How it is sampled, for messages."""
        if self.kind == COUPLED:
            return "a deterministic sampler, such as auto"
        return f"sampler {self.sampler!r}" + "".join(f", {name} {value}" for name, value in self.options.items())


def of_steps(sde: SDE, steps: int, grid: str) -> Student:
    """The student that takes `steps` steps of DDIM on a grid of that name, from t_max to t_sample."""
    with torch.device("cpu"):      # times are computed with, whatever the default device
        return Student(STEPS, "ddim", {"steps": steps, "grid": grid}, make_grid(grid, sde, steps, sde.t_sample))


CONSISTENCY_MODEL = Student(FLOW_END, "consistency", {"steps": 2})
COUPLED_FLOW = Student(COUPLED, "auto", {})
BRIDGE = Student(ENDS, "bridge", {})


def student_of(training: Mapping[str, Any], sde: SDE) -> Student | None:
    """What the model is made for that a config's section `training` trains; None: it is a score model.

    Raises ArgumentError for a number of steps that no grid has.
    """
    objective = training.get("objective")
    if objective == "progressive":
        if not 1 <= training["student_steps"] <= MOST_STEPS:
            raise ArgumentError(f"student_steps must lie in 1 .. {MOST_STEPS}, got {training['student_steps']}",
                                "training.student_steps")
        return of_steps(sde, training["student_steps"], training["grid"])
    if objective == "flow_matching" and training.get("coupling", INDEPENDENT) != INDEPENDENT:
        return COUPLED_FLOW
    if objective in ("dsb", "dsbm"):
        return BRIDGE
    return CONSISTENCY_MODEL if objective in ("consistency", "continuous_consistency") else None
