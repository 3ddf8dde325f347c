"""The sampler of Schroedinger bridges: from examples of one end to the other, by the bridge's process or by its flow.

With the predicted goal m_0 and start m_1 of the path through x, a step is one of the Brownian bridge between these
(sde_lib/reference.py, `Reference.step`). eta = 1 is the Markov process that DSB and DSBM learn, and needs m_0 only. eta = 0
is the probability flow. It has no noise at the start, where its equation is singular: so the first step is always one of
eta = 1 (Zheng et al. 2024, "Diffusion Bridge Implicit Models", section 3.3). The marginals of all eta are those of the
bridge; only those of eta = 1 also couple the ends as the bridge does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from scorefield.models.bridge import BridgeModel
from scorefield.models.score_model import ScoreModel
from scorefield.models.student import ENDS, Student
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.base import ETA, CountedModel, Sampler
from scorefield.sde_lib.reference import crowded


@dataclass(frozen=True, kw_only=True)
class BridgeSampler(Sampler):
    """The sampler of bridges; other models are refused, and no other sampler takes these.

    An evaluation calls the network toward the goal, and with eta below 1 the other one, too. With `heun` a step but the last
    has two, the second at the state that the first leads to, with the same noise; then it has weak order 2.
    """

    steps: int = option(30, "steps, from the start to the goal")
    eta: float = option(1.0, ETA.replace("reverse-time SDE", "bridge's own process"))
    crowding: float = option(2.0, "how much the steps crowd at both ends: 1 is even in time, at most 8")
    heun: bool = option(True, "two evaluations a step, of order 2; noheun: one, of order 1")
    stochastic = True
    only = "Schroedinger bridges, which objectives dsbm and dsb train"

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ArgumentError(f"eta must lie in [0, 1], got {self.eta}", "eta")
        if self.steps < 1:
            raise ArgumentError(f"steps must be at least 1, got {self.steps}", "steps")
        crowded(1, self.crowding)      # refuses what it does not take

    @property
    def order(self) -> float:
        return 2 if self.heun else 1

    def takes(self, student: Student | None, times: Tensor) -> bool:
        return student is not None and student.kind == ENDS

    def times(self, model: ScoreModel) -> Tensor:
        end = 0.0 if self.t_end is None else self.t_end
        if not 0 <= end < 1:
            raise ArgumentError(f"t_end must lie in [0, 1), got {end}", "t_end")
        return crowded(self.steps, self.crowding, 1.0, end)

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        bridge = model.model
        assert isinstance(bridge, BridgeModel)
        sde = bridge.sde
        back = bridge.back if self.eta < 1 else None

        def ends(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor | None]:
            return model.x0(x, s), None if back is None else model.predict(x, 1 - s, "x0", back)

        for i, (s, later) in enumerate(zip(times[:-1], times[1:], strict=True)):
            rule = sde.step(float(s), float(later), self.eta if i else 1.0)
            z = noise.normal(x) if noise is not None and rule.of_noise else None
            first = ends(x, s)
            moved = rule(x, *first, z)
            if self.heun and float(later) > 0:
                goal, start = ends(moved, later)
                start = None if start is None or first[1] is None else (first[1] + start) / 2
                moved = rule(x, (first[0] + goal) / 2, start, z)
            x = moved
            yield x
